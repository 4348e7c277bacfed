#include "ops/delta_blocks.h"

#include <limits>

#include "ops/wide_vectors.h"

namespace braid {

BRAID_WIDE_VECTORS void FindInvalid(const DeltaBlock& block, const float* base, uint32_t* invalid) {
  for (size_t i = 0; i < block.n; ++i) invalid[i] = base[i] != base[i] ? 1 : 0;
  for (const float* d : block.d)
    for (size_t i = 0; i < block.n; ++i) invalid[i] |= d[i] != d[i] ? 1 : 0;
}

BRAID_WIDE_VECTORS void AddToBase(const float* base, float lambda, const uint32_t* invalid, size_t n, float* lanes) {
  for (size_t i = 0; i < n; ++i) {
    const float scaled = lanes[i] * lambda;   // exact when lambda is 1
    const float sum = base[i] + scaled;
    const float merged = scaled == 0 ? base[i] : sum;
    lanes[i] = invalid[i] != 0 ? std::numeric_limits<float>::quiet_NaN() : merged;
  }
}

}  // namespace braid
