#include "ops/random.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/random.cc"
#include "hwy/foreach_target.h"  // compiles this file again for each target
#include "hwy/highway.h"

#include "ops/kernels-inl.h"

#ifndef BRAID_OPS_RANDOM_CC_
#define BRAID_OPS_RANDOM_CC_
namespace braid {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xd2511f53, kMultiplier1 = 0xcd9e8d57;
constexpr uint32_t kWeyl0 = 0x9e3779b9, kWeyl1 = 0xbb67ae85;   // added to the key after each round

// Elements that share a run of counters.
constexpr size_t kGroup = 64, kCounters = kGroup / 4;

}  // namespace braid
#endif

HWY_BEFORE_NAMESPACE();
namespace braid {
namespace HWY_NAMESPACE {

// The draws of one group, as DrawBits says.
#if HWY_TARGET == HWY_SCALAR
void DrawGroup(const RandomStream& stream, uint64_t group, uint32_t* draws) {
  for (size_t i = 0; i < kCounters; ++i) {
    const uint64_t number = group * kCounters + i;
    const std::array<uint32_t, 4> words =
        Philox({static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32) | stream.model << 16,
                static_cast<uint32_t>(stream.tensor_key), static_cast<uint32_t>(stream.tensor_key >> 32)},
               {static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32)});
    for (size_t w = 0; w < 4; ++w) draws[w * kCounters + i] = words[w] >> (32 - kDrawBits);
  }
}
#else
// Words lie in the low halves of 64 bits, where a multiplication wants them; what is in the high halves never matters.
void DrawGroup(const RandomStream& stream, uint64_t group, uint32_t* draws) {
  const hn::CappedTag<uint64_t, kCounters> d64;
  const hn::Repartition<uint32_t, decltype(d64)> d32;
  const hn::Rebind<uint32_t, decltype(d64)> half;
  const auto product = [&](auto a, auto b) HWY_ATTR { return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b)); };
  const auto multiplier0 = hn::Set(d64, kMultiplier0), multiplier1 = hn::Set(d64, kMultiplier1);
  const uint64_t number = group * kCounters;
  for (size_t i = 0; i < kCounters; i += hn::Lanes(d64)) {
    auto c0 = hn::Add(hn::Set(d64, number), hn::Iota(d64, static_cast<uint64_t>(i)));
    auto c1 = hn::Set(d64, number >> 32 | uint64_t{stream.model} << 16);
    auto c2 = hn::Set(d64, stream.tensor_key), c3 = hn::Set(d64, stream.tensor_key >> 32);
    auto key0 = static_cast<uint32_t>(stream.seed), key1 = static_cast<uint32_t>(stream.seed >> 32);
    for (int r = 0; r < kRounds; ++r, key0 += kWeyl0, key1 += kWeyl1) {
      const auto p0 = product(c0, multiplier0), p1 = product(c2, multiplier1);
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d64, key0));
      c1 = p1;
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d64, key1));
      c3 = p0;
    }
    const auto store = [&](auto word, size_t w) HWY_ATTR {
      hn::StoreU(hn::ShiftRight<32 - kDrawBits>(hn::TruncateTo(half, word)), half, draws + w * kCounters + i);
    };
    store(c0, 0), store(c1, 1), store(c2, 2), store(c3, 3);
  }
}
#endif

void DrawBitsTarget(const RandomStream& stream, uint64_t first, size_t n, uint32_t* draws) {
  uint32_t group[kGroup];
  for (size_t done = 0, k; done < n; done += k) {
    const size_t at = (first + done) % kGroup;
    k = HWY_MIN(n - done, kGroup - at);
    if (k == kGroup) {
      DrawGroup(stream, (first + done) / kGroup, draws + done);
      continue;
    }
    DrawGroup(stream, (first + done) / kGroup, group);
    std::memcpy(draws + done, group + at, k * sizeof(uint32_t));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace braid
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace braid {

HWY_EXPORT(DrawBitsTarget);

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int r = 0; r < kRounds; ++r, key[0] += kWeyl0, key[1] += kWeyl1) {
    const uint64_t p0 = uint64_t{kMultiplier0} * c[0], p1 = uint64_t{kMultiplier1} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(p0)};
  }
  return c;
}

void DrawBits(const RandomStream& stream, uint64_t first, size_t n, uint32_t* draws) {
  HWY_DYNAMIC_DISPATCH(DrawBitsTarget)(stream, first, n, draws);
}

}  // namespace braid
#endif  // HWY_ONCE
