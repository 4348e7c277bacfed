// Counting NaN and infinities as they are encoded agrees with decoding them.
#include "ops/non_finite.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace braid {
namespace {

template <typename Element>
NonFinite Counted(DType type, const std::vector<Element>& elements) {
  std::string bytes(1 + elements.size() * sizeof(Element), '\0');
  // Unaligned.
  if (!elements.empty()) std::memcpy(bytes.data() + 1, elements.data(), elements.size() * sizeof(Element));
  NonFinite counts{.nan = 1000, .inf = 2000};
  CountNonFinite(type, bytes.data() + 1, elements.size(), &counts);
  return {counts.nan - 1000, counts.inf - 2000};
}

TEST(NonFinite, EveryElementOf16Bits) {
  std::vector<uint16_t> all(0x10000);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  for (DType type : {DType::kBF16, DType::kF16}) {
    std::vector<float> lanes(all.size() + kLanePadding);
    DecodeLanes(type, all.data(), all.size(), lanes.data());
    NonFinite expected;
    for (size_t i = 0; i < all.size(); ++i) expected.nan += std::isnan(lanes[i]), expected.inf += std::isinf(lanes[i]);
    const NonFinite counted = Counted(type, all);
    EXPECT_EQ(counted.nan, expected.nan);
    EXPECT_EQ(counted.inf, expected.inf);
    EXPECT_EQ(counted.inf, 2u);
  }
}

TEST(NonFinite, WiderTypes) {
  const NonFinite four = Counted<uint32_t>(
      DType::kF32, {0x7f800000, 0xff800000, 0x7f800001, 0xffffffff, 0x7fc00000, 0, 0x7f7fffff});
  EXPECT_EQ(four.inf, 2u);
  EXPECT_EQ(four.nan, 3u);
  const NonFinite eight = Counted<uint64_t>(
      DType::kF64, {std::bit_cast<uint64_t>(HUGE_VAL), std::bit_cast<uint64_t>(-HUGE_VAL),
                    std::bit_cast<uint64_t>(std::nan("")), 0x7ff0000000000001, 0});
  EXPECT_EQ(eight.inf, 2u);
  EXPECT_EQ(eight.nan, 2u);
}

// More of them than an element can count.
TEST(NonFinite, AllOfThem) {
  for (size_t n : {size_t{0}, size_t{1}, size_t{4097}, size_t{200'000}}) {
    EXPECT_EQ(Counted(DType::kBF16, std::vector<uint16_t>(n, 0x7fc0)).nan, n);
    EXPECT_EQ(Counted(DType::kF16, std::vector<uint16_t>(n, 0xfc00)).inf, n);
  }
}

}  // namespace
}  // namespace braid
