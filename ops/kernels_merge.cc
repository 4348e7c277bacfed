// Merging blocks of task vectors, and weighted sums.
#include "ops/kernels.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/kernels_merge.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

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

// Adds the merged task vector, times lambda, to the base. NaN in any source is NaN in the result.
HWY_INLINE VF Apply(VF base, VF scaled) {
  return hn::IfThenElse(hn::Eq(scaled, hn::Zero(df)), base, hn::Add(base, scaled));
}

// Any block, lane by lane.
void MergeAny(const TaskVectorBlock& block, size_t n, float* room, float* out, const uint64_t* uncounted,
              VoteCounts* counts) {
  const VF lambda = hn::Set(df, block.lambda);
  const VF nan = hn::BitCast(df, hn::Set(du, 0x7fc00000));
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF base = hn::LoadU(df, static_cast<const float*>(block.base) + i);
    MF bad = hn::IsNaN(base), conflict = hn::FirstN(df, 0);
    const VF mixed = block.elect ? ElectAndAddUp(block, i, base, room, &bad, &conflict) : AddUp(block, i, base, &bad);
    hn::StoreU(hn::IfThenElse(bad, nan, Apply(base, hn::Mul(mixed, lambda))), df, out + i);
    conflict = hn::And(conflict, hn::FirstN(df, n - i));
    uint64_t conflicts = MaskBits(df, conflict);
    if (uncounted != nullptr) conflicts &= ~(uncounted[i / 64] >> i % 64);
    counts->conflicts += hwy::PopCount(conflicts);
  }
}

// a + b where the mask is set; elsewhere a, which is not -0.
HWY_INLINE VF AddWhere(MF where, VF a, VF b) {
#if HWY_TARGET <= HWY_AVX3
  return hn::IfThenElse(where, hn::Add(a, b), a);   // one instruction
#else
  return hn::Add(a, hn::IfThenElseZero(where, b));
#endif
}

using MI = hn::Mask<DI>;

// Of the lanes in a mask: those whose key is not among the `width` keys up to `sure`, the lowest of which is the first
// that `stays`; and those where a is less than b. With masked comparisons: operations between masks took a tenth of
// all.
HWY_INLINE MI WhereDecided(MI where, hn::Vec<DI> key, MI stays, hn::Vec<DI> sure, hn::Vec<DI> width) {
#if HWY_TARGET <= HWY_AVX3
  (void)stays;
  return MI{_mm512_mask_cmpge_epu32_mask(where.raw, hn::Sub(sure, key).raw, width.raw)};
#else
  (void)width;
  return hn::AndNot(hn::AndNot(hn::Gt(key, sure), stays), where);
#endif
}

HWY_INLINE MF WhereLess(MI where, VF a, VF b) {
#if HWY_TARGET <= HWY_AVX3
  return MF{_mm512_mask_cmp_ps_mask(where.raw, a.raw, b.raw, _CMP_LT_OQ)};
#else
  return hn::And(hn::RebindMask(df, where), hn::Lt(a, b));
#endif
}

// Rounding of what is no NaN. The largest that was stored tells whether anything rounded to infinity.
struct FiniteToF32 {
  using Element = float;
  using Largest = hn::Vec<DI>;
  static Largest None() { return hn::Zero(di); }
  static bool Infinite(Largest largest) { return !hn::AllFalse(di, hn::Gt(largest, hn::Set(di, 0x7f7fffff))); }
  static void Store(VF x, float* p, Largest* largest) {
    *largest = hn::Max(*largest, hn::And(hn::BitCast(di, x), hn::Set(di, 0x7fffffff)));
    hn::StoreU(x, df, p);
  }
};

struct FiniteToBF16 {
  using Element = uint16_t;
  using Largest = hn::Vec<DI>;
  static Largest None() { return hn::Zero(di); }
  static bool Infinite(Largest largest) { return !hn::AllFalse(di, hn::Gt(largest, hn::Set(di, 0x7f7fffff))); }
  static VU Rounded(VF x) {   // in the upper halves
    const VU bits = hn::BitCast(du, x);
    const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    return hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
  }
  static void Store(VF x, uint16_t* p, Largest* largest) {
    const VU rounded = Rounded(x);
    *largest = hn::Max(*largest, hn::And(hn::BitCast(di, rounded), hn::Set(di, 0x7fffffff)));
    hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(di, hn::ShiftRight<16>(rounded))), DU16(), p);
  }
};

// How two vectors of lanes lie in memory, one after the other.
template <class From, class To>
struct InOrder {
  using In = typename From::Element;
  using Out = typename To::Element;
  using Largest = typename To::Largest;
  static Largest None() { return To::None(); }
  static bool Infinite(Largest largest) { return To::Infinite(largest); }
  static void Load(const In* p, VF* a, VF* b) { *a = From::Load(p), *b = From::Load(p + hn::Lanes(df)); }
  static void Store(VF a, VF b, Out* p, Largest* largest) {
    To::Store(a, p, largest), To::Store(b, p + hn::Lanes(df), largest);
  }
  static uint64_t Bits(MF a, MF b) { return MaskBits(df, a) | MaskBits(df, b) << hn::Lanes(df); }
};

template <class From, class To>
struct LayoutOf { using Type = InOrder<From, To>; };

#if HWY_TARGET != HWY_SCALAR
// Elements at even places in one vector, at odd places in the other: a shift or a mask takes bf16 apart, a blend puts
// it together, and nothing moves from lane to lane.
struct EvenAndOdd {
  using D16 = hn::Repartition<uint16_t, DF>;
  using DI16 = hn::RebindToSigned<D16>;
  using Largest = hn::Vec<DI16>;
  static Largest None() { return hn::Zero(DI16()); }
  static bool Infinite(Largest largest) {
    return !hn::AllFalse(DI16(), hn::Gt(largest, hn::Set(DI16(), int16_t{0x7f7f})));
  }
  static void Load(const uint16_t* p, VF* even, VF* odd) {
    const VU both = hn::BitCast(du, hn::LoadU(D16(), p));
    *even = hn::BitCast(df, hn::ShiftLeft<16>(both));
    *odd = hn::BitCast(df, hn::And(both, hn::Set(du, 0xffff0000)));
  }
  static void Store(VF even, VF odd, uint16_t* p, Largest* largest) {
    const VU low = hn::ShiftRight<16>(FiniteToBF16::Rounded(even));
    const auto both = hn::OddEven(hn::BitCast(D16(), FiniteToBF16::Rounded(odd)), hn::BitCast(D16(), low));
    *largest = hn::Max(*largest, hn::And(hn::BitCast(DI16(), both), hn::Set(DI16(), int16_t{0x7fff})));
    hn::StoreU(both, D16(), p);
  }
  static uint64_t Bits(MF even, MF odd) {
#if HWY_TARGET <= HWY_AVX3
    return _pdep_u32(even.raw, 0x55555555) | _pdep_u32(odd.raw, 0xaaaaaaaa);
#else
    const auto lanes = [](MF mask) HWY_ATTR { return hn::BitCast(D16(), hn::VecFromMask(df, mask)); };
    return MaskBits(D16(), hn::MaskFromVec(hn::OddEven(lanes(odd), lanes(even))));
#endif
  }
};

template <>
struct LayoutOf<FromBF16, FiniteToBF16> { using Type = EvenAndOdd; };
#endif

// b, with its sign turned where that of a is minus. One instruction of AVX-512.
HWY_INLINE VF FlipBy(VF a, VF b) {
  const VU from = hn::BitCast(du, a), to = hn::BitCast(du, b), minus = hn::Set(du, 0x80000000);
#if HWY_TARGET <= HWY_AVX3
  constexpr int kFirstXorBothOthers = 0x78;   // first ^ (second & third)
  return hn::BitCast(df, VU{_mm512_ternarylogic_epi32(to.raw, from.raw, minus.raw, kFirstXorBothOthers)});
#else
  return hn::BitCast(df, hn::Xor(to, hn::And(from, minus)));
#endif
}

// What is at least this is not lost beside kNoDivisor when both are added.
constexpr float kLeastUsualWeight = 0x1p-100f;
constexpr float kNoDivisor = 0x1p-126f;

// What recipes have unless they say otherwise: averages by positive weights, lambda 1, nothing rescaled, a drawn vote
// elects plus.
bool IsUsual(const TaskVectorBlock& block) {
  return block.lambda == 1 && block.factor == nullptr && block.divide && !block.zero_elects_minus &&
         *std::min_element(block.weight, block.weight + block.num_models) >= kLeastUsualWeight;
}

// The votes of few models, weighted by value, on one vector of elements after the other, and what was counted
// meanwhile. Sums and comparisons are those of ElectAndAddUp: adding up what agrees with its sign flipped towards plus
// rounds the same; which zero a sum is makes no difference, since the result is the base then. A NaN or an infinity
// among the entries that stay shows in their total, and of the others it makes no difference (a NaN always stays).
template <size_t kModels, bool kOpen, bool kUsual>
class FewVotes {
 public:
  FewVotes(const TaskVectorBlock& block, const OpenEntries* open)
      : rescale_(!kUsual && block.factor != nullptr), divide_(block.divide),
        zero_elects_minus_(block.zero_elects_minus), lambda_(hn::Set(df, block.lambda)) {
    for (size_t m = 0; m < kModels; ++m) {
      weight_[m] = hn::Set(df, block.weight[m]);
      factor_[m] = hn::Set(df, rescale_ ? block.factor[m] : 1.0f);
      least_[m] = hn::Set(di, static_cast<int32_t>(block.min_key[m]) - 1);
      sure_[m] = hn::Set(di, static_cast<int32_t>(kOpen ? open->sure_key[m] : block.min_key[m]) - 1);
      width_[m] = hn::Sub(sure_[m], least_[m]);
    }
  }

  // One vector: x[0] of the base, x[m + 1] of a model. `decided`: gets the elements without an open entry, which are
  // those whose conflicts count.
  HWY_INLINE VF Merge(const VF* x, MF* decided) {
    const Entries entries = Trim(x);
    *decided = hn::RebindMask(df, entries.decided);
    if constexpr (kUsual) return MergeUsual(entries, x[0]);
    return MergeAny(entries, x[0]);
  }

  uint64_t conflicts() const { return conflicts_; }
  uint64_t staying(size_t m) const { return staying_[m]; }
  bool finite() const { return hn::AllFalse(df, hn::IsNaN(strange_)); }   // all totals were

 private:
  struct Entries {
    VF weighted[kModels];   // 0 where none stays
    VF total;
    MI decided;
  };

  HWY_INLINE Entries Trim(const VF* x) {
    const auto no_sign = hn::Set(di, 0x7fffffff);
    Entries entries;
    entries.decided = hn::Eq(no_sign, no_sign);
    for (size_t m = 0; m < kModels; ++m) {
      const VF d = hn::Sub(x[m + 1], x[0]);
      const auto key = hn::And(hn::BitCast(di, d), no_sign);
      const MI stays = hn::Gt(key, least_[m]);
      if (kOpen) {
        entries.decided = WhereDecided(entries.decided, key, stays, sure_[m], width_[m]);
        staying_[m] += hn::CountTrue(di, stays);
      }
      const VF rescaled = rescale_ ? hn::Mul(d, factor_[m]) : d;
      const VF weighted = hn::IfThenElseZero(hn::RebindMask(df, stays), hn::Mul(rescaled, weight_[m]));
      entries.weighted[m] = weighted;
      entries.total = m == 0 ? weighted : hn::Add(entries.total, weighted);
    }
    strange_ = hn::MulAdd(entries.total, hn::Zero(df), strange_);
    return entries;
  }

  // `kUsual`. Where nothing agrees, 0 is divided by next to nothing, and the divisor asks for no comparison.
  HWY_INLINE VF MergeUsual(const Entries& entries, VF base) {
    const VF zero = hn::Zero(df);
    VF mixed = zero, divisor = zero, smallest = zero;
    for (size_t m = 0; m < kModels; ++m) {
      const VF toward = FlipBy(entries.total, entries.weighted[m]);   // positive: votes with the elected sign
      const MF agrees = hn::Gt(toward, zero);
      smallest = m == 0 ? toward : hn::Min(smallest, toward);         // minus: one at least disagrees
      mixed = m == 0 ? hn::IfThenElseZero(agrees, toward) : AddWhere(agrees, mixed, toward);
      divisor = m == 0 ? hn::IfThenElse(agrees, weight_[0], hn::Set(df, kNoDivisor))
                       : AddWhere(agrees, divisor, weight_[m]);
    }
    conflicts_ += hn::CountTrue(df, WhereLess(entries.decided, smallest, zero));
    const VF mean = hn::Div(FlipBy(entries.total, mixed), divisor);
    return hn::IfThenElse(hn::Ne(mean, zero), hn::Add(base, mean), base);   // as Apply, of what is no NaN
  }

  HWY_INLINE VF MergeAny(const Entries& entries, VF base) {
    const VF zero = hn::Zero(df), flip = FlipOf(entries.total, zero_elects_minus_);
    VF mixed = zero, divisor = zero, smallest = zero;
    for (size_t m = 0; m < kModels; ++m) {
      const VF toward = hn::Xor(entries.weighted[m], flip);
      const MF agrees = hn::Gt(toward, zero);
      smallest = m == 0 ? toward : hn::Min(smallest, toward);   // minus: one at least disagrees
      mixed = hn::Add(mixed, hn::Max(toward, zero));
      divisor = AddWhere(agrees, divisor, weight_[m]);
    }
    conflicts_ += hn::CountTrue(df, WhereLess(entries.decided, smallest, zero));
    mixed = hn::Xor(mixed, flip);
    if (divide_) mixed = hn::Div(mixed, OneForZero(divisor));
    return Apply(base, hn::Mul(mixed, lambda_));
  }

  const bool rescale_, divide_, zero_elects_minus_;
  const VF lambda_;
  VF weight_[kModels], factor_[kModels];
  hn::Vec<DI> least_[kModels], sure_[kModels];   // less one: there is no "at least" for integers
  hn::Vec<DI> width_[kModels];                   // between them
  VF strange_ = hn::Zero(df);                    // NaN as soon as any total is not finite
  uint64_t conflicts_ = 0, staying_[kModels] = {};
};

// Few models, with everything in registers from the file's bytes to the output's, 64 elements at a time, so that
// nothing inside asks where the end is. False where a total is not finite, or anything rounds to infinity, which shows
// in the largest magnitude stored.
template <size_t kModels, class From, class To, bool kOpen, bool kUsual>
bool MergeFew(const TaskVectorBlock& block, size_t n, void* out, VoteCounts* counts, const OpenEntries* open) {
  using In = typename From::Element;
  using Out = typename To::Element;
  using Layout = typename LayoutOf<From, To>::Type;
  constexpr size_t kWord = 64, kLine = 64;
  const In* sources[kModels + 1] = {static_cast<const In*>(block.base)};   // the base, then the models
  for (size_t m = 0; m < kModels; ++m) sources[m + 1] = static_cast<const In*>(block.models[m]);
  FewVotes<kModels, kOpen, kUsual> votes(block, open);
  auto largest = Layout::None();
  for (size_t start = 0; start < n; start += kWord) {
    const bool whole = n - start >= kWord;
    // What is left at the end is read and written here, filled up with zeros.
    HWY_ALIGN In rest[kModels + 1][kWord];
    HWY_ALIGN Out rest_out[kWord];
    const In* from[kModels + 1];
    Out* const to = whole ? static_cast<Out*>(out) + start : rest_out;
    for (size_t s = 0; s <= kModels; ++s) {
      from[s] = sources[s] + start;
      for (size_t i = 0; i < kWord; i += kLine / sizeof(In)) hwy::Prefetch(from[s] + i + kPrefetchAhead);
      if (HWY_LIKELY(whole)) continue;
      std::memset(rest[s], 0, sizeof rest[s]);
      std::memcpy(rest[s], from[s], (n - start) * sizeof(In));
      from[s] = rest[s];
    }
    uint64_t decided = 0;
    for (size_t i = 0; i < kWord; i += 2 * hn::Lanes(df)) {
      VF a[kModels + 1], b[kModels + 1];
      for (size_t s = 0; s <= kModels; ++s) Layout::Load(from[s] + i, &a[s], &b[s]);
      MF decided_a, decided_b;
      const VF merged_a = votes.Merge(a, &decided_a), merged_b = votes.Merge(b, &decided_b);
      Layout::Store(merged_a, merged_b, to + i, &largest);
      if (kOpen) decided |= Layout::Bits(decided_a, decided_b) << i;
    }
    uint64_t word = ~decided;
    if (HWY_UNLIKELY(!whole)) {
      std::memcpy(static_cast<Out*>(out) + start, rest_out, (n - start) * sizeof(Out));
      word &= (uint64_t{1} << (n - start)) - 1;
    }
    if (kOpen) open->words[start / kWord] = word;
  }
  if (!votes.finite() || Layout::Infinite(largest)) return false;
  counts->conflicts += votes.conflicts();
  const size_t behind_the_end = (kWord - n % kWord) % kWord;   // zeros, some of which were counted
  for (size_t m = 0; kOpen && m < kModels; ++m)
    open->staying[m] += votes.staying(m) - (block.min_key[m] == 0 ? behind_the_end : 0);
  return true;
}

template <class From, class To, bool kOpen, bool kUsual>
bool MergeFewOf(const TaskVectorBlock& block, size_t n, void* out, VoteCounts* counts, const OpenEntries* open) {
  switch (block.num_models) {
    case 1: return MergeFew<1, From, To, kOpen, kUsual>(block, n, out, counts, open);
    case 2: return MergeFew<2, From, To, kOpen, kUsual>(block, n, out, counts, open);
    case 3: return MergeFew<3, From, To, kOpen, kUsual>(block, n, out, counts, open);
    default: return MergeFew<4, From, To, kOpen, kUsual>(block, n, out, counts, open);
  }
}

bool MergeEncodedTarget(const TaskVectorBlock& block, DType from, DType to, size_t n, void* out, VoteCounts* counts,
                        const OpenEntries* open) {
  if (!block.elect || !block.elect_weighted || block.elect_by_count) return false;
  if (block.num_models < 1 || block.num_models > 4) return false;
  const bool usual = IsUsual(block);
  const auto with = [&](auto from_type, auto to_type) {
    using From = decltype(from_type);
    using To = decltype(to_type);
    if (open == nullptr && usual) return MergeFewOf<From, To, false, true>(block, n, out, counts, open);
    if (open == nullptr) return MergeFewOf<From, To, false, false>(block, n, out, counts, open);
    if (usual) return MergeFewOf<From, To, true, true>(block, n, out, counts, open);
    return MergeFewOf<From, To, true, false>(block, n, out, counts, open);
  };
  if (from == DType::kBF16 && to == DType::kBF16) return with(FromBF16(), FiniteToBF16());
  if (from == DType::kF32 && to == DType::kBF16) return with(FromF32(), FiniteToBF16());
  if (from == DType::kF32 && to == DType::kF32) return with(FromF32(), FiniteToF32());
  return false;
}

void MergeTaskVectorsTarget(const TaskVectorBlock& block, size_t n, float* room, float* out, const uint64_t* uncounted,
                            VoteCounts* counts) {
  if (uncounted == nullptr && MergeEncodedTarget(block, DType::kF32, DType::kF32, n, out, counts, nullptr)) return;
  MergeAny(block, n, room, out, uncounted, counts);
}

void FindOpenTarget(const TaskVectorBlock& block, size_t n, const OpenEntries& open) {
  constexpr size_t kWord = 64;
  const auto* base = static_cast<const float*>(block.base);
  for (size_t start = 0; start < n; start += kWord) {
    const uint64_t valid = n - start >= kWord ? ~uint64_t{0} : (uint64_t{1} << (n - start)) - 1;
    uint64_t word = 0;
    for (size_t m = 0; m < block.num_models; ++m) {
      const auto* model = static_cast<const float*>(block.models[m]);
      const auto least = hn::Set(di, static_cast<int32_t>(block.min_key[m]) - 1);
      const auto sure = hn::Set(di, static_cast<int32_t>(open.sure_key[m]) - 1);
      uint64_t stays = 0, surely = 0;
      for (size_t i = 0; i < kWord; i += hn::Lanes(df)) {
        const VF d = hn::Sub(hn::LoadU(df, model + start + i), hn::LoadU(df, base + start + i));
        const auto key = hn::BitCast(di, KeyOf(d));
        stays |= MaskBits(di, hn::Gt(key, least)) << i;
        surely |= MaskBits(di, hn::Gt(key, sure)) << i;
      }
      word |= stays & ~surely & valid;
      open.staying[m] += hwy::PopCount(stays & valid);
    }
    open.words[start / kWord] = word;
  }
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

HWY_EXPORT(MergeTaskVectorsTarget);
HWY_EXPORT(MergeEncodedTarget);
HWY_EXPORT(FindOpenTarget);
HWY_EXPORT(CountElectedSignsTarget);
HWY_EXPORT(WeightedSumTarget);

void MergeTaskVectors(const TaskVectorBlock& block, size_t n, float* room, float* out, const uint64_t* uncounted,
                      VoteCounts* counts) {
  HWY_DYNAMIC_DISPATCH(MergeTaskVectorsTarget)(block, n, room, out, uncounted, counts);
}
bool MergeEncoded(const TaskVectorBlock& block, DType from, DType to, size_t n, void* out, VoteCounts* counts,
                  const OpenEntries* open) {
  return HWY_DYNAMIC_DISPATCH(MergeEncodedTarget)(block, from, to, n, out, counts, open);
}
void FindOpen(const TaskVectorBlock& block, size_t n, const OpenEntries& open) {
  HWY_DYNAMIC_DISPATCH(FindOpenTarget)(block, n, open);
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
