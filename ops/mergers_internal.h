// What mergers share.
#pragma once

#include "ops/merger.h"

namespace braid {

inline void DecodeLanesAt(const EncodedLanes& source, size_t start, size_t n, float* lanes) {
  DecodeLanes(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), n, lanes);
}

// The sum of float32 weights as mergekit's tensors add up (torch.sum over a small vector): four interleaved
// float32 sums over the whole groups of four, the rest onto the first, then the other three onto it.
float SumOfWeights(const std::vector<float>& weights);

}  // namespace braid
