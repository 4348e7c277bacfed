#include "pipeline/diff.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/pipeline/checkpoint_fixtures.h"

namespace braid {
namespace {

using namespace fixture;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

class DiffTest : public ::testing::Test {
 protected:
  CheckpointDifference DiffOf(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    return Diff(directory_.Write("a.safetensors", FileOf(a)), directory_.Write("b.safetensors", FileOf(b)));
  }
  ElementDifference ElementsOf(const Tensor& a, const Tensor& b) {
    const CheckpointDifference diff = DiffOf({a}, {b});
    EXPECT_EQ(diff.tensors.size(), 1u);
    EXPECT_TRUE(diff.tensors.at(0).compared);
    return diff.tensors.at(0).elements;
  }
  TemporaryDirectory directory_;
};

TEST_F(DiffTest, EqualCheckpointsAreIdenticalHoweverTheyAreSharded) {
  const Tensor x = F32("x", {1, -0.0f, kNan, kInf}), y = Raw16("y", DType::kBF16, {7, 8}),
               z{"z", DType::kI8, {2}, "ab"};
  directory_.Write("one/model.safetensors", FileOf({x, y, z}));
  const std::string sharded = WriteShards(directory_, "many", {{z}, {y}, {x}});
  const CheckpointDifference diff = Diff(directory_ / "one", sharded);
  EXPECT_TRUE(diff.identical());
  EXPECT_EQ(diff.tensors.size(), 3u);
  EXPECT_EQ(diff.bytes_read, 2 * 22u);
  for (const TensorDifference& t : diff.tensors) EXPECT_EQ(t.elements.equal, t.elements.elements);
}

TEST_F(DiffTest, KnownDistancesOfFloat32) {
  const ElementDifference d = ElementsOf(F32("t", {1, 2, 4, 8}), F32("t", {1, 2.5, 4, std::nextafter(8.0f, 9.0f)}));
  EXPECT_EQ(d.elements, 4u);
  EXPECT_EQ(d.equal, 2u);
  EXPECT_EQ(d.largest_absolute, 0.5);
  EXPECT_EQ(d.largest_relative, 0.2);
  EXPECT_EQ(d.largest_ulp, 0x200000u);
  EXPECT_EQ(d.not_finite, 0u);
}

struct Distance {
  DType dtype;
  uint16_t a, b;
  uint64_t ulp;
};

TEST_F(DiffTest, UlpDistancesOfSixteenBits) {
  const Distance cases[] = {
      {DType::kBF16, 0x3f80, 0x3f81, 1},       // 1 and the next
      {DType::kBF16, 0x3f80, 0x3f7f, 1},       // 1 and the one before, across an exponent
      {DType::kBF16, 0x3f80, 0x4000, 0x80},    // 1 and 2
      {DType::kBF16, 0x0001, 0x8001, 2},       // the two smallest, across zero
      {DType::kBF16, 0x3f80, 0xbf80, 0x7f00},  // 1 and -1
      {DType::kF16, 0x3c00, 0x3c05, 5},
      {DType::kF16, 0x03ff, 0x0400, 1},        // the largest subnormal and the smallest normal
      {DType::kF16, 0x7bff, 0xfbff, 0xf7fe},   // the largest of either sign
  };
  for (const Distance& c : cases) {
    const ElementDifference d = ElementsOf(Raw16("t", c.dtype, {c.a}), Raw16("t", c.dtype, {c.b}));
    EXPECT_EQ(d.largest_ulp, c.ulp) << std::hex << c.a << " " << c.b;
    EXPECT_EQ(d.equal, 0u);
    EXPECT_GT(d.largest_absolute, 0);
  }
}

TEST_F(DiffTest, Float64IsNotRounded) {
  const double next = std::nextafter(1.0, 2.0);
  const ElementDifference d = ElementsOf(F64("t", {1, 1e300}), F64("t", {next, 1e300}));
  EXPECT_EQ(d.largest_ulp, 1u);
  EXPECT_EQ(d.largest_absolute, next - 1);
  const ElementDifference far = ElementsOf(F64("t", {std::numeric_limits<double>::max()}), F64("t", {-1e308}));
  EXPECT_GT(far.largest_ulp, uint64_t{1} << 63);
}

TEST_F(DiffTest, TheSignOfZeroIsADifferenceOfNothing) {
  const ElementDifference d = ElementsOf(F32("t", {0}), F32("t", {-0.0f}));
  EXPECT_EQ(d.equal, 0u);
  EXPECT_EQ(d.largest_absolute, 0);
  EXPECT_EQ(d.largest_relative, 0);
  EXPECT_EQ(d.largest_ulp, 0u);
  EXPECT_FALSE(DiffOf({F32("t", {0})}, {F32("t", {-0.0f})}).identical());
}

TEST_F(DiffTest, NanAndInfinityAreCountedNotMeasured) {
  const float other_nan = std::bit_cast<float>(0x7fc00001u);
  const ElementDifference d = ElementsOf(F32("t", {kNan, kNan, kNan, kInf, kInf, 1, 1}),
                                         F32("t", {kNan, other_nan, 1, kInf, -kInf, kInf, 1.5f}));
  EXPECT_EQ(d.equal, 2u);
  EXPECT_EQ(d.not_finite, 4u);
  EXPECT_EQ(d.largest_absolute, 0.5);
}

TEST_F(DiffTest, TwoTypesAreComparedAsFloat32) {
  const CheckpointDifference diff =
      DiffOf({F32("t", {1, 1.00390625f, 3})}, {Raw16("t", DType::kBF16, {0x3f80, 0x3f80, 0x4040})});
  const TensorDifference& t = diff.tensors.at(0);
  EXPECT_FALSE(t.same_dtype);
  EXPECT_TRUE(t.compared);
  EXPECT_FALSE(diff.identical());
  EXPECT_EQ(t.elements.equal, 2u);
  EXPECT_EQ(t.elements.largest_absolute, 0.00390625);
  EXPECT_EQ(t.elements.largest_ulp, 0x8000u);
  EXPECT_FALSE(DiffOf({F32("t", {1})}, {Raw16("t", DType::kBF16, {0x3f80})}).identical());
}

TEST_F(DiffTest, IntegersAreEqualOrNot) {
  const ElementDifference d = ElementsOf({"t", DType::kI32, {2}, std::string("\1\0\0\0\2\0\0\0", 8)},
                                         {"t", DType::kI32, {2}, std::string("\1\0\0\0\2\0\0\1", 8)});
  EXPECT_FALSE(d.has_distances);
  EXPECT_EQ(d.elements, 2u);
  EXPECT_EQ(d.equal, 1u);
}

TEST_F(DiffTest, PackedElementsAreCountedOneByOne) {
  EXPECT_EQ(ElementsOf({"t", DType::kF4, {4}, "\x12\x34"}, {"t", DType::kF4, {4}, "\x13\x34"}).equal, 3u);
  // Four elements in three bytes; the changed bits belong to the second one, which straddles two bytes.
  const Tensor a{"t", DType::kF6E2M3, {4}, std::string("\x00\x00\x00", 3)};
  const Tensor b{"t", DType::kF6E2M3, {4}, std::string("\x80\x01\x00", 3)};
  EXPECT_EQ(ElementsOf(a, b).equal, 3u);
}

TEST_F(DiffTest, NamesShapesAndTypesThatDoNotMatch) {
  const CheckpointDifference diff = DiffOf(
      {F32("gone", {1}), F32("shape", {1, 2}), F32("type", {1})},
      {F32("new", {1}), {"shape", DType::kF32, {2, 1}, std::string(8, '\0')}, {"type", DType::kI32, {1}, "abcd"}});
  EXPECT_EQ(diff.only_in_a, std::vector<std::string>{"gone"});
  EXPECT_EQ(diff.only_in_b, std::vector<std::string>{"new"});
  ASSERT_EQ(diff.tensors.size(), 2u);
  EXPECT_FALSE(diff.tensors[0].same_shape);
  EXPECT_FALSE(diff.tensors[0].compared);
  EXPECT_TRUE(diff.tensors[1].same_shape);
  EXPECT_FALSE(diff.tensors[1].same_dtype);
  EXPECT_FALSE(diff.tensors[1].compared);
  EXPECT_EQ(diff.differing, 2u);
}

TEST_F(DiffTest, EmptyTensorsOfOneTypeAreEqual) {
  EXPECT_TRUE(DiffOf({F32("t", {})}, {F32("t", {})}).identical());
  EXPECT_FALSE(DiffOf({F32("t", {})}, {Raw16("t", DType::kF16, {})}).identical());
}

// Against a plain loop, over several windows of both, with different types and unaligned ends.
TEST_F(DiffTest, LargeTensorsAreComparedWhole) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> a(1'700'009);
  for (float& v : a) v = normal(random);
  std::vector<float> b = a;
  uint64_t equal = a.size(), ulp = 0;
  double absolute = 0, relative = 0;
  for (int i = 0; i < 1000; ++i) {
    const size_t at = random() % b.size();
    if (b[at] != a[at]) continue;
    b[at] *= 1 + std::ldexp(static_cast<float>(random() % 7), -20);
    equal -= b[at] != a[at];
  }
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    absolute = std::max(absolute, difference);
    if (difference > 0) relative = std::max(relative, difference / std::max(std::abs(a[i]), std::abs(b[i])));
    const int64_t x = std::bit_cast<int32_t>(std::abs(a[i])), y = std::bit_cast<int32_t>(std::abs(b[i]));
    ulp = std::max<uint64_t>(ulp, std::abs(x - y));
  }
  const ElementDifference d = ElementsOf(F32("t", a), F32("t", b));
  EXPECT_EQ(d.equal, equal);
  EXPECT_EQ(d.largest_absolute, absolute);
  EXPECT_EQ(d.largest_relative, relative);
  EXPECT_EQ(d.largest_ulp, ulp);
  EXPECT_EQ(ElementsOf(F32("t", a), F64("t", {a.begin(), a.end()})).equal, a.size());
}

TEST_F(DiffTest, AMissingCheckpointIsAUsageError) {
  const std::string a = directory_.Write("a.safetensors", FileOf({F32("t", {1})}));
  EXPECT_EQ(ErrorOf([&] { Diff(a, directory_ / "nothing"); }).code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace braid
