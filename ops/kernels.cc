#include "ops/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/kernels.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include <cstring>

#include "hwy/cache_control.h"

#ifndef BRAID_OPS_KERNELS_ONCE
#define BRAID_OPS_KERNELS_ONCE
namespace braid {
namespace {
bool IsUsualFew(const TaskVectorBlock& block) {
  return block.elect && block.elect_weighted && !block.elect_by_count && block.num_models >= 1 && block.num_models <= 4;
}
}  // namespace
}  // namespace braid
#endif

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
using MF = hn::Mask<DF>;

constexpr DF df;
constexpr DI di;
constexpr DU du;

// --- types ------------------------------------------------------------------------------------------------

struct FromF32 {
  using Element = float;
  static VF Load(const float* p) { return hn::LoadU(df, p); }
};

struct FromBF16 {
  using Element = uint16_t;
  static VF Load(const uint16_t* p) {
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(DU16(), p))));
  }
};

// Own steps instead of the F16C instruction: the same on every target, subnormals included.
struct FromF16 {
  using Element = uint16_t;
  static VF Load(const uint16_t* p) {
    const VU half = hn::PromoteTo(du, hn::LoadU(DU16(), p));
    const VU sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(du, 0x8000)));
    const VU magnitude = hn::ShiftLeft<13>(hn::And(half, hn::Set(du, 0x7fff)));
    const VU exponent = hn::And(magnitude, hn::Set(du, 0x1fu << 23));
    const VU rebias = hn::Set(du, (127 - 15) << 23);
    const VU normal = hn::Add(magnitude, rebias);
    const VU special = hn::Add(normal, hn::Set(du, (128 - 16) << 23));  // Inf, NaN
    // A subnormal m 2^-24 is (2^-14 + m 2^-24) - 2^-14, and both steps are exact.
    const VF tiny = hn::Sub(hn::BitCast(df, hn::Add(normal, hn::Set(du, 1u << 23))),
                            hn::BitCast(df, hn::Set(du, 113u << 23)));
    VU bits = hn::IfThenElse(hn::Eq(exponent, hn::Zero(du)), hn::BitCast(du, tiny), normal);
    bits = hn::IfThenElse(hn::Eq(exponent, hn::Set(du, 0x1fu << 23)), special, bits);
    return hn::BitCast(df, hn::Or(bits, sign));
  }
};

// Blocks of several sources alternate, so the processor's own prefetching starts anew with each. One block ahead:
// 4.5 s became 3.8 s for a warm merge of 1.24 billion parameters (with the candidates' memory reused).
constexpr size_t kPrefetchAhead = 1024;

// lanes = x, or x - base when there is a base.
template <class From, bool kSubtract = false>
void DecodeAs(const void* bytes, size_t n, float* lanes, const float* base = nullptr) {
  using Element = typename From::Element;
  const size_t step = hn::Lanes(df);
  const auto* p = static_cast<const Element*>(bytes);
  const auto store = [&](const Element* from, size_t i) HWY_ATTR {
    const VF x = From::Load(from);
    hn::StoreU(kSubtract ? hn::Sub(x, hn::LoadU(df, base + i)) : x, df, lanes + i);
  };
  size_t i = 0;
  for (; i + step <= n; i += step) {
    hwy::Prefetch(p + i + kPrefetchAhead);
    store(p + i, i);
  }
  if (i < n) {  // the input has no padding
    HWY_ALIGN Element rest[HWY_MAX_BYTES / sizeof(float)] = {};
    std::memcpy(rest, p + i, (n - i) * sizeof(Element));
    store(rest, i);
  }
  std::memset(lanes + n, 0, kLanePadding * sizeof(float));
}

// A plain loop, which the compiler vectorises: Highway's own conversion turns infinities into the largest float
// on its scalar target.
void DecodeF64(const void* bytes, size_t n, float* lanes) {
  const auto* p = static_cast<const char*>(bytes);
  for (size_t i = 0; i < n; ++i) {
    double wide;
    std::memcpy(&wide, p + i * sizeof(double), sizeof(double));
    lanes[i] = static_cast<float>(wide);
  }
  std::memset(lanes + n, 0, kLanePadding * sizeof(float));
}

void DecodeTarget(DType type, const void* bytes, size_t n, float* lanes) {
  switch (type) {
    case DType::kF64: return DecodeF64(bytes, n, lanes);
    case DType::kF16: return DecodeAs<FromF16>(bytes, n, lanes);
    case DType::kBF16: return DecodeAs<FromBF16>(bytes, n, lanes);
    default: return DecodeAs<FromF32>(bytes, n, lanes);
  }
}

VF CanonicalNan(VF x) { return hn::IfThenElse(hn::IsNaN(x), hn::BitCast(df, hn::Set(du, 0x7fc00000)), x); }

struct ToF32 {
  using Element = float;
  static constexpr uint32_t kInf = 0x7f800000;
  static VU Bits(VF x) { return hn::BitCast(du, CanonicalNan(x)); }
  static void Store(VU bits, float* p) { hn::StoreU(hn::BitCast(df, bits), df, p); }
};

// Highway 1.0.3 truncates when it demotes to bf16, so rounding is ours: add half a unit, or just less when the
// last kept bit is even.
struct ToBF16 {
  using Element = uint16_t;
  static constexpr uint32_t kInf = 0x7f80;
  static VU Bits(VF x) {
    const VU bits = hn::BitCast(du, x);
    const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const VU rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
    return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), hn::Set(du, 0x7fc0), rounded);
  }
  static void Store(VU bits, uint16_t* p) { hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(di, bits)), DU16(), p); }
};

struct ToF16 {
  using Element = uint16_t;
  static constexpr uint32_t kInf = 0x7c00;
  static VU Bits(VF x) {
    const VU sign = hn::And(hn::BitCast(du, x), hn::Set(du, 0x80000000));
    const VU magnitude = hn::AndNot(hn::Set(du, 0x80000000), hn::BitCast(du, x));
    // Normal: rebias the exponent and round at bit 13; a carry may run into the exponent, up to infinity.
    const VU odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
    const VU rebias = hn::Set(du, (static_cast<uint32_t>(15 - 127) << 23) + 0xfff);
    const VU normal = hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, rebias), odd));
    // Subnormal: adding 0.5 lets the float adder round at 2^-24.
    const VU half = hn::Set(du, 126u << 23);
    const VF summed = hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, half));
    const VU tiny = hn::Sub(hn::BitCast(du, summed), half);
    // As signed integers: magnitudes have no sign bit.
    const auto less = [](VU a, uint32_t b) {
      return hn::RebindMask(du, hn::Lt(hn::BitCast(di, a), hn::Set(di, static_cast<int32_t>(b))));
    };
    VU bits = hn::IfThenElse(less(magnitude, 113u << 23), tiny, normal);
    bits = hn::IfThenElse(less(magnitude, 143u << 23), bits, hn::Set(du, kInf));  // 2^16 and above
    bits = hn::Or(bits, hn::ShiftRight<16>(sign));
    return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), hn::Set(du, 0x7e00), bits);
  }
  static void Store(VU bits, uint16_t* p) { hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(di, bits)), DU16(), p); }
};

template <class To>
void EncodeAs(const float* lanes, size_t n, void* bytes, NonFinite* counts) {
  using Element = typename To::Element;
  const size_t step = hn::Lanes(df);
  auto* p = static_cast<Element*>(bytes);
  const VU inf = hn::Set(du, To::kInf);
  const VU no_sign = hn::Set(du, sizeof(Element) == 4 ? 0x7fffffff : 0x7fff);
  size_t nan_count = 0, inf_count = 0;
  for (size_t i = 0; i < n; i += step) {
    const VF x = hn::LoadU(df, lanes + i);
    const VU bits = To::Bits(x);
    const auto valid = hn::FirstN(du, n - i);
    nan_count += hn::CountTrue(du, hn::And(valid, hn::RebindMask(du, hn::IsNaN(x))));
    inf_count += hn::CountTrue(du, hn::And(valid, hn::Eq(hn::And(bits, no_sign), inf)));
    if (i + step <= n) {
      To::Store(bits, p + i);
    } else {
      HWY_ALIGN Element rest[HWY_MAX_BYTES / sizeof(float)];
      To::Store(bits, rest);
      std::memcpy(p + i, rest, (n - i) * sizeof(Element));
    }
  }
  counts->nan += nan_count;
  counts->inf += inf_count;
}

void EncodeF64(const float* lanes, size_t n, void* bytes, NonFinite* counts) {
  auto* p = static_cast<char*>(bytes);
  HWY_ALIGN float canonical[HWY_MAX_BYTES / sizeof(float)];
  const size_t step = hn::Lanes(df);
  for (size_t i = 0; i < n; i += step) {
    EncodeAs<ToF32>(lanes + i, HWY_MIN(step, n - i), canonical, counts);
    for (size_t j = 0; j < HWY_MIN(step, n - i); ++j) {
      const double wide = canonical[j];
      std::memcpy(p + (i + j) * sizeof(double), &wide, sizeof(double));
    }
  }
}

void EncodeTarget(DType type, const float* lanes, size_t n, void* bytes, NonFinite* counts) {
  switch (type) {
    case DType::kF64: return EncodeF64(lanes, n, bytes, counts);
    case DType::kF16: return EncodeAs<ToF16>(lanes, n, bytes, counts);
    case DType::kBF16: return EncodeAs<ToBF16>(lanes, n, bytes, counts);
    default: return EncodeAs<ToF32>(lanes, n, bytes, counts);
  }
}

// --- task vectors, keys, selection ------------------------------------------------------------------------

void DecodeTaskVectorTarget(DType type, const void* bytes, const float* base, size_t n, float* d) {
  switch (type) {
    case DType::kF16: return DecodeAs<FromF16, true>(bytes, n, d, base);
    case DType::kBF16: return DecodeAs<FromBF16, true>(bytes, n, d, base);
    case DType::kF32: return DecodeAs<FromF32, true>(bytes, n, d, base);
    default: break;
  }
  DecodeF64(bytes, n, d);
  for (size_t i = 0; i < n; ++i) d[i] -= base[i];
}

VU KeyOf(VF d) { return hn::Min(hn::And(hn::BitCast(du, d), hn::Set(du, 0x7fffffff)), hn::Set(du, kNanKey)); }

// Bit j: lane j of the mask.
template <class D, class M>
HWY_INLINE uint64_t MaskBits(D d, M mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint64_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

constexpr size_t kKeyBatch = 256;

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
template <class From>
size_t CollectAs(const void* bytes, const float* base, size_t n, uint32_t low, uint32_t high, uint32_t first_index,
                 uint32_t* keys, uint32_t* indices, uint64_t* above) {
  using Element = typename From::Element;
  constexpr size_t kWord = 64;
  HWY_ALIGN uint32_t batch[kWord];
  HWY_ALIGN float rest[kWord + kLanePadding];
  const auto* p = static_cast<const Element*>(bytes);
  // As signed integers: keys have no sign bit, and low - 1 may be -1.
  const auto below = hn::Set(di, static_cast<int32_t>(low) - 1), top = hn::Set(di, static_cast<int32_t>(high));
  size_t collected = 0, larger = 0;
  for (size_t start = 0; start < n; start += kWord) {
    const bool whole = n - start >= kWord;
    if (!whole) DecodeAs<From, true>(p + start, n - start, rest, base + start);  // the input has no padding
    uint64_t inside = 0, over = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(df)) {
      hwy::Prefetch(p + start + i + kPrefetchAhead);
      const VF d = whole ? hn::Sub(From::Load(p + start + i), hn::LoadU(df, base + start + i)) : hn::LoadU(df, rest + i);
      const auto key = hn::BitCast(di, KeyOf(d));
      hn::Store(hn::BitCast(du, key), du, batch + i);
      inside |= MaskBits(di, hn::Gt(key, below)) << i;
      over |= MaskBits(di, hn::Gt(key, top)) << i;
    }
    const uint64_t valid = whole ? ~uint64_t{0} : (uint64_t{1} << (n - start)) - 1;
    larger += hwy::PopCount(over & valid);
    for (uint64_t left = inside & ~over & valid; left != 0; left &= left - 1, ++collected) {
      const size_t i = hwy::Num0BitsBelowLS1Bit_Nonzero64(left);
      keys[collected] = batch[i];
      indices[collected] = first_index + static_cast<uint32_t>(start + i);
    }
  }
  *above += larger;
  return collected;
}

size_t CollectKeysTarget(DType type, const void* bytes, const float* base, size_t n, uint32_t low, uint32_t high,
                         uint32_t first_index, uint32_t* keys, uint32_t* indices, uint64_t* above) {
  switch (type) {
    case DType::kF16: return CollectAs<FromF16>(bytes, base, n, low, high, first_index, keys, indices, above);
    case DType::kBF16: return CollectAs<FromBF16>(bytes, base, n, low, high, first_index, keys, indices, above);
    case DType::kF32: return CollectAs<FromF32>(bytes, base, n, low, high, first_index, keys, indices, above);
    default: break;
  }
  constexpr size_t kBatch = 256;
  HWY_ALIGN float lanes[kBatch + kLanePadding];
  size_t collected = 0;
  for (size_t start = 0; start < n; start += kBatch) {
    const size_t m = HWY_MIN(kBatch, n - start);
    DecodeF64(static_cast<const char*>(bytes) + start * sizeof(double), m, lanes);
    collected += CollectAs<FromF32>(lanes, base + start, m, low, high, first_index + static_cast<uint32_t>(start),
                                    keys + collected, indices + collected, above);
  }
  return collected;
}

void StoreKeysTarget(const float* d, size_t n, uint32_t* keys) {
  HWY_ALIGN uint32_t vector[HWY_MAX_BYTES / sizeof(uint32_t)];
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    hn::StoreU(KeyOf(hn::LoadU(df, d + i)), du, vector);
    std::memcpy(keys + i, vector, HWY_MIN(hn::Lanes(df), n - i) * sizeof(uint32_t));
  }
}

void AddMagnitudesTarget(const float* d, size_t n, int32_t high, double* sums) {
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> dh;
  const hn::RebindToSigned<decltype(dh)> dhi;
  const size_t step = hn::Lanes(dd);
  const auto limit = hn::Set(dhi, high);
  for (size_t i = 0; i < n; i += kSumLanes) {
    for (size_t j = 0; j < kSumLanes; j += step) {
      const auto magnitude = hn::Abs(hn::LoadU(dh, d + i + j));
      const auto above = hn::Gt(hn::ShiftRight<16>(hn::BitCast(dhi, magnitude)), limit);
      auto kept = hn::IfThenElseZero(hn::RebindMask(dh, above), magnitude);
      if (i + j + step > n) kept = hn::IfThenElseZero(hn::FirstN(dh, i + j < n ? n - i - j : 0), kept);
      hn::StoreU(hn::Add(hn::LoadU(dd, sums + j), hn::PromoteTo(dd, kept)), dd, sums + j);
    }
  }
}

// --- merging ----------------------------------------------------------------------------------------------

// What model m's entry brings to an element: the trimmed, rescaled task vector and its weighted form.
struct Entry {
  VF d, weighted;
};

HWY_INLINE Entry EntryOf(const TaskVectorBlock& block, size_t m, VF x, VF base) {
  VF d = hn::Sub(x, base);
  const auto kept = hn::Gt(hn::BitCast(di, KeyOf(d)), hn::Set(di, static_cast<int32_t>(block.min_key[m]) - 1));
  d = hn::IfThenElseZero(hn::RebindMask(df, kept), d);
  if (block.factor != nullptr) d = hn::Mul(d, hn::Set(df, block.factor[m]));
  return {d, hn::Mul(d, hn::Set(df, block.weight[m]))};
}

HWY_INLINE VF SignOf(VF x) {  // -1, 0 (also for NaN) or 1
  const VF one = hn::Set(df, 1.0f);
  return hn::Sub(hn::IfThenElseZero(hn::Gt(x, hn::Zero(df)), one), hn::IfThenElseZero(hn::Lt(x, hn::Zero(df)), one));
}

HWY_INLINE VF BallotOf(const TaskVectorBlock& block, VF vote) { return block.elect_by_count ? SignOf(vote) : vote; }

// A sign bit where the elected sign is minus: Xor with it makes agreeing votes positive. A NaN total elects minus.
HWY_INLINE VF FlipOf(VF total, bool zero_elects_minus) {
  const VF zero = hn::Zero(df);
  const MF plus = zero_elects_minus ? hn::Gt(total, zero) : hn::Ge(total, zero);
  return hn::IfThenElse(plus, zero, hn::BitCast(df, hn::Set(du, 0x80000000)));
}

HWY_INLINE VF OneForZero(VF x) { return hn::IfThenElse(hn::Eq(x, hn::Zero(df)), hn::Set(df, 1.0f), x); }

// The value before lambda and before the base: a plain sum.
HWY_INLINE VF AddUp(const TaskVectorBlock& block, size_t i, VF base, MF* bad) {
  VF mixed = hn::Zero(df);
  for (size_t m = 0; m < block.num_models; ++m) {
    const VF x = hn::LoadU(df, static_cast<const float*>(block.models[m]) + i);
    *bad = hn::Or(*bad, hn::IsNaN(x));
    mixed = hn::Add(mixed, EntryOf(block, m, x, base).weighted);
  }
  return block.divide ? hn::Div(mixed, hn::Set(df, block.divisor)) : mixed;
}

// The same by election and disjoint merge. `room` keeps the weighted entries (and the votes behind them).
HWY_INLINE VF ElectAndAddUp(const TaskVectorBlock& block, size_t i, VF base, float* room, MF* bad, MF* conflict) {
  const size_t step = hn::Lanes(df);
  float* const weighted = room;
  float* const votes = block.elect_weighted ? room : room + block.num_models * step;
  VF total = hn::Zero(df);
  for (size_t m = 0; m < block.num_models; ++m) {
    const VF x = hn::LoadU(df, static_cast<const float*>(block.models[m]) + i);
    *bad = hn::Or(*bad, hn::IsNaN(x));
    const Entry entry = EntryOf(block, m, x, base);
    hn::StoreU(entry.weighted, df, weighted + m * step);
    const VF vote = block.elect_weighted ? entry.weighted : entry.d;
    if (!block.elect_weighted) hn::StoreU(vote, df, votes + m * step);
    total = hn::Add(total, BallotOf(block, vote));
  }
  const VF zero = hn::Zero(df);
  const VF flip = FlipOf(total, block.zero_elects_minus);
  VF mixed = zero, divisor = zero;
  for (size_t m = 0; m < block.num_models; ++m) {
    const VF toward = hn::Xor(hn::LoadU(df, votes + m * step), flip);  // positive: votes with the elected sign
    const MF agrees = hn::Gt(toward, zero);
    *conflict = hn::Or(*conflict, hn::Lt(toward, zero));
    mixed = hn::Add(mixed, hn::IfThenElseZero(agrees, hn::LoadU(df, weighted + m * step)));
    divisor = hn::Add(divisor, hn::IfThenElseZero(agrees, hn::Set(df, block.weight[m])));
  }
  return block.divide ? hn::Div(mixed, OneForZero(divisor)) : mixed;
}

// Adds lambda times the merged task vector to the base. NaN in any source is NaN in the result.
HWY_INLINE VF Apply(VF base, VF mixed, VF lambda) {
  const VF scaled = hn::Mul(mixed, lambda);  // exact when lambda is 1
  return hn::IfThenElse(hn::Eq(scaled, hn::Zero(df)), base, hn::Add(base, scaled));
}

// Any block, lane by lane.
void MergeAny(const TaskVectorBlock& block, size_t n, float* room, float* out, VoteCounts* counts) {
  const VF lambda = hn::Set(df, block.lambda);
  const VF nan = hn::BitCast(df, hn::Set(du, 0x7fc00000));
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF base = hn::LoadU(df, static_cast<const float*>(block.base) + i);
    MF bad = hn::IsNaN(base), conflict = hn::FirstN(df, 0);
    const VF mixed = block.elect ? ElectAndAddUp(block, i, base, room, &bad, &conflict) : AddUp(block, i, base, &bad);
    hn::StoreU(hn::IfThenElse(bad, nan, Apply(base, mixed, lambda)), df, out + i);
    counts->conflicts += hn::CountTrue(df, hn::And(conflict, hn::FirstN(df, n - i)));
  }
}

// The usual case, votes weighted by value and few models, with the entries in registers: 0.45 ns instead of
// 1.42 ns per element for three models (EPYC, AVX-512).
// Sums and comparisons are those of ElectAndAddUp: adding up what agrees with its sign flipped towards plus rounds the
// same, the smallest flipped vote tells whether any disagrees, and the largest key whether any task vector is NaN;
// such a vector of lanes is left to MergeAny.
template <size_t kModels, class From>
void MergeFew(const TaskVectorBlock block, size_t n, float* room, float* out, VoteCounts* counts) {
  using Element = typename From::Element;
  constexpr size_t kVector = HWY_MAX_BYTES / sizeof(float);
  const size_t step = hn::Lanes(df);
  const VF zero = hn::Zero(df), lambda = hn::Set(df, block.lambda);
  const auto infinity = hn::Set(di, 0x7f800000), no_sign = hn::Set(di, 0x7fffffff);
  // Encoded sources have no padding: what is left at the end is read from here. Source 0 is the base.
  HWY_ALIGN Element rest[kModels + 1][kVector] = {};
  const Element* sources[kModels + 1] = {static_cast<const Element*>(block.base)};
  for (size_t m = 0; m < kModels; ++m) sources[m + 1] = static_cast<const Element*>(block.models[m]);
  size_t conflicts = 0;
  for (size_t i = 0; i < n; i += step) {
    const bool whole = i + step <= n;
    if (!whole)
      for (size_t s = 0; s <= kModels; ++s) std::memcpy(rest[s], sources[s] + i, (n - i) * sizeof(Element));
    const auto load = [&](size_t s) HWY_ATTR {
      hwy::Prefetch(sources[s] + i + kPrefetchAhead);
      return From::Load(whole ? sources[s] + i : rest[s]);
    };
    const VF base = load(0);
    VF weighted[kModels];
    VF total = zero;
    auto largest = hn::Zero(di);
    for (size_t m = 0; m < kModels; ++m) {
      const VF d = hn::Sub(load(m + 1), base);
      const auto key = hn::And(hn::BitCast(di, d), no_sign);
      largest = hn::Max(largest, key);
      const auto kept = hn::Gt(key, hn::Set(di, static_cast<int32_t>(block.min_key[m]) - 1));
      VF entry = hn::IfThenElseZero(hn::RebindMask(df, kept), d);
      if (block.factor != nullptr) entry = hn::Mul(entry, hn::Set(df, block.factor[m]));
      weighted[m] = hn::Mul(entry, hn::Set(df, block.weight[m]));
      total = hn::Add(total, weighted[m]);
    }
    if (HWY_UNLIKELY(!hn::AllFalse(di, hn::Gt(largest, infinity)))) {
      HWY_ALIGN float lanes[kModels + 1][kVector];
      const void* models[kModels];
      for (size_t s = 0; s <= kModels; ++s) hn::Store(load(s), df, lanes[s]);
      for (size_t m = 0; m < kModels; ++m) models[m] = lanes[m + 1];
      TaskVectorBlock part = block;
      part.base = lanes[0];
      part.models = models;
      MergeAny(part, HWY_MIN(step, n - i), room, out + i, counts);
      continue;
    }
    const VF flip = FlipOf(total, block.zero_elects_minus);
    VF mixed = zero, divisor = zero, smallest = zero;
    for (size_t m = 0; m < kModels; ++m) {
      const VF toward = hn::Xor(weighted[m], flip);  // positive: votes with the elected sign
      smallest = hn::Min(smallest, toward);
      mixed = hn::Add(mixed, hn::Max(toward, zero));
      divisor = hn::Add(divisor, hn::IfThenElseZero(hn::Gt(toward, zero), hn::Set(df, block.weight[m])));
    }
    mixed = hn::Xor(mixed, flip);
    if (block.divide) mixed = hn::Div(mixed, OneForZero(divisor));
    hn::StoreU(Apply(base, mixed, lambda), df, out + i);
    MF conflict = hn::Lt(smallest, zero);
    if (!whole) conflict = hn::And(conflict, hn::FirstN(df, n - i));
    conflicts += hn::CountTrue(df, conflict);
  }
  counts->conflicts += conflicts;
}

template <class From>
void MergeFewOf(const TaskVectorBlock& block, size_t n, float* room, float* out, VoteCounts* counts) {
  switch (block.num_models) {
    case 1: return MergeFew<1, From>(block, n, room, out, counts);
    case 2: return MergeFew<2, From>(block, n, room, out, counts);
    case 3: return MergeFew<3, From>(block, n, room, out, counts);
    default: return MergeFew<4, From>(block, n, room, out, counts);
  }
}

void MergeTaskVectorsTarget(const TaskVectorBlock& block, size_t n, float* room, float* out, VoteCounts* counts) {
  if (!IsUsualFew(block)) return MergeAny(block, n, room, out, counts);
  if (block.type == DType::kBF16) return MergeFewOf<FromBF16>(block, n, room, out, counts);
  return MergeFewOf<FromF32>(block, n, room, out, counts);
}

void CountElectedSignsTarget(const TaskVectorBlock& block, size_t n, VoteCounts* counts) {
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF base = hn::LoadU(df, static_cast<const float*>(block.base) + i);
    VF total = hn::Zero(df);
    for (size_t m = 0; m < block.num_models; ++m) {
      const Entry entry = EntryOf(block, m, hn::LoadU(df, static_cast<const float*>(block.models[m]) + i), base);
      total = hn::Add(total, BallotOf(block, block.elect_weighted ? entry.weighted : entry.d));
    }
    const MF valid = hn::FirstN(df, n - i);
    counts->sign_sum += static_cast<int64_t>(hn::CountTrue(df, hn::And(valid, hn::Gt(total, hn::Zero(df)))));
    counts->sign_sum -= static_cast<int64_t>(hn::CountTrue(df, hn::And(valid, hn::Lt(total, hn::Zero(df)))));
  }
}

void WeightedSumTarget(const float* const* models, size_t num_models, const float* weight, bool divide,
                       float divisor, size_t n, float* out) {
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    VF sum = hn::Zero(df);
    for (size_t m = 0; m < num_models; ++m)
      sum = hn::Add(sum, hn::Mul(hn::LoadU(df, models[m] + i), hn::Set(df, weight[m])));
    hn::StoreU(divide ? hn::Div(sum, hn::Set(df, divisor)) : sum, df, out + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(DecodeTarget);
HWY_EXPORT(EncodeTarget);
HWY_EXPORT(DecodeTaskVectorTarget);
HWY_EXPORT(CollectKeysTarget);
HWY_EXPORT(StoreKeysTarget);
HWY_EXPORT(CountHighTarget);
HWY_EXPORT(CountLowTarget);
HWY_EXPORT(CountKeyTarget);
HWY_EXPORT(AddMagnitudesTarget);
HWY_EXPORT(MergeTaskVectorsTarget);
HWY_EXPORT(CountElectedSignsTarget);
HWY_EXPORT(WeightedSumTarget);

void DecodeLanes(DType type, const void* bytes, size_t n, float* lanes) {
  HWY_DYNAMIC_DISPATCH(DecodeTarget)(type, bytes, n, lanes);
}
void EncodeLanes(DType type, const float* lanes, size_t n, void* bytes, NonFinite* counts) {
  HWY_DYNAMIC_DISPATCH(EncodeTarget)(type, lanes, n, bytes, counts);
}
void DecodeTaskVector(DType type, const void* bytes, const float* base, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(DecodeTaskVectorTarget)(type, bytes, base, n, d);
}
size_t CollectKeys(DType type, const void* bytes, const float* base, size_t n, uint32_t low, uint32_t high,
                   uint32_t first_index, uint32_t* keys, uint32_t* indices, uint64_t* above) {
  return HWY_DYNAMIC_DISPATCH(CollectKeysTarget)(type, bytes, base, n, low, high, first_index, keys, indices, above);
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
bool MergesEncoded(const TaskVectorBlock& block, DType type) { return type == DType::kBF16 && IsUsualFew(block); }

void MergeTaskVectors(const TaskVectorBlock& block, size_t n, float* room, float* out, VoteCounts* counts) {
  HWY_DYNAMIC_DISPATCH(MergeTaskVectorsTarget)(block, n, room, out, counts);
}
void CountElectedSigns(const TaskVectorBlock& block, size_t n, VoteCounts* counts) {
  HWY_DYNAMIC_DISPATCH(CountElectedSignsTarget)(block, n, counts);
}
void WeightedSum(const float* const* models, size_t num_models, const float* weight, bool divide, float divisor,
                 size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(WeightedSumTarget)(models, num_models, weight, divide, divisor, n, out);
}

}  // namespace braid
#endif  // HWY_ONCE
