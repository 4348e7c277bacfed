// The loops of sce over blocks of float32 lanes; see ops/kernels.h for what holds of all kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace braid {

// The biased variance of each lane across models, in float64, rounded once: sums over models in their order. 0 without
// any.
void Variances(const float* const* d, size_t models, size_t n, float* variances);

// d[i] becomes 0 unless the key of variances[i] is at least `least`. Nothing behind d[n - 1] changes.
void KeepVariances(const float* variances, uint32_t least, size_t n, float* d);

// sums[i % 16] += d[i]^2 in float64. n must be a multiple of 16 except at the end of a tensor.
void AddSquares(const float* d, size_t n, double* sums);

// Elects signs by the sums of entries, plus where that is 0, and merges the entries that agree: the sum of weight d
// over the sum of weights, or over 1e-6 where that is less. Returns at how many lanes some did not agree.
uint64_t MergeAgreeing(const float* const* d, const float* weights, size_t models, size_t n, float* merged);

}  // namespace braid
