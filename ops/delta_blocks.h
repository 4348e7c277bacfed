// How a method on task vectors walks over a tile: d = x - base of every model, decoded block by block, and what it
// merges them to added to the base. For mergers that have no fused kernels (ops/kernels.h).
#pragma once

#include <algorithm>
#include <span>

#include "ops/mergers_internal.h"

namespace braid {

// Task vectors of the models that have the tensor; a tile may have none. Lanes are float32, in scratch that the method
// may change, with kLanePadding readable lanes after the end.
struct DeltaBlock {
  std::span<float* const> d;
  std::span<const size_t> models;   // whose they are
  size_t start = 0;                 // in the tile
  size_t n = 0;                     // lanes, at most kBlockLanes
  float* merged = nullptr;          // n lanes
};

// Calls visit(block) for each block of the tile, in order. block.merged is scratch.
template <typename Visit>
void ForEachDeltaBlock(const LaneTile& tile, Scratch& scratch, Visit visit) {
  scratch.voters.clear(), scratch.deltas.clear();
  for (size_t m = 0; m < tile.models.size(); ++m)
    if (tile.models[m].bytes != nullptr) scratch.voters.push_back(m), scratch.deltas.push_back(scratch.models[m]);
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    DecodeLanesAt(tile.base, start, n, scratch.base);
    for (size_t m : scratch.voters) DecodeDelta(tile, m, start, n, scratch);
    visit(DeltaBlock{scratch.deltas, scratch.voters, start, n, scratch.out});
  }
}

// invalid[i] = 1 where the base or an entry is not a number, otherwise 0.
void FindInvalid(const DeltaBlock& block, const float* base, uint32_t* invalid);

// lanes = base + lambda lanes, separately rounded; the base where the product is 0; NaN where invalid.
void AddToBase(const float* base, float lambda, const uint32_t* invalid, size_t n, float* lanes);

// Writes the tile: combine(block) fills block.merged, the merged task vector, which is added to the base times lambda.
// An element of which the base or an entry is NaN becomes NaN whatever combine makes of it.
template <typename Combine>
void MergeDeltaBlocks(const LaneTile& tile, float lambda, Scratch& scratch, DType type, std::byte* out,
                      MergeCounts* counts, Combine combine) {
  uint32_t invalid[kBlockLanes];
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    FindInvalid(block, scratch.base, invalid);
    combine(block);
    AddToBase(scratch.base, lambda, invalid, block.n, block.merged);
    std::byte* const bytes = out + block.start * static_cast<size_t>(LaneBytes(type));
    EncodeLanes(type, block.merged, block.n, bytes, &counts->non_finite);
  });
}

}  // namespace braid
