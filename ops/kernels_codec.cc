// Elements to lanes and back.
#include "ops/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/kernels_codec.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

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

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(DecodeTarget);
HWY_EXPORT(EncodeTarget);
HWY_EXPORT(DecodeTaskVectorTarget);

void DecodeLanes(DType type, const void* bytes, size_t n, float* lanes) {
  HWY_DYNAMIC_DISPATCH(DecodeTarget)(type, bytes, n, lanes);
}
void EncodeLanes(DType type, const float* lanes, size_t n, void* bytes, NonFinite* counts) {
  HWY_DYNAMIC_DISPATCH(EncodeTarget)(type, lanes, n, bytes, counts);
}
void DecodeTaskVector(DType type, const void* bytes, const float* base, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(DecodeTaskVectorTarget)(type, bytes, base, n, d);
}

}  // namespace braid
#endif  // HWY_ONCE
