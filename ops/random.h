// Random draws by place: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011), a bijection of counters. A draw depends on the seed, the model, the tensor and the element, and on nothing
// else: not on tiles, threads or SIMD target, nor on which other tensors and models there are.
//
// Thread-safe: functions of their arguments.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace braid {

// Four words for a counter and a key.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Whose draws: one model's in one tensor.
struct RandomStream {
  uint64_t seed = 0;         // the key
  uint32_t model = 0;        // its number in the recipe; below 2^16
  uint64_t tensor_key = 0;   // TensorFacts::key
};

// A draw has so many bits, uniform.
inline constexpr int kDrawBits = 31;

// draws[i] is that of element first + i (below 2^50). 64 elements take 16 counters: element e is word e / 16 % 4 of
// counter e / 64 * 16 + e % 16, so that vectors of any width store what they compute side by side. `draws` has room for
// n and kLanePadding.
void DrawBits(const RandomStream& stream, uint64_t first, size_t n, uint32_t* draws);

// An event of probability p, 0 <= p < 1: draw < LimitOf(p).
inline uint32_t LimitOf(double p) { return static_cast<uint32_t>(p * (uint64_t{1} << kDrawBits)); }

}  // namespace braid
