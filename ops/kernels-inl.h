// What the kernels share, compiled once per instruction set: tags, how elements become float32 lanes and back, keys.
#if defined(BRAID_OPS_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BRAID_OPS_KERNELS_INL_H_
#undef BRAID_OPS_KERNELS_INL_H_
#else
#define BRAID_OPS_KERNELS_INL_H_
#endif

#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/kernels.h"

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

HWY_INLINE VF CanonicalNan(VF x) { return hn::IfThenElse(hn::IsNaN(x), hn::BitCast(df, hn::Set(du, 0x7fc00000)), x); }

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

// Blocks of several sources alternate, so the processor's own prefetching starts anew with each. One block ahead:
// 4.5 s became 3.8 s for a warm merge of 1.24 billion parameters (with the candidates' memory reused).
constexpr size_t kPrefetchAhead = 1024;

HWY_INLINE VU KeyOf(VF d) {
  return hn::Min(hn::And(hn::BitCast(du, d), hn::Set(du, 0x7fffffff)), hn::Set(du, kNanKey));
}

// Bit j: lane j of the mask.
template <class D, class M>
HWY_INLINE uint64_t MaskBits(D d, M mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint64_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#endif
