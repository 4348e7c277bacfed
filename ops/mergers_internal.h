// What mergers share.
#pragma once

#include <algorithm>

#include "ops/merger.h"

namespace braid {

// Of what a worker's workspace is divided into.
constexpr size_t kAlignment = 128;
constexpr size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

inline void DecodeLanesAt(const EncodedLanes& source, size_t start, size_t n, float* lanes) {
  DecodeLanes(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), n, lanes);
}

// d = x - base for lanes of a model, into its scratch lanes; the base's are in scratch.base.
inline void DecodeDelta(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch) {
  const EncodedLanes& source = tile.models[m];
  DecodeTaskVector(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), scratch.base, n,
                   scratch.models[m]);
}

// Hands a part of a tile what it claims, as long as any of the tile's grants are left: equal entries at a threshold
// come in order of the index. `left` and `granted` have one place per claim of the merger.
inline void GrantPart(const Merger& merger, const Coefficients& c, const LaneTile& part, Scratch& scratch,
                      std::span<uint64_t> left, uint64_t* granted) {
  std::fill_n(granted, left.size(), 0);
  if (std::any_of(left.begin(), left.end(), [](uint64_t some) { return some > 0; }))
    merger.CountClaims(c, part, scratch, granted);
  for (size_t i = 0; i < left.size(); ++i) {
    granted[i] = std::min(granted[i], left[i]);
    left[i] -= granted[i];
  }
}

// The sum of float32 weights as mergekit's tensors add up (torch.sum over a small vector): four interleaved
// float32 sums over the whole groups of four, the rest onto the first, then the other three onto it.
float SumOfWeights(const std::vector<float>& weights);

}  // namespace braid
