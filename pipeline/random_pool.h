// Pools of random floats that synthetic weights are drawn from. A draw costs a logarithm and a cosine; a
// value read from a pool, at whatever offset, costs a load.
//
// A value depends on the seed, the kind and its index alone, so the number of threads changes nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid {

enum class Distribution : uint8_t {
  kNormal,    // mean 0, variance 1
  kStudent3,  // Student's t with 3 degrees of freedom: the heavy tails of task vectors
};

// `count` values, made on up to `threads` threads. Allocates 4 bytes per value.
std::vector<float> MakeRandomPool(Distribution distribution, uint64_t seed, size_t count, int threads);

// 64 well-mixed bits of a counter; the generator behind the pools, and good for picking offsets in them.
uint64_t MixBits(uint64_t seed, uint64_t counter);

}  // namespace braid
