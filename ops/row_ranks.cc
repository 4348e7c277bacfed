#include "ops/row_ranks.h"

#include <algorithm>

#include "ops/task_vector_merger.h"

namespace braid {
namespace {

// Below so many keys, clearing the counters takes longer than comparing.
constexpr size_t kFewKeys = 384;

// Of 31 bits: 11 low ones, 10, and 10 high ones.
constexpr int kShift1 = 11, kShift2 = 21;
constexpr size_t kBins0 = 1 << 11, kBins = 1 << 10;

size_t Digit0(uint32_t key) { return key & (kBins0 - 1); }
size_t Digit1(uint32_t key) { return key >> kShift1 & (kBins - 1); }
size_t Digit2(uint32_t key) { return key >> kShift2; }

// Counts become the number of keys with a smaller digit.
void AddUp(uint32_t* counts, size_t bins) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bins; ++i) {
    const uint32_t count = counts[i];
    counts[i] = sum;
    sum += count;
  }
}

uint64_t Pair(uint32_t key, size_t index) { return uint64_t{key} << 32 | index; }
uint32_t KeyOf(uint64_t pair) { return static_cast<uint32_t>(pair >> 32); }
uint32_t IndexOf(uint64_t pair) { return static_cast<uint32_t>(pair); }

}  // namespace

void RankKeys(uint32_t* keys, size_t n, uint64_t* room) {
  if (n <= kFewKeys) {
    for (size_t i = 0; i < n; ++i) room[i] = Pair(keys[i], i);
    std::sort(room, room + n);
    for (size_t r = 0; r < n; ++r) keys[IndexOf(room[r])] = static_cast<uint32_t>(r);
    return;
  }
  uint32_t starts0[kBins0] = {}, starts1[kBins] = {}, starts2[kBins] = {};
  for (size_t i = 0; i < n; ++i) ++starts0[Digit0(keys[i])], ++starts1[Digit1(keys[i])], ++starts2[Digit2(keys[i])];
  AddUp(starts0, kBins0), AddUp(starts1, kBins), AddUp(starts2, kBins);
  uint64_t* const by_low = room;
  uint64_t* const by_both = room + n;
  for (size_t i = 0; i < n; ++i) by_low[starts0[Digit0(keys[i])]++] = Pair(keys[i], i);
  for (size_t i = 0; i < n; ++i) by_both[starts1[Digit1(KeyOf(by_low[i]))]++] = by_low[i];
  // The last place is the rank.
  for (size_t i = 0; i < n; ++i) keys[IndexOf(by_both[i])] = starts2[Digit2(KeyOf(by_both[i]))]++;
}

void RowRanks::Find(const LaneTile& tile, size_t model, const LaneUnit& unit, Order order, Scratch& scratch) const {
  uint32_t* const ranks = Of(model, scratch);
  for (size_t done = 0, n; done < unit.count; done += n) {
    n = std::min(kBlockLanes, unit.count - done);
    StoreKeys(TaskVectorAt(tile, model, unit.start + done, n, scratch), n, ranks + done);
  }
  for (size_t i = 0; order == Order::kLargestFirst && i < unit.count; ++i) ranks[i] = kNanKey - ranks[i];
  for (size_t row = 0; row < unit.count; row += row_)
    RankKeys(ranks + row, row_, reinterpret_cast<uint64_t*>(scratch.workspace));
}

}  // namespace braid
