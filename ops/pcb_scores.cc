#include "ops/pcb_scores.h"

#include <cmath>

#include "ops/elementary.h"
#include "ops/wide_vectors.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/pcb_scores.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

// 2^y for 0 <= y <= 120.
HWY_INLINE VF PowerOfTwo(VF y) {
  const VF round = hn::Set(df, 0x1.8p23f);   // adding it leaves a whole number in the low bits
  const VF shifted = hn::Add(y, round), f = hn::Sub(y, hn::Sub(shifted, round));
  VF sum = hn::Set(df, 0x1.430912p-13f);   // Taylor: (ln 2)^i / i!
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 0x1.5d87fep-10f));
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 0x1.3b2ab6p-7f));
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 0x1.c6b08ep-5f));
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 0x1.ebfbep-3f));
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 0x1.62e43p-1f));
  sum = hn::Add(hn::Mul(sum, f), hn::Set(df, 1.0f));
  const VU power = hn::Add(hn::ShiftLeft<23>(hn::BitCast(du, shifted)), hn::Set(du, 127u << 23));
  return hn::Mul(sum, hn::BitCast(df, power));
}

// Masks first, 64 lanes to a word, as CollectKeys does.
template <bool kCount>
HWY_INLINE OpenLanes FindOpen(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate,
                              const ScoreLimits& limits, uint32_t* places, SettledScores* settled) {
  constexpr size_t kWord = 64;
  const VF low = hn::Set(df, estimate.low), high = hn::Set(df, estimate.high), factor = hn::Set(df, estimate.factor);
  const VF limit = hn::Set(df, limits.open), above = hn::Set(df, limits.above), below = hn::Set(df, limits.below);
  const VF bound = hn::Set(df, kSmallProduct);
  OpenLanes open;
  for (size_t start = 0; start < n; start += kWord) {
    uint64_t small = 0, reaching = 0, between = 0, zero = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(df)) {
      const VF entry = hn::LoadU(df, d + start + i), product = hn::Mul(entry, hn::LoadU(df, sum + start + i));
      const VF place = hn::Mul(hn::Sub(hn::Min(hn::Max(hn::Abs(entry), low), high), low), factor);
      const VF score = hn::Mul(PowerOfTwo(hn::Mul(place, place)), product);
      small |= MaskBits(df, hn::Le(hn::Abs(product), bound)) << i;
      reaching |= MaskBits(df, hn::Ge(score, limit)) << i;
      if (!kCount) continue;
      between |= MaskBits(df, hn::And(hn::Gt(score, above), hn::Lt(score, below))) << i;
      zero |= MaskBits(df, hn::Eq(product, hn::Zero(df))) << i;
    }
    const uint64_t valid = n - start >= kWord ? ~uint64_t{0} : (uint64_t{1} << (n - start)) - 1;
    open.small &= (~small & valid) == 0;
    if (kCount) {
      between &= small & ~zero & valid;
      settled->between += hwy::PopCount(between);
      settled->zeros += hwy::PopCount(zero & valid);
    }
    for (uint64_t left = (reaching | ~small) & valid & ~zero & ~between; left != 0; left &= left - 1)
      places[open.count++] = static_cast<uint32_t>(start + hwy::Num0BitsBelowLS1Bit_Nonzero64(left));
  }
  return open;
}

OpenLanes FindOpenScoresTarget(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate, float limit,
                               uint32_t* places) {
  return FindOpen<false>(d, sum, n, estimate, {.open = limit}, places, nullptr);
}

OpenLanes CountSettledTarget(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate,
                             const ScoreLimits& limits, uint32_t* places, SettledScores* settled) {
  return FindOpen<true>(d, sum, n, estimate, limits, places, settled);
}

void AddLanesTarget(const float* d, size_t n, float* sum) {
  for (size_t i = 0; i < n; i += hn::Lanes(df))
    hn::StoreU(hn::Add(hn::LoadU(df, sum + i), hn::LoadU(df, d + i)), df, sum + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(FindOpenScoresTarget);
HWY_EXPORT(CountSettledTarget);
HWY_EXPORT(AddLanesTarget);

OpenLanes FindOpenScores(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate, float limit,
                         uint32_t* places) {
  return HWY_DYNAMIC_DISPATCH(FindOpenScoresTarget)(d, sum, n, estimate, limit, places);
}
OpenLanes CountSettledScores(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate,
                             const ScoreLimits& limits, uint32_t* places, SettledScores* settled) {
  return HWY_DYNAMIC_DISPATCH(CountSettledTarget)(d, sum, n, estimate, limits, places, settled);
}
void AddLanes(const float* d, size_t n, float* sum) { HWY_DYNAMIC_DISPATCH(AddLanesTarget)(d, n, sum); }

namespace {

// 1 where all magnitudes are clamped to one.
float RangeOf(const ScoreCurve& curve) {
  const float range = curve.high - curve.low;
  return range > 0 ? range : 1.0f;
}

inline float Growth(float d, const ScoreCurve& curve, float range) {
  const float place = (ClampedMagnitude(d, curve) - curve.low) / range;
  const float square = place * place, exponent = curve.models * square;
  return static_cast<float>(Exp(static_cast<double>(exponent)));
}

}  // namespace

BRAID_WIDE_VECTORS void ExactSmallScores(const float* d, const float* sum, size_t n, const ScoreCurve& curve,
                                         float* scores) {
  const ScoreCurve c = curve;
  const float range = RangeOf(c);
  for (size_t i = 0; i < n; ++i) scores[i] = Growth(d[i], c, range) * (d[i] * sum[i]);
}

namespace {

BRAID_WIDE_VECTORS bool AllSmall(const float* d, const float* sum, size_t n) {
  uint32_t large = 0;
  for (size_t i = 0; i < n; ++i) large |= std::fabs(d[i] * sum[i]) <= kSmallProduct ? 0u : 1u;
  return large == 0;
}

BRAID_WIDE_VECTORS void AnyScores(const float* d, const float* sum, size_t n, const ScoreCurve& curve, float* scores) {
  const ScoreCurve c = curve;
  const float range = RangeOf(c);
  for (size_t i = 0; i < n; ++i) {
    const float product = d[i] * sum[i];
    const float score = Growth(d[i], c, range) * static_cast<float>(Tanh(static_cast<double>(product)));
    scores[i] = score == score ? score : 0.0f;
  }
}

}  // namespace

void ExactScores(const float* d, const float* sum, size_t n, const ScoreCurve& curve, float* scores) {
  const bool small = std::isfinite(curve.low) && std::isfinite(curve.high) && AllSmall(d, sum, n);
  if (small) ExactSmallScores(d, sum, n, curve, scores);
  else AnyScores(d, sum, n, curve, scores);
}

ScoreEstimate::ScoreEstimate(const ScoreCurve& curve) : low(curve.low), high(curve.high) {
  constexpr double kUnit = 0x1p-24, kLog2E = 0x1.71547652b82fep0;
  const auto models = static_cast<double>(curve.models);
  const auto range = static_cast<double>(RangeOf(curve));
  usable_ = std::isfinite(curve.low) && std::isfinite(curve.high) && range > 0x1p-100 && curve.models <= kPcbMostModels;
  if (!usable_) return;
  factor = static_cast<float>(std::sqrt(models * kLog2E) / range);
  error_ = (16 * models + 32) * kUnit;
}

// Twice as far as the error: what is left makes up for the rounding here.
float ScoreEstimate::Moved(float score, int direction) const {
  const double exact = static_cast<double>(score), distance = 2 * error_ * std::fabs(exact) + 0x1p-140;
  return static_cast<float>(exact + direction * distance);
}

}  // namespace braid
#endif  // HWY_ONCE
