#include "ops/sparsify.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sparsify.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

void KeepDrawnTarget(const uint32_t* draws, const uint32_t* limits, size_t n, float* d) {
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF entry = hn::LoadU(df, d + i);
    const auto draw = hn::BitCast(di, hn::LoadU(du, draws + i)), limit = hn::BitCast(di, hn::LoadU(du, limits + i));
    const MF stays = hn::Or(hn::RebindMask(df, hn::Lt(draw, limit)), hn::IsNaN(entry));
    hn::StoreU(hn::IfThenElseZero(stays, entry), df, d + i);
  }
}

void KeepBitsTarget(const uint64_t* bits, size_t first, size_t n, float* d) {
  constexpr size_t kWord = 64;
  const size_t shift = first % kWord;
  for (size_t at = 0; at < n; at += kWord) {
    const uint64_t* const words = bits + (first + at) / kWord;
    const uint64_t word = words[0] >> shift | (shift == 0 ? 0 : words[1] << (kWord - shift));
    for (size_t i = 0; i < HWY_MIN(kWord, n - at); i += hn::Lanes(df)) {
      const uint64_t its = word >> i;
      uint8_t bytes[sizeof its];
      std::memcpy(bytes, &its, sizeof its);
      const VF entry = hn::LoadU(df, d + at + i);
      hn::StoreU(hn::IfThenElseZero(hn::Or(hn::LoadMaskBits(df, bytes), hn::IsNaN(entry)), entry), df, d + at + i);
    }
  }
}

void FindNonZerosTarget(const float* d, size_t n, uint64_t* words) {
  constexpr size_t kWord = 64;
  for (size_t at = 0; at < n; at += kWord) {
    uint64_t word = 0;
    for (size_t i = 0; i < kWord; i += hn::Lanes(df))   // not Ne: of a NaN it says no
      word |= MaskBits(df, hn::Not(hn::Eq(hn::LoadU(df, d + at + i), hn::Zero(df)))) << i;
    words[at / kWord] = n - at >= kWord ? word : word & ((uint64_t{1} << (n - at)) - 1);
  }
}

void KeepKeysTarget(uint32_t low, uint32_t high, size_t n, float* d) {
  // As signed integers: keys have no sign bit.
  const auto below = hn::Set(di, static_cast<int32_t>(low) - 1), end = hn::Set(di, static_cast<int32_t>(high));
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF entry = hn::LoadU(df, d + i);
    const auto key = hn::BitCast(di, KeyOf(entry));
    const MF inside = hn::RebindMask(df, hn::And(hn::Gt(key, below), hn::Lt(key, end)));
    const MF stays = hn::Or(inside, hn::IsNaN(entry));
    const VF kept = hn::IfThenElseZero(stays, entry);
    hn::StoreU(hn::IfThenElse(hn::FirstN(df, n - i), kept, entry), df, d + i);
  }
}

void AddTaskVectorTarget(const float* base, const float* merged, size_t n, float* out) {
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const VF b = hn::LoadU(df, base + i), d = hn::LoadU(df, merged + i);
    hn::StoreU(hn::IfThenElse(hn::Eq(d, hn::Zero(df)), b, hn::Add(b, d)), df, out + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(KeepDrawnTarget);
HWY_EXPORT(KeepBitsTarget);
HWY_EXPORT(FindNonZerosTarget);
HWY_EXPORT(KeepKeysTarget);
HWY_EXPORT(AddTaskVectorTarget);

void KeepDrawn(const uint32_t* draws, const uint32_t* limits, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(KeepDrawnTarget)(draws, limits, n, d);
}
void KeepBits(const uint64_t* bits, size_t first, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(KeepBitsTarget)(bits, first, n, d);
}
void AddBits(const uint64_t* words, size_t n, uint64_t* bits, size_t first) {
  uint64_t* to = bits + first / 64;
  const size_t shift = first % 64;
  for (size_t i = 0; i < n; i += 64, ++words, ++to) {
    to[0] |= *words << shift;
    if (shift > 0) to[1] |= *words >> (64 - shift);
  }
}
void FindNonZeros(const float* d, size_t n, uint64_t* words) { HWY_DYNAMIC_DISPATCH(FindNonZerosTarget)(d, n, words); }
void KeepKeys(uint32_t low, uint32_t high, size_t n, float* d) {
  HWY_DYNAMIC_DISPATCH(KeepKeysTarget)(low, high, n, d);
}
void AddTaskVector(const float* base, const float* merged, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(AddTaskVectorTarget)(base, merged, n, out);
}

}  // namespace braid
#endif  // HWY_ONCE
