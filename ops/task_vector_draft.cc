// ties and task_arithmetic in one read: a tile is merged by what the brackets make sure, and the few elements with an
// entry inside a bracket are merged again when the thresholds are known.
#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/draft_selection.h"
#include "ops/task_vector_merger.h"

namespace braid {
namespace {

constexpr size_t kWords = kBlockLanes / 64;

template <typename Element>
void CopyElements(const void* from, const uint32_t* places, size_t n, Element* to) {
  const auto* const bytes = static_cast<const std::byte*>(from);
  for (size_t i = 0; i < n; ++i) std::memcpy(to + i, bytes + places[i] * sizeof(Element), sizeof(Element));
}

}  // namespace

bool TaskVectorMerger::Draft(const Coefficients& c, const LaneTile& tile, Scratch& scratch, DType type,
                             std::byte* out, OpenElements* open, MergeCounts* counts) const {
  TaskVectorBlock block = BlockFor(c, &tile, scratch);
  const DType from = CommonType(tile, scratch);
  const size_t voters = scratch.voters.size(), size = static_cast<size_t>(LaneBytes(type));
  scratch.sure_keys.resize(voters);
  scratch.staying.assign(voters, 0);
  uint64_t words[kWords];
  const OpenEntries entries{scratch.sure_keys.data(), scratch.staying.data(), words};
  open->type = from == DType::kBF16 ? from : DType::kF32;
  VoteCounts votes;
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    if (KeepsBase(tile, start, n, from, type, scratch, out + start * size)) continue;   // of zeros none is asked for
    for (size_t v = 0; v < voters; ++v) {
      const Trim& trim = trims_[scratch.voters[v]];
      const uint64_t at = tile.first + start;
      const bool selects = trim.slot >= 0;
      scratch.min_keys[v] = selects ? trim.bracket.open.MinKey(at) : trim.cut.MinKey(at);
      scratch.sure_keys[v] = selects ? trim.bracket.sure.MinKey(at) : scratch.min_keys[v];
    }
    UseEncoded(tile, start, scratch, &block);
    if (!MergeEncoded(block, from, type, n, out + start * size, &votes, &entries)) {
      DecodeBlock(tile, start, n, scratch);
      UseLanes(scratch, &block);
      FindOpen(block, n, entries);
      MergeTaskVectors(block, n, scratch.room, scratch.out, words, &votes);
      NonFinite& bad = counts->non_finite;
      EncodeLanes(type, scratch.out, n, out + start * size, &bad);
      // Open elements are counted when they are settled.
      NonFinite uncounted;
      std::byte ignored[sizeof(double)];
      for (size_t w = 0; w < kWords && w * 64 < n; ++w)
        for (uint64_t left = words[w]; left != 0; left &= left - 1)
          EncodeLanes(type, scratch.out + w * 64 + static_cast<size_t>(std::countr_zero(left)), 1, ignored, &uncounted);
      bad.nan -= uncounted.nan, bad.inf -= uncounted.inf;
    }
    if (!PutAside(tile, start, n, from, words, scratch, open)) return false;
  }
  for (size_t v = 0; v < voters; ++v) open->staying[scratch.voters[v]] += scratch.staying[v];
  counts->conflicts += votes.conflicts;
  return true;
}

// Elements as they are, where the chunks' type is theirs; otherwise their lanes, which have been decoded.
bool TaskVectorMerger::PutAside(const LaneTile& tile, size_t start, size_t n, DType from, const uint64_t* words,
                                const Scratch& scratch, OpenElements* open) const {
  uint32_t places[kBlockLanes + kMorePlaces];
  const size_t count = PlacesOf(words, n, places);
  const auto copy = [&](const EncodedLanes& source, const float* lanes, size_t slot, const uint32_t* at, size_t k,
                        OpenChunk* chunk) {
    const std::byte* const bytes = source.bytes + start * static_cast<size_t>(LaneBytes(source.type));
    if (open->type == DType::kBF16) CopyElements(bytes, at, k, chunk->lanes<uint16_t>(slot) + chunk->count);
    else if (from == DType::kF32) CopyElements(bytes, at, k, chunk->lanes<float>(slot) + chunk->count);
    else CopyElements(lanes, at, k, chunk->lanes<float>(slot) + chunk->count);
  };
  return open->PutAside(tile.first + start, places, count, [&](const uint32_t* at, size_t k, OpenChunk* chunk) {
    copy(tile.base, scratch.base, 0, at, k, chunk);
    for (size_t m : scratch.voters) copy(tile.models[m], scratch.models[m], m + 1, at, k, chunk);
  });
}

bool TaskVectorMerger::FinishDraft(std::span<const OpenElements* const> tiles) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.slot < 0) continue;
    const auto selected = SelectAmongOpen(trim.bracket, trim.keep, m, tiles, m, OpenLanes::kSources, keep_equals_);
    if (!selected) return false;
    if (selected->cut.key == 0) {
      UseThreshold({.key = 0, .above = selected->above, .equal = 0}, &trim);
    } else {
      trim.cut = selected->cut;
      trim.found = true;
      trim.keep += selected->more_equals;
      if (keep_equals_) trim.cut.index = UINT64_MAX;
    }
  }
  ordered_possible_ = false;   // who stays is known: no quota is left to hand out
  return true;
}

void TaskVectorMerger::Settle(const Coefficients& c, const OpenElements& open, uint64_t first, Scratch& scratch,
                              DType type, std::byte* out, MergeCounts* counts) const {
  TaskVectorBlock block = BlockFor(c, nullptr, scratch);
  std::byte encoded[kBlockLanes * sizeof(double)];
  VoteCounts votes;
  for (const auto& chunk : open.chunks()) {
    const uint32_t* const indices = chunk->indices();
    for (size_t at = 0, end; at < chunk->count; at = end) {
      end = std::min(at + kBlockLanes, chunk->count);
      for (size_t v = 0; v < scratch.voters.size(); ++v) {   // as far as each model has one least key
        const Cut& cut = trims_[scratch.voters[v]].cut;
        scratch.min_keys[v] = cut.MinKey(indices[at]);
        scratch.sources[v] = chunk->lanes(open.type, scratch.voters[v] + 1, at);
        if (indices[at] < cut.index && cut.index <= indices[end - 1])
          end = static_cast<size_t>(std::lower_bound(indices + at, indices + end, cut.index) - indices);
      }
      block.base = chunk->lanes(open.type, 0, at);
      if (!MergeEncoded(block, open.type, type, end - at, encoded, &votes, nullptr)) {
        DecodeLanes(open.type, block.base, end - at, scratch.base);
        for (size_t v = 0; v < scratch.voters.size(); ++v)
          DecodeLanes(open.type, scratch.sources[v], end - at, scratch.models[scratch.voters[v]]);
        UseLanes(scratch, &block);
        MergeTaskVectors(block, end - at, scratch.room, scratch.out, nullptr, &votes);
        EncodeLanes(type, scratch.out, end - at, encoded, &counts->non_finite);
      }
      ScatterElements(encoded, indices + at, end - at, first, type, out);
    }
  }
  counts->conflicts += votes.conflicts;
}

}  // namespace braid
