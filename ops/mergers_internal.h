// What mergers share.
#pragma once

#include "ops/merger.h"

namespace braid {

inline void DecodeLanesAt(const EncodedLanes& source, size_t start, size_t n, float* lanes) {
  DecodeLanes(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), n, lanes);
}

// d = x - base for lanes of a model, into its scratch lanes; the base's are in scratch.base.
inline void DecodeDelta(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch) {
  const EncodedLanes& source = tile.models[m];
  DecodeTaskVector(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), scratch.base, n,
                   scratch.models[m]);
}

// The sum of float32 weights as mergekit's tensors add up (torch.sum over a small vector): four interleaved
// float32 sums over the whole groups of four, the rest onto the first, then the other three onto it.
float SumOfWeights(const std::vector<float>& weights);

}  // namespace braid
