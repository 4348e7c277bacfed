#include "ops/row_draws.h"

#include "ops/row_ranks.h"
#include "ops/sparsify.h"
#include "ops/task_vector_merger.h"

namespace braid {
namespace {

// Rows as short as this are ranked: clearing and adding up the buckets would take longer.
constexpr size_t kFewKeys = 256;

constexpr size_t kBlockWords = kBlockLanes / 64;

}  // namespace

void RowDraws::Find(const LaneTile& tile, size_t model, const LaneUnit& unit, const RandomStream& stream,
                    const RankLimits& limits, Scratch& scratch) const {
  auto* const keys = reinterpret_cast<uint32_t*>(scratch.workspace);
  std::byte* const room = scratch.workspace + KeyBytes();
  uint64_t* const bits = Of(model, scratch);
  std::fill_n(bits, Words(), 0);
  for (size_t done = 0, n; done < unit.count; done += n) {
    n = std::min(kBlockLanes, unit.count - done);
    StoreKeys(TaskVectorAt(tile, model, unit.start + done, n, scratch), n, keys + done);
  }
  // Draws for lanes begin .. end of the unit, block by block; false when `keep` has given up.
  const auto draw = [&](size_t begin, size_t end, auto keep) {
    uint64_t words[kBlockWords];
    for (size_t at = begin, n; at < end; at += n) {
      n = std::min(kBlockLanes, end - at);
      DrawBits(stream, tile.first + unit.start + at, n, scratch.draws);
      if (!keep(at, n, words)) return false;
      AddBits(words, n, bits, at);
    }
    return true;
  };
  const auto rank = [&](size_t row) { RankKeys(keys + row, row_, reinterpret_cast<uint64_t*>(room)); };
  const auto keep_by_ranks = [&](size_t at, size_t n, uint64_t* words) {
    KeepByRanks(limits, scratch.draws, keys + at, n, words);
    return true;
  };
  if (row_ <= kFewKeys) {
    for (size_t row = 0; row < unit.count; row += row_) rank(row);
    draw(0, unit.count, keep_by_ranks);
    return;
  }
  RankBuckets buckets;
  for (size_t row = 0; row < unit.count; row += row_) {
    FillBuckets(keys + row, row_, limits, room, &buckets);
    const bool found = draw(row, row + row_, [&](size_t at, size_t n, uint64_t* words) {
      return KeepByBuckets(limits, scratch.draws, at - row, n, &buckets, words);
    });
    if (found) continue;
    rank(row);
    draw(row, row + row_, keep_by_ranks);
  }
}

}  // namespace braid
