#include "ops/sce_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sce_kernels.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

constexpr float kLeastDivisor = 1e-6f;

// Highway's own conversion turns infinities into the largest float on its scalar target.
template <class DH, class V>
HWY_INLINE void StoreNarrow(DH dh, V wide, float* to) {
#if HWY_TARGET == HWY_SCALAR
  (void)dh;
  *to = static_cast<float>(hn::GetLane(wide));
#else
  hn::StoreU(hn::DemoteTo(dh, wide), dh, to);
#endif
}

void VariancesTarget(const float* const* d, size_t models, size_t n, float* variances) {
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> dh;
  const auto count = hn::Set(dd, static_cast<double>(HWY_MAX(models, size_t{1})));
  for (size_t i = 0; i < n; i += hn::Lanes(dd)) {
    auto mean = hn::Zero(dd), sum = hn::Zero(dd);
    for (size_t m = 0; m < models; ++m) mean = hn::Add(mean, hn::PromoteTo(dd, hn::LoadU(dh, d[m] + i)));
    mean = hn::Div(mean, count);
    for (size_t m = 0; m < models; ++m) {
      const auto deviation = hn::Sub(hn::PromoteTo(dd, hn::LoadU(dh, d[m] + i)), mean);
      sum = hn::Add(sum, hn::Mul(deviation, deviation));
    }
    StoreNarrow(dh, hn::Div(sum, count), variances + i);
  }
}

void KeepVariancesTarget(const float* variances, uint32_t least, size_t n, float* d) {
  // As signed integers: keys have no sign bit.
  const auto below = hn::Set(di, static_cast<int32_t>(HWY_MIN(least, kNanKey + 1)) - 1);
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF entry = hn::LoadU(df, d + i);
    const MF stays = hn::RebindMask(df, hn::Gt(hn::BitCast(di, KeyOf(hn::LoadU(df, variances + i))), below));
    hn::StoreU(hn::IfThenElse(hn::FirstN(df, n - i), hn::IfThenElseZero(stays, entry), entry), df, d + i);
  }
}

void AddSquaresTarget(const float* d, size_t n, double* sums) {
  const hn::CappedTag<double, 8> dd;
  const hn::Rebind<float, decltype(dd)> dh;
  const size_t step = hn::Lanes(dd);
  for (size_t i = 0; i < n; i += kSumLanes) {
    for (size_t j = 0; j < kSumLanes; j += step) {
      auto entry = hn::LoadU(dh, d + i + j);
      if (i + j + step > n) entry = hn::IfThenElseZero(hn::FirstN(dh, i + j < n ? n - i - j : 0), entry);
      const auto wide = hn::PromoteTo(dd, entry);
      hn::StoreU(hn::Add(hn::LoadU(dd, sums + j), hn::Mul(wide, wide)), dd, sums + j);
    }
  }
}

uint64_t MergeAgreeingTarget(const float* const* d, const float* weights, size_t models, size_t n, float* merged) {
  const VF zero = hn::Zero(df), least = hn::Set(df, kLeastDivisor);
  const VF minus = hn::BitCast(df, hn::Set(du, 0x80000000));
  uint64_t conflicts = 0;
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    VF total = zero, sum = zero, divisor = zero;
    for (size_t m = 0; m < models; ++m) total = hn::Add(total, hn::LoadU(df, d[m] + i));
    const VF flip = hn::IfThenElse(hn::Ge(total, zero), zero, minus);   // where minus is elected, or there is no total
    MF conflict = hn::FirstN(df, 0);
    for (size_t m = 0; m < models; ++m) {
      const VF entry = hn::LoadU(df, d[m] + i), weight = hn::Set(df, weights[m]), toward = hn::Xor(entry, flip);
      const MF agrees = hn::Gt(toward, zero);
      sum = hn::Add(sum, hn::IfThenElseZero(agrees, hn::Mul(entry, weight)));
      divisor = hn::Add(divisor, hn::IfThenElseZero(agrees, weight));
      conflict = hn::Or(conflict, hn::Lt(toward, zero));
    }
    divisor = hn::IfThenElse(hn::Lt(divisor, least), least, divisor);
    hn::StoreU(hn::Div(sum, divisor), df, merged + i);
    conflicts += hn::CountTrue(df, hn::And(conflict, hn::FirstN(df, n - i)));
  }
  return conflicts;
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(VariancesTarget);
HWY_EXPORT(KeepVariancesTarget);
HWY_EXPORT(AddSquaresTarget);
HWY_EXPORT(MergeAgreeingTarget);

void Variances(const float* const* d, size_t models, size_t n, float* variances) {
  HWY_DYNAMIC_DISPATCH(VariancesTarget)(d, models, n, variances);
}
void KeepVariances(const float* variances, uint32_t least, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(KeepVariancesTarget)(variances, least, n, d);
}
void AddSquares(const float* d, size_t n, double* sums) { HWY_DYNAMIC_DISPATCH(AddSquaresTarget)(d, n, sums); }
uint64_t MergeAgreeing(const float* const* d, const float* weights, size_t models, size_t n, float* merged) {
  return HWY_DYNAMIC_DISPATCH(MergeAgreeingTarget)(d, weights, models, n, merged);
}

}  // namespace braid
#endif  // HWY_ONCE
