// Linear combinations in float64: products of sources, sums of their multiples, one rounding.
#include "ops/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/kernels_combine.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

// Plain loops, which the compiler vectorises: each does one thing in one width.

void WidenTarget(const float* x, const float* base, size_t n, double* wide) {
  if (base == nullptr) {
    for (size_t i = 0; i < n; ++i) wide[i] = static_cast<double>(x[i]);
  } else {
    for (size_t i = 0; i < n; ++i) wide[i] = static_cast<double>(x[i]) - static_cast<double>(base[i]);
  }
  for (size_t i = n; i % kSumLanes != 0; ++i) wide[i] = 0;
}

void AddProductsTarget(const double* x, const double* y, size_t n, double* sums) {
  constexpr hn::CappedTag<double, 8> dd;
  constexpr size_t kStep = hn::MaxLanes(dd), kVectors = kSumLanes / kStep;
  hn::Vec<decltype(dd)> sum[kVectors];   // in registers
  for (size_t v = 0; v < kVectors; ++v) sum[v] = hn::LoadU(dd, sums + v * kStep);
  for (size_t i = 0; i < n; i += kSumLanes)
    for (size_t v = 0; v < kVectors; ++v)
      sum[v] = hn::Add(sum[v], hn::Mul(hn::LoadU(dd, x + i + v * kStep), hn::LoadU(dd, y + i + v * kStep)));
  for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sum[v], dd, sums + v * kStep);
}

void AddLaneProductsTarget(const double* x, const double* y, size_t n, double* sums) {
  for (size_t i = 0; i < n; ++i) sums[i] += x[i] * y[i];
}

void MultiplyLanesTarget(const double* y, size_t n, double* x) {
  for (size_t i = 0; i < n; ++i) x[i] *= y[i];
}

constexpr size_t kSumBatch = 256;

// Where rounding to nearest was not exact and gave an even last bit, the odd neighbour lies on the number's other side:
// one step of magnitude away. The bits of a float order as magnitudes do, zero and infinity included.
void MoveToOdd(const double* sum, size_t n, float* out) {
  double step[kSumBatch];
  float narrow_step[kSumBatch];
  for (size_t i = 0; i < n; ++i) {
    const double rounded = static_cast<double>(out[i]);
    const double away = __builtin_fabs(sum[i]) > __builtin_fabs(rounded) ? 1.0 : -1.0;
    step[i] = sum[i] == rounded ? 0.0 : away;
  }
  for (size_t i = 0; i < n; ++i) narrow_step[i] = static_cast<float>(step[i]);
  for (size_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, out + i, sizeof bits);
    bits += (~bits & 1) * static_cast<int32_t>(narrow_step[i]);
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

void CombineTarget(const double* const* terms, size_t num_terms, const double* share, const float* base, size_t n,
                   LaneRounding rounding, float* out) {
  double sum[kSumBatch];
  for (size_t start = 0; start < n; start += kSumBatch) {
    const size_t count = HWY_MIN(kSumBatch, n - start);
    bool first = true;
    for (size_t m = 0; m < num_terms; ++m) {
      if (share[m] == 0) continue;
      const double* term = terms[m] + start;
      const double its_share = share[m];
      if (first) {
        for (size_t i = 0; i < count; ++i) sum[i] = its_share * term[i];
      } else {
        for (size_t i = 0; i < count; ++i) sum[i] += its_share * term[i];
      }
      first = false;
    }
    if (first) std::memset(sum, 0, sizeof sum);
    if (base != nullptr)
      for (size_t i = 0; i < count; ++i) {
        const double from = static_cast<double>(base[start + i]), moved = from + sum[i];
        sum[i] = sum[i] == 0 ? from : moved;
      }
    for (size_t i = 0; i < count; ++i) out[start + i] = static_cast<float>(sum[i]);
    if (rounding == LaneRounding::kOdd) MoveToOdd(sum, count, out + start);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(WidenTarget);
HWY_EXPORT(AddProductsTarget);
HWY_EXPORT(AddLaneProductsTarget);
HWY_EXPORT(MultiplyLanesTarget);
HWY_EXPORT(CombineTarget);

void WidenLanes(const float* x, const float* base, size_t n, double* wide) {
  HWY_DYNAMIC_DISPATCH(WidenTarget)(x, base, n, wide);
}
void AddProducts(const double* x, const double* y, size_t n, double* sums) {
  HWY_DYNAMIC_DISPATCH(AddProductsTarget)(x, y, n, sums);
}
void AddLaneProducts(const double* x, const double* y, size_t n, double* sums) {
  HWY_DYNAMIC_DISPATCH(AddLaneProductsTarget)(x, y, n, sums);
}
void MultiplyLanes(const double* y, size_t n, double* x) { HWY_DYNAMIC_DISPATCH(MultiplyLanesTarget)(y, n, x); }
void CombineLanes(const double* const* terms, size_t num_terms, const double* share, const float* base, size_t n,
                  LaneRounding rounding, float* out) {
  HWY_DYNAMIC_DISPATCH(CombineTarget)(terms, num_terms, share, base, n, rounding, out);
}

}  // namespace braid
#endif  // HWY_ONCE
