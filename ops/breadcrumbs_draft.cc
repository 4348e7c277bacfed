// breadcrumbs in one read: a tile is merged by what the brackets of both ends make sure, and the few elements with an
// entry inside a bracket are merged again when the ends are known. What is put aside are lanes of the base and of task
// vectors.
#include <algorithm>
#include <cmath>

#include "ops/breadcrumbs_merger.h"
#include "ops/draft_selection.h"
#include "ops/sparsify.h"

namespace braid {

// A bracket holds deviations of a rank, which get fewer towards either end of the order.
double BreadcrumbsMerger::OpenShare() const {
  double share = 0;
  for (const Trail& trail : trails_)
    for (const End& end : trail.ends) {
      const double before = static_cast<double>(end.place) / static_cast<double>(elements_);
      if (end.sought) share += 2 * kOpenShare * std::sqrt(before * (1 - before));
    }
  return share;
}

// Elements `index` and following. Also counts the entries that are before an end, or may be.
void BreadcrumbsMerger::FindOpenElements(const TaskVectorBlock& block, size_t n, uint64_t index, Scratch& scratch,
                                         uint64_t* words, OpenElements* open) const {
  constexpr size_t kWords = kBlockLanes / 64;
  uint64_t its_words[kWords];
  std::fill_n(words, kWords, 0);
  scratch.sure_keys.resize(scratch.voters.size());
  for (size_t e = 0; e < kEnds; ++e) {
    scratch.staying.assign(scratch.voters.size(), 0);
    for (size_t v = 0; v < scratch.voters.size(); ++v) {
      const End& end = trails_[scratch.voters[v]].ends[e];
      scratch.min_keys[v] = end.sought ? end.bracket.open.MinKey(index) : end.cut.MinKey(index);
      scratch.sure_keys[v] = end.sought ? end.bracket.sure.MinKey(index) : end.cut.MinKey(index);
    }
    FindOpen(block, n, {scratch.sure_keys.data(), scratch.staying.data(), its_words});
    for (size_t w = 0; w * 64 < n; ++w) words[w] |= its_words[w];
    for (size_t v = 0; v < scratch.voters.size(); ++v)
      open->staying[scratch.voters[v] * kEnds + e] += scratch.staying[v];
  }
  std::fill(scratch.min_keys.begin(), scratch.min_keys.end(), 0);   // the block's: Keep has the word in a merge
}

bool BreadcrumbsMerger::PutAside(const LaneTile& tile, uint64_t index, const uint32_t* places, size_t count,
                                 const Scratch& scratch, OpenElements* open) const {
  return open->PutAside(index, places, count, [&](const uint32_t* from, size_t k, OpenChunk* chunk) {
    const auto copy = [&](const float* lanes, float* to) {
      for (size_t i = 0; i < k; ++i) to[i] = lanes[from[i]];
    };
    copy(scratch.base, chunk->lanes<float>(0) + chunk->count);
    for (size_t m = 0; m < models(); ++m) {
      if (tile.models[m].bytes != nullptr) copy(scratch.models[m], chunk->lanes<float>(m + 1) + chunk->count);
      else std::fill_n(chunk->lanes<float>(m + 1) + chunk->count, k, 0.0f);
    }
  });
}

bool BreadcrumbsMerger::Draft(const Coefficients& c, const LaneTile& tile, Scratch& scratch, DType type, std::byte* out,
                              OpenElements* open, MergeCounts* counts) const {
  const TaskVectorBlock block = BlockOf(c, &tile, scratch);
  uint64_t words[kBlockLanes / 64];
  uint32_t places[kBlockLanes + kMorePlaces];
  VoteCounts votes;
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    const uint64_t index = tile.first + start;
    DecodeLanesAt(tile.base, start, n, scratch.base);
    for (size_t m : scratch.voters) DecodeDelta(tile, m, start, n, scratch);
    FindOpenElements(block, n, index, scratch, words, open);
    const size_t count = PlacesOf(words, n, places);
    if (!PutAside(tile, index, places, count, scratch, open)) return false;
    // Open elements are zeros here, which nobody counts.
    for (size_t i = 0; i < count; ++i) scratch.base[places[i]] = 0;
    for (size_t m : scratch.voters) {
      float* const d = scratch.models[m];
      for (size_t i = 0; i < count; ++i) d[places[i]] = 0;
      const End &outliers = trails_[m].ends[0], &kept = trails_[m].ends[1];
      if (!sparse(m)) continue;
      KeepKeys(kept.sought ? kept.bracket.sure.MinKey(index) : kept.cut.MinKey(index),
               outliers.sought ? outliers.bracket.sure.MinKey(index) : outliers.cut.MinKey(index), n, d);
    }
    MergeLanes(block, n, scratch, type, out + start * static_cast<size_t>(LaneBytes(type)), &votes,
               &counts->non_finite);
  }
  counts->conflicts += votes.conflicts;
  return true;
}

bool BreadcrumbsMerger::FinishDraft(std::span<const OpenElements* const> tiles) {
  for (size_t m = 0; m < models(); ++m)
    for (size_t e = 0; e < kEnds; ++e) {
      End& end = trails_[m].ends[e];
      if (!end.sought) continue;
      const auto selected =
          SelectAmongOpen(end.bracket, end.place, m * kEnds + e, tiles, m, OpenLanes::kTaskVectors, false);
      if (!selected) return false;
      end.cut = selected->cut.key == 0 ? Cut{} : selected->cut;
    }
  return true;
}

void BreadcrumbsMerger::Settle(const Coefficients& c, const OpenElements& open, uint64_t first, Scratch& scratch,
                               DType type, std::byte* out, MergeCounts* counts) const {
  const TaskVectorBlock block = BlockOf(c, nullptr, scratch);
  std::byte encoded[kBlockLanes * sizeof(double)];
  VoteCounts votes;
  for (const auto& chunk : open.chunks()) {
    const uint32_t* const indices = chunk->indices();
    for (size_t at = 0, end; at < chunk->count; at = end) {
      end = std::min(at + kBlockLanes, chunk->count);
      for (size_t m : scratch.voters)   // as far as each end has one least key
        for (const End& its : trails_[m].ends)
          if (indices[at] < its.cut.index && its.cut.index <= indices[end - 1])
            end = static_cast<size_t>(std::lower_bound(indices + at, indices + end, its.cut.index) - indices);
      std::copy_n(chunk->lanes<float>(0) + at, end - at, scratch.base);
      for (size_t m : scratch.voters) {
        std::copy_n(chunk->lanes<float>(m + 1) + at, end - at, scratch.models[m]);
        const End &outliers = trails_[m].ends[0], &kept = trails_[m].ends[1];
        if (!sparse(m)) continue;
        KeepKeys(kept.cut.MinKey(indices[at]), outliers.cut.MinKey(indices[at]), end - at, scratch.models[m]);
      }
      MergeLanes(block, end - at, scratch, type, encoded, &votes, &counts->non_finite);
      ScatterElements(encoded, indices + at, end - at, first, type, out);
    }
  }
  counts->conflicts += votes.conflicts;
}

}  // namespace braid
