// Counting and collecting keys; sums of magnitudes.
#include "ops/draft_selection.h"
#include "ops/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/kernels_select.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

constexpr size_t kKeyBatch = 256;

// Long runs of one key do not stall the counting, so one table is enough: 0.28 to 0.30 ns per equal lane, 0.33 to 0.40
// for those of a task vector (Zen 5, AVX-512); the worst seen was 0.76 against 0.56 (scalar). CountLowHalves: 0.43
// where all are equal, 0.62 where only their high halves are. See ops/README.md.
void CountHighTarget(const float* d, size_t n, uint32_t* bins) {
  HWY_ALIGN uint32_t high[kKeyBatch + HWY_MAX_BYTES / sizeof(uint32_t)];
  for (size_t start = 0; start < n; start += kKeyBatch) {
    const size_t m = HWY_MIN(kKeyBatch, n - start);
    for (size_t i = 0; i < m; i += hn::Lanes(df))
      hn::StoreU(hn::ShiftRight<16>(KeyOf(hn::LoadU(df, d + start + i))), du, high + i);
    for (size_t i = 0; i < m; ++i) ++bins[high[i]];
  }
}

void CountLowTarget(const float* d, size_t n, uint32_t high, uint32_t* bins) {
  HWY_ALIGN uint32_t hits[HWY_MAX_BYTES / sizeof(uint32_t)];
  const VU wanted = hn::Set(du, high);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VU key = KeyOf(hn::LoadU(df, d + i));
    auto hit = hn::Eq(hn::ShiftRight<16>(key), wanted);
    if (hn::AllFalse(du, hit)) continue;
    hit = hn::And(hit, hn::FirstN(du, n - i));
    hn::Store(key, du, hits);
    for (uint64_t left = MaskBits(du, hit); left != 0; left &= left - 1)
      ++bins[hits[hwy::Num0BitsBelowLS1Bit_Nonzero64(left)] & 0xffff];
  }
}

uint64_t CountKeyTarget(const float* d, size_t n, uint32_t key) {
  uint64_t count = 0;
  const VU wanted = hn::Set(du, key);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto hit = hn::Eq(KeyOf(hn::LoadU(df, d + i)), wanted);
    count += hn::CountTrue(du, hn::And(hit, hn::FirstN(du, n - i)));
  }
  return count;
}

// Masks first, 64 lanes to a word, then their set bits one by one: 0.11 ns per lane when 4 % are collected. Compressing
// stores took 0.24 behind a branch on an empty mask, which is a coin toss then, and 0.44 without it (EPYC, AVX-512).
constexpr size_t kWord = 64;

// load(i): lanes i, i + 1, ... of the task vector.
template <class Load>
HWY_INLINE size_t CollectFrom(Load load, size_t n, uint32_t low, uint32_t high, uint32_t* keys, uint32_t* places,
                              uint64_t* above) {
  HWY_ALIGN uint32_t batch[kWord];
  // As signed integers: keys have no sign bit, and low - 1 may be -1.
  const auto below = hn::Set(di, static_cast<int32_t>(low) - 1), top = hn::Set(di, static_cast<int32_t>(high));
  size_t collected = 0, larger = 0;
  for (size_t start = 0; start < n; start += kWord) {
    uint64_t inside = 0, over = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(df)) {
      const auto key = hn::BitCast(di, KeyOf(load(start + i)));
      hn::Store(hn::BitCast(du, key), du, batch + i);
      inside |= MaskBits(di, hn::Gt(key, below)) << i;
      over |= MaskBits(di, hn::Gt(key, top)) << i;
    }
    const uint64_t valid = n - start >= kWord ? ~uint64_t{0} : (uint64_t{1} << (n - start)) - 1;
    larger += hwy::PopCount(over & valid);
    for (uint64_t left = inside & ~over & valid; left != 0; left &= left - 1, ++collected) {
      const size_t i = hwy::Num0BitsBelowLS1Bit_Nonzero64(left);
      keys[collected] = batch[i];
      places[collected] = static_cast<uint32_t>(start + i);
    }
  }
  *above += larger;
  return collected;
}

size_t CollectKeysTarget(const float* d, size_t n, uint32_t low, uint32_t high, uint32_t* keys, uint32_t* places,
                         uint64_t* above) {
  const auto load = [d](size_t i) HWY_ATTR { return hn::LoadU(df, d + i); };
  return CollectFrom(load, n, low, high, keys, places, above);
}

template <class From>
size_t CollectDifferences(const void* base, const void* model, size_t n, uint32_t low, uint32_t high, uint32_t* keys,
                          uint32_t* places, uint64_t* above) {
  using Element = typename From::Element;
  const auto* b = static_cast<const Element*>(base);
  const auto* x = static_cast<const Element*>(model);
  const auto load = [&](size_t i) HWY_ATTR {
    hwy::Prefetch(b + i + kPrefetchAhead), hwy::Prefetch(x + i + kPrefetchAhead);
    return hn::Sub(From::Load(x + i), From::Load(b + i));
  };
  const size_t whole = n / kWord * kWord;
  size_t collected = CollectFrom(load, whole, low, high, keys, places, above);
  if (whole == n) return collected;
  HWY_ALIGN Element rest[2][kWord] = {};   // what is left at the end, filled up
  std::memcpy(rest[0], b + whole, (n - whole) * sizeof(Element));
  std::memcpy(rest[1], x + whole, (n - whole) * sizeof(Element));
  const auto load_rest = [&](size_t i) HWY_ATTR { return hn::Sub(From::Load(rest[1] + i), From::Load(rest[0] + i)); };
  const size_t more =
      CollectFrom(load_rest, n - whole, low, high, keys + collected, places + collected, above);
  for (size_t i = 0; i < more; ++i) places[collected + i] += static_cast<uint32_t>(whole);
  return collected + more;
}

size_t CollectTaskVectorTarget(DType type, const void* base, const void* model, size_t n, uint32_t low, uint32_t high,
                               uint32_t* keys, uint32_t* places, uint64_t* above) {
  switch (type) {
    case DType::kBF16: return CollectDifferences<FromBF16>(base, model, n, low, high, keys, places, above);
    case DType::kF16: return CollectDifferences<FromF16>(base, model, n, low, high, keys, places, above);
    default: return CollectDifferences<FromF32>(base, model, n, low, high, keys, places, above);
  }
}

// A word has few bits: kMorePlaces are written in any case, so that nothing asks how many there are.
size_t PlacesOfTarget(const uint64_t* words, size_t n, uint32_t* places) {
  size_t count = 0;
  for (size_t start = 0; start < n; start += 64) {
    uint64_t left = words[start / 64];
    const size_t bits = hwy::PopCount(left);
    uint32_t* next = places + count;
    const auto write = [&] {
      *next++ = static_cast<uint32_t>(start + hwy::Num0BitsBelowLS1Bit_Nonzero64(left | uint64_t{1} << 63));
      left &= left - 1;
    };
    for (size_t i = 0; i < kMorePlaces; ++i) write();
    while (left != 0) write();
    count += bits;
  }
  return count;
}

void StoreKeysTarget(const float* d, size_t n, uint32_t* keys) {
  HWY_ALIGN uint32_t vector[HWY_MAX_BYTES / sizeof(uint32_t)];
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    hn::StoreU(KeyOf(hn::LoadU(df, d + i)), du, vector);
    std::memcpy(keys + i, vector, HWY_MIN(hn::Lanes(df), n - i) * sizeof(uint32_t));
  }
}

// The sums stay in registers: 0.21 ns per lane became 0.063 (EPYC, AVX-512).
void AddMagnitudesTarget(const float* d, size_t n, int32_t high, double* sums) {
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> dh;
  const hn::RebindToSigned<decltype(dh)> dhi;
  constexpr size_t kStep = hn::MaxLanes(dd), kParts = kSumLanes / kStep;
  const auto limit = hn::Set(dhi, high);
  hn::Vec<decltype(dd)> parts[kParts];
  for (size_t p = 0; p < kParts; ++p) parts[p] = hn::LoadU(dd, sums + p * kStep);
  for (size_t i = 0; i < n; i += kSumLanes) {
    for (size_t p = 0; p < kParts; ++p) {
      const size_t at = i + p * kStep;
      const auto magnitude = hn::Abs(hn::LoadU(dh, d + at));
      const auto above = hn::Gt(hn::ShiftRight<16>(hn::BitCast(dhi, magnitude)), limit);
      auto kept = hn::IfThenElseZero(hn::RebindMask(dh, above), magnitude);
      if (HWY_UNLIKELY(at + kStep > n)) kept = hn::IfThenElseZero(hn::FirstN(dh, at < n ? n - at : 0), kept);
      parts[p] = hn::Add(parts[p], hn::PromoteTo(dd, kept));
    }
  }
  for (size_t p = 0; p < kParts; ++p) hn::StoreU(parts[p], dd, sums + p * kStep);
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(CollectKeysTarget);
HWY_EXPORT(CollectTaskVectorTarget);
HWY_EXPORT(StoreKeysTarget);
HWY_EXPORT(PlacesOfTarget);
HWY_EXPORT(CountHighTarget);
HWY_EXPORT(CountLowTarget);
HWY_EXPORT(CountKeyTarget);
HWY_EXPORT(AddMagnitudesTarget);

size_t CollectKeys(const float* d, size_t n, uint32_t low, uint32_t high, uint32_t* keys, uint32_t* places,
                   uint64_t* above) {
  return HWY_DYNAMIC_DISPATCH(CollectKeysTarget)(d, n, low, high, keys, places, above);
}
size_t CollectTaskVectorKeys(DType type, const void* base, const void* model, size_t n, uint32_t low, uint32_t high,
                             uint32_t* keys, uint32_t* places, uint64_t* above) {
  return HWY_DYNAMIC_DISPATCH(CollectTaskVectorTarget)(type, base, model, n, low, high, keys, places, above);
}
size_t PlacesOf(const uint64_t* words, size_t n, uint32_t* places) {
  return HWY_DYNAMIC_DISPATCH(PlacesOfTarget)(words, n, places);
}
void StoreKeys(const float* d, size_t n, uint32_t* keys) { HWY_DYNAMIC_DISPATCH(StoreKeysTarget)(d, n, keys); }
void CountHighHalves(const float* d, size_t n, uint32_t* bins) {
  HWY_DYNAMIC_DISPATCH(CountHighTarget)(d, n, bins);
}
void CountLowHalves(const float* d, size_t n, uint32_t high, uint32_t* bins) {
  HWY_DYNAMIC_DISPATCH(CountLowTarget)(d, n, high, bins);
}
uint64_t CountKey(const float* d, size_t n, uint32_t key) {
  return HWY_DYNAMIC_DISPATCH(CountKeyTarget)(d, n, key);
}
void AddMagnitudes(const float* d, size_t n, int32_t high, double* sums) {
  HWY_DYNAMIC_DISPATCH(AddMagnitudesTarget)(d, n, high, sums);
}

}  // namespace braid
#endif  // HWY_ONCE
