// Floats as planes of bytes and back: against the definition, for all lengths, alignments and ranges.
#include "ops/byte_planes.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace braid {
namespace {

std::vector<std::byte> Noise(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

TEST(BytePlanes, TheExponentIsThePlaneInFront) {
  const float lanes[] = {1.0f, -1.0f, 0.75f, -3e38f, 0.0f};
  std::vector<std::byte> planes(sizeof(lanes));
  SplitPlanes(PlaneSplit::kFour, reinterpret_cast<const std::byte*>(lanes), 5, planes.data());
  const int exponents[] = {127, 127, 126, 254, 0};
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(static_cast<int>(planes[i]), exponents[i]);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(static_cast<int>(planes[15 + i]) & 1, lanes[i] < 0) << "the sign is last";

  const uint16_t bf16[] = {0x3f80, 0xbf80, 0x3f81};
  SplitPlanes(PlaneSplit::kTwo, reinterpret_cast<const std::byte*>(bf16), 3, planes.data());
  const uint8_t expected[] = {127, 127, 127, 0, 1, 2};
  EXPECT_EQ(std::memcmp(planes.data(), expected, 6), 0);
}

TEST(BytePlanes, EveryRangeComesBack) {
  for (const PlaneSplit split : {PlaneSplit::kNone, PlaneSplit::kTwo, PlaneSplit::kFour}) {
    const size_t size = PlanesOf(split);
    for (const size_t n : {0, 1, 3, 31, 32, 33, 511, 512, 513, 1700}) {
      const std::vector<std::byte> elements = Noise(n * size + 1, n);
      std::vector<std::byte> planes(n * size + 1), back(n * size + 1);
      SplitPlanes(split, elements.data() + 1, n, planes.data() + 1);
      for (const size_t first : {size_t{0}, n / 3, n})
        for (const size_t count : {size_t{0}, (n - first) / 2, n - first}) {
          JoinPlanes(split, planes.data() + 1, n, first, count, back.data() + 1);
          EXPECT_EQ(std::memcmp(back.data() + 1, elements.data() + 1 + first * size, count * size), 0)
              << size << " bytes, " << n << " elements, " << first << " + " << count;
        }
    }
  }
}

TEST(BytePlanes, OnlyFloatsAreSplit) {
  EXPECT_EQ(SplitOf(DType::kBF16), PlaneSplit::kTwo);
  EXPECT_EQ(SplitOf(DType::kF16), PlaneSplit::kTwo);
  EXPECT_EQ(SplitOf(DType::kF32), PlaneSplit::kFour);
  for (const DType type : {DType::kF64, DType::kI64, DType::kU8, DType::kF4, DType::kBool, DType::kI16, DType::kF8E4M3})
    EXPECT_EQ(SplitOf(type), PlaneSplit::kNone);
}

}  // namespace
}  // namespace braid
