#include "ops/extreme_keys.h"

#include <algorithm>
#include <functional>

#include "ops/merger.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/extreme_keys.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

// As signed integers: keys have no sign bit.
void KeyRangeTarget(const float* d, size_t n, KeyRange* range) {
  auto least = hn::Set(di, static_cast<int32_t>(kNanKey)), largest = hn::Zero(di);
  size_t i = 0;
  for (; i + hn::Lanes(df) <= n; i += hn::Lanes(df)) {
    const auto key = hn::BitCast(di, KeyOf(hn::LoadU(df, d + i)));
    least = hn::Min(least, key), largest = hn::Max(largest, key);
  }
  if (i < n) {
    const auto key = hn::BitCast(di, KeyOf(hn::LoadU(df, d + i)));
    const auto valid = hn::FirstN(di, n - i);
    least = hn::IfThenElse(valid, hn::Min(least, key), least);
    largest = hn::IfThenElse(valid, hn::Max(largest, key), largest);
  }
  range->least = static_cast<uint32_t>(hn::GetLane(hn::MinOfLanes(di, least)));
  range->largest = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, largest)));
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(KeyRangeTarget);

KeyRange KeyRangeOf(const float* d, size_t n) {
  KeyRange range;
  HWY_DYNAMIC_DISPATCH(KeyRangeTarget)(d, n, &range);
  return range;
}

namespace {
size_t Room(size_t k) { return 2 * k + kBlockLanes; }
}  // namespace

uint64_t LargestKeys::Bytes(uint64_t k) { return Room(k) * sizeof(uint32_t); }

LargestKeys::LargestKeys(size_t k) : k_(k) { keys_.reserve(Room(k)); }

void LargestKeys::Take(const uint32_t* keys, size_t n) {
  keys_.insert(keys_.end(), keys, keys + n);
  if (keys_.size() > 2 * k_) Prune();
}

void LargestKeys::Prune() {
  if (keys_.size() <= k_) return;
  const auto last = keys_.begin() + static_cast<ptrdiff_t>(k_ - 1);
  std::nth_element(keys_.begin(), last, keys_.end(), std::greater<>());
  least_wanted_ = *last + 1;
  keys_.resize(k_);
}

void LargestKeys::Add(LargestKeys* other) {
  Prune();
  other->Prune();
  keys_.insert(keys_.end(), other->keys_.begin(), other->keys_.end());
  Prune();
}

uint32_t LargestKeys::Ranked(size_t rank) {
  const auto at = keys_.begin() + static_cast<ptrdiff_t>(rank - 1);
  std::nth_element(keys_.begin(), at, keys_.end(), std::greater<>());
  return *at;
}

void ExtremeKeys::Look(const float* d, size_t n) {
  uint32_t keys[kBlockLanes], places[kBlockLanes];
  uint64_t above = 0;
  seen_ += n;
  const KeyRange range = KeyRangeOf(d, n);
  if (range.largest >= largest_.least_wanted())
    largest_.Take(keys, CollectKeys(d, n, largest_.least_wanted(), kNanKey, keys, places, &above));
  if (kNanKey - range.least < smallest_.least_wanted()) return;
  const size_t found = CollectKeys(d, n, 0, kNanKey - smallest_.least_wanted(), keys, places, &above);
  for (size_t i = 0; i < found; ++i) keys[i] = kNanKey - keys[i];
  smallest_.Take(keys, found);
}

void ExtremeKeys::Add(ExtremeKeys* other) {
  seen_ += other->seen_;
  smallest_.Add(&other->smallest_);
  largest_.Add(&other->largest_);
}

uint32_t ExtremeKeys::Smallest(size_t rank) { return kNanKey - smallest_.Ranked(rank); }

}  // namespace braid
#endif  // HWY_ONCE
