#include "ops/rank_buckets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rank_buckets.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

constexpr size_t kWord = 64;

HWY_INLINE size_t LowestBit(uint64_t bits) { return hwy::Num0BitsBelowLS1Bit_Nonzero64(bits); }
HWY_INLINE uint64_t FirstBits(size_t n) { return n >= kWord ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

uint32_t LargestOf(const uint32_t* keys, size_t n) {
  auto largest = hn::Zero(di);   // as signed integers: keys have no sign bit
  for (size_t i = 0; i < n; i += hn::Lanes(du)) {
    const auto key = hn::IfThenElseZero(hn::FirstN(du, n - i), hn::LoadU(du, keys + i));
    largest = hn::Max(largest, hn::BitCast(di, key));
  }
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, largest)));
}

void FindSlots(const uint32_t* keys, size_t n, uint16_t* slots) {
  constexpr uint32_t kLast = RankBuckets::kBuckets - 1;
  const uint32_t high = LargestOf(keys, n) >> 16;
  const auto first = hn::Set(di, static_cast<int32_t>(high > kLast ? high - kLast : 0));
  const VU depth = hn::Set(du, RankBuckets::kDepth - 1);
  for (size_t i = 0; i < n; i += hn::Lanes(du)) {
    const auto half = hn::BitCast(di, hn::ShiftRight<16>(hn::LoadU(du, keys + i)));
    const VU bucket = hn::BitCast(du, hn::Sub(hn::Max(half, first), first));
    static_assert(RankBuckets::kDepth == 1 << 7 && RankBuckets::kColumns == 1 << 4);
    const VU slot = hn::Or(hn::ShiftLeft<4>(hn::And(bucket, depth)), hn::ShiftRight<7>(bucket));
    hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(di, slot)), DU16(), slots + i);
  }
}

// Counts become the number of keys in the buckets before. Each column adds up its own, then those before it.
void AddUp(uint32_t* counts) {
  constexpr size_t kColumns = RankBuckets::kColumns, kTotals = RankBuckets::kBuckets;
  const hn::CappedTag<uint32_t, kColumns> d;
  for (size_t column = 0; column < kColumns; column += hn::Lanes(d)) {
    auto sum = hn::Zero(d);
    for (size_t at = column; at < kTotals; at += kColumns) {
      const auto count = hn::LoadU(d, counts + at);
      hn::StoreU(sum, d, counts + at);
      sum = hn::Add(sum, count);
    }
    hn::StoreU(sum, d, counts + kTotals + column);
  }
  uint32_t before[kColumns], sum = 0;
  for (size_t column = 0; column < kColumns; ++column) before[column] = sum, sum += counts[kTotals + column];
  for (size_t column = 0; column < kColumns; column += hn::Lanes(d)) {
    const auto offset = hn::LoadU(d, before + column);
    for (size_t at = column; at < RankBuckets::kSlots; at += kColumns)
      hn::StoreU(hn::Add(hn::LoadU(d, counts + at), offset), d, counts + at);
  }
}

// limits[i] = limit of rank ranks[i], i < n, n a multiple of 16.
void FindLimits(const RankLimits& limits, const uint32_t* ranks, size_t n, uint32_t* found) {
  const hn::CappedTag<double, 16> dd;
  const hn::Rebind<int32_t, decltype(dd)> dh;
  const auto low = hn::Set(dd, limits.low), step = hn::Set(dd, limits.step);
  const auto scale = hn::Set(dd, RankLimits::kScale), most = hn::Set(dd, RankLimits::kMost);
  for (size_t i = 0; i < n; i += hn::Lanes(dd)) {
    const auto rank = hn::PromoteTo(dd, hn::LoadU(dh, reinterpret_cast<const int32_t*>(ranks) + i));
    const auto limit = hn::Min(hn::Mul(hn::Add(low, hn::Mul(step, rank)), scale), most);
    hn::StoreU(hn::DemoteTo(dh, limit), dh, reinterpret_cast<int32_t*>(found) + i);
  }
}

void FillBucketsTarget(const RankLimits& limits, RankBuckets* b) {
  FindSlots(b->keys, b->n, b->slots);
  std::memset(b->starts, 0, sizeof b->starts);
  uint32_t* HWY_RESTRICT counts = b->starts;
  uint32_t* HWY_RESTRICT places = b->places;
  const uint16_t* HWY_RESTRICT slots = b->slots;
  for (size_t i = 0; i < b->n; ++i) places[i] = counts[slots[i]]++;
  AddUp(b->starts);
  FindLimits(limits, b->starts, RankBuckets::kSlots, b->limits);
  const uint32_t* HWY_RESTRICT keys = b->keys;
  uint32_t* HWY_RESTRICT sorted = b->sorted;
  for (size_t i = 0; i < b->n; ++i) sorted[counts[slots[i]] + places[i]] = keys[i];
}

// How many of n keys are below `limit`.
size_t CountBelow(const uint32_t* keys, size_t n, uint32_t limit) {
  const auto end = hn::Set(di, static_cast<int32_t>(limit));
  size_t count = 0;
  for (size_t i = 0; i < n; i += hn::Lanes(di)) {
    const auto below = hn::Lt(hn::BitCast(di, hn::LoadU(du, keys + i)), end);
    count += hn::CountTrue(di, hn::And(below, hn::FirstN(di, n - i)));
  }
  return count;
}

uint32_t RankOf(const RankBuckets& b, size_t i) {
  const uint32_t key = b.keys[i], start = b.starts[b.slots[i]], end = b.starts[b.slots[i] + RankBuckets::kColumns];
  const uint32_t place = b.places[i];
  const uint32_t* const bucket = b.sorted + start;
  const size_t before = CountBelow(bucket, place, key + 1),
               behind = CountBelow(bucket + place, end - start - place, key);
  return start + static_cast<uint32_t>(before + behind);
}

bool KeepByBucketsTarget(const RankLimits& limits, const uint32_t* draws, size_t start, size_t n, RankBuckets* b,
                         uint64_t* words) {
  const uint32_t* const keys = b->keys + start;
  const uint16_t* const slots = b->slots + start;
  const auto least = hn::Set(di, static_cast<int32_t>(b->least)), most = hn::Set(di, static_cast<int32_t>(b->most));
  for (size_t at = 0; at < n; at += kWord) {
    uint64_t stays = 0, may_stay = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(di)) {
      const auto draw = hn::BitCast(di, hn::LoadU(du, draws + at + i)),
                 key = hn::BitCast(di, hn::LoadU(du, keys + at + i));
      const auto surely = hn::Lt(draw, least);
      stays |= MaskBits(di, surely) << i;
      may_stay |= MaskBits(di, hn::AndNot(surely, hn::And(hn::Lt(draw, most), hn::Gt(key, hn::Zero(di))))) << i;
    }
    uint64_t open = 0;
    for (uint64_t left = may_stay & FirstBits(n - at); left != 0; left &= left - 1) {
      const size_t i = LowestBit(left);
      const uint32_t draw = draws[at + i];
      const size_t slot = slots[at + i];
      const uint64_t below_first = draw < b->limits[slot], below_next = draw < b->limits[slot + RankBuckets::kColumns];
      stays |= below_first << i;
      open |= (below_first ^ below_next) << i;
    }
    for (; open != 0; open &= open - 1) {
      const size_t i = LowestBit(open), slot = slots[at + i];
      const uint64_t work = b->starts[slot + RankBuckets::kColumns] - b->starts[slot];
      if (work > b->work) return false;
      b->work -= work;
      stays |= uint64_t{draws[at + i] < limits.Of(RankOf(*b, start + at + i))} << i;
    }
    words[at / kWord] = stays & FirstBits(n - at);
  }
  return true;
}

void KeepByRanksTarget(const RankLimits& limits, const uint32_t* draws, const uint32_t* ranks, size_t n,
                       uint64_t* words) {
  HWY_ALIGN uint32_t batch[kWord];
  for (size_t at = 0; at < n; at += kWord) {
    const size_t m = HWY_MIN(kWord, n - at);
    std::memcpy(batch, ranks + at, m * sizeof(uint32_t));
    std::memset(batch + m, 0, (kWord - m) * sizeof(uint32_t));
    FindLimits(limits, batch, kWord, batch);
    uint64_t stays = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(di)) {
      const auto draw = hn::BitCast(di, hn::LoadU(du, draws + at + i)),
                 limit = hn::BitCast(di, hn::Load(du, batch + i));
      stays |= MaskBits(di, hn::Lt(draw, limit)) << i;
    }
    words[at / kWord] = stays & FirstBits(n - at);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {
namespace {

// Keys of buckets that may be looked at, per key of the row: a vector of them is compared in a step, while ranking them
// all takes some twenty steps for each.
constexpr uint64_t kWorkPerKey = 64;

}  // namespace

HWY_EXPORT(FillBucketsTarget);
HWY_EXPORT(KeepByBucketsTarget);
HWY_EXPORT(KeepByRanksTarget);

void FillBuckets(const uint32_t* keys, size_t n, const RankLimits& limits, std::byte* room, RankBuckets* b) {
  b->keys = keys, b->n = n, b->work = kWorkPerKey * n;
  b->least = limits.Of(0), b->most = limits.Of(static_cast<uint32_t>(n - 1));
  b->sorted = reinterpret_cast<uint32_t*>(room);
  b->places = b->sorted + n + kLanePadding;
  b->slots = reinterpret_cast<uint16_t*>(b->places + n);
  HWY_DYNAMIC_DISPATCH(FillBucketsTarget)(limits, b);
}
bool KeepByBuckets(const RankLimits& limits, const uint32_t* draws, size_t start, size_t n, RankBuckets* b,
                   uint64_t* words) {
  return HWY_DYNAMIC_DISPATCH(KeepByBucketsTarget)(limits, draws, start, n, b, words);
}
void KeepByRanks(const RankLimits& limits, const uint32_t* draws, const uint32_t* ranks, size_t n, uint64_t* words) {
  HWY_DYNAMIC_DISPATCH(KeepByRanksTarget)(limits, draws, ranks, n, words);
}

}  // namespace braid
#endif  // HWY_ONCE
