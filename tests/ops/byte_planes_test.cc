// Floats as planes of bytes and back: against the definition, for all lengths, alignments and ranges.
#include "ops/byte_planes.h"

#include <gtest/gtest.h>

#include <algorithm>
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

struct Planes {
  size_t marked = 0;
  std::vector<std::byte> marks, planes;
};

// Behind a byte, so that nothing is aligned, and with one behind that nobody may write to.
Planes PlanesFrom(PlaneSplit split, const std::byte* elements, size_t n) {
  Planes out;
  out.marks.assign(MarkBytes(n) + 2, std::byte{0x5a});
  out.marked = MarkElements(split, elements, n, out.marks.data() + 1);
  out.planes.assign(out.marked * PlanesOf(split) + 2, std::byte{0x5a});
  SplitPlanes(split, elements, n, out.marks.data() + 1, out.marked, out.planes.data() + 1);
  EXPECT_EQ(out.marks.back(), std::byte{0x5a});
  EXPECT_EQ(out.planes.back(), std::byte{0x5a});
  size_t marked = 0;
  EXPECT_TRUE(AreMarks(out.marks.data() + 1, n, &marked));
  EXPECT_EQ(marked, out.marked);
  return out;
}

TEST(BytePlanes, TheExponentIsThePlaneInFront) {
  const float lanes[] = {1.0f, -1.0f, 0.75f, -3e38f, -0.0f};
  const Planes four = PlanesFrom(PlaneSplit::kFour, reinterpret_cast<const std::byte*>(lanes), 5);
  ASSERT_EQ(four.marked, 5u) << "-0 is not 0";
  const int exponents[] = {127, 127, 126, 254, 0};
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(static_cast<int>(four.planes[1 + i]), exponents[i]);
  for (size_t i = 0; i < 4; ++i)
    EXPECT_EQ(static_cast<int>(four.planes[16 + i]) & 1, lanes[i] < 0) << "the sign is last";

  const uint16_t bf16[] = {0x3f80, 0xbf80, 0x3f81};
  const Planes two = PlanesFrom(PlaneSplit::kTwo, reinterpret_cast<const std::byte*>(bf16), 3);
  const uint8_t expected[] = {127, 127, 127, 0, 1, 2};
  EXPECT_EQ(std::memcmp(two.planes.data() + 1, expected, 6), 0);
}

TEST(BytePlanes, ZerosAreLeftOutWhereThereAreMany) {
  const uint16_t many[] = {0, 0x3f80, 0, 0, 0x8000, 0, 0, 0, 0, 0x4000};
  const Planes some = PlanesFrom(PlaneSplit::kTwo, reinterpret_cast<const std::byte*>(many), 10);
  EXPECT_EQ(some.marked, 3u);
  EXPECT_EQ(some.marks[1], std::byte{0b00010010});
  EXPECT_EQ(some.marks[2], std::byte{0b10});
  const uint8_t expected[] = {127, 0, 128, 0, 1, 0};
  EXPECT_EQ(std::memcmp(some.planes.data() + 1, expected, 6), 0);
  const uint16_t few[] = {1, 2, 0, 4, 5, 6, 7, 8, 9, 10};
  const Planes all = PlanesFrom(PlaneSplit::kTwo, reinterpret_cast<const std::byte*>(few), 10);
  EXPECT_EQ(all.marked, 10u);
  EXPECT_EQ(all.marks[1], std::byte{0xff});
  EXPECT_EQ(all.marks[2], std::byte{0b11});
}

TEST(BytePlanes, MarksBehindTheLastElementAreNone) {
  for (const size_t n : {1, 7, 9, 63, 65, 511}) {
    std::vector<std::byte> marks(MarkBytes(n));
    size_t marked = 0;
    EXPECT_TRUE(AreMarks(marks.data(), n, &marked));
    marks.back() = static_cast<std::byte>(1u << n % 8);
    EXPECT_FALSE(AreMarks(marks.data(), n, &marked)) << n;
  }
}

TEST(BytePlanes, EveryRangeComesBack) {
  std::mt19937_64 random(20'261'122);
  for (const PlaneSplit split : {PlaneSplit::kTwo, PlaneSplit::kFour}) {
    const size_t size = PlanesOf(split);
    for (const size_t n : {0, 1, 3, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1700})
      for (const unsigned zeros : {0, 1, 5, 9, 10}) {   // of ten
        std::vector<std::byte> elements = Noise(n * size + 1, random());
        for (size_t i = 0; i < n; ++i)
          if (random() % 10 < zeros) std::memset(elements.data() + 1 + i * size, 0, size);
        const Planes planes = PlanesFrom(split, elements.data() + 1, n);
        if (zeros == 0) {
          EXPECT_EQ(planes.marked, n);
        }
        std::vector<std::byte> back(n * size + 2);
        for (const size_t first : {size_t{0}, n / 3, n / 64 * 64, n})
          for (const size_t count : {size_t{0}, std::min<size_t>(1, n - first), (n - first) / 2, n - first}) {
            std::fill(back.begin(), back.end(), std::byte{0x5a});
            JoinPlanes(split, planes.marks.data() + 1, n, planes.planes.data() + 1, planes.marked, first, count,
                       back.data() + 1);
            EXPECT_EQ(std::memcmp(back.data() + 1, elements.data() + 1 + first * size, count * size), 0)
                << size << " bytes, " << n << " elements, " << zeros << " zeros of ten, " << first << " + " << count;
            EXPECT_EQ(back[1 + count * size], std::byte{0x5a});
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
