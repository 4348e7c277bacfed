// Loops that take entries out of task vectors, over blocks of float32 lanes; see ops/kernels.h for what holds of all
// kernels. A NaN stays whatever is asked: a NaN in a source, or the difference of two infinities, is a NaN in the merge
// (mergekit's, too).
#pragma once

#include <cstddef>
#include <cstdint>

namespace braid {

// d[i] becomes 0 unless draws[i] < limits[i], both below 2^31.
void KeepDrawn(const uint32_t* draws, const uint32_t* limits, size_t n, float* d);

// d[i] becomes 0 unless bit first + i of `bits` is set; one word behind the last of them is readable, too.
void KeepBits(const uint64_t* bits, size_t first, size_t n, float* d);

// Sets those of bits first .. first + n that are set in `words`, whose bits from n on are clear; may touch a word
// behind them.
void AddBits(const uint64_t* words, size_t n, uint64_t* bits, size_t first);

// Sets bit i of `words` where d[i] is not 0 (a NaN is not), clears it elsewhere, also behind n.
void FindNonZeros(const float* d, size_t n, uint64_t* words);

// d[i] becomes 0 unless low <= key < high. Nothing behind d[n - 1] changes.
void KeepKeys(uint32_t low, uint32_t high, size_t n, float* d);

// out = base + merged; the base's own bits where `merged` is 0.
void AddTaskVector(const float* base, const float* merged, size_t n, float* out);

}  // namespace braid
