// nearswap and passthrough, driven as the pipeline drives them.
#include "tests/ops/merge_driver.h"
#include "tests/ops/reference.h"

namespace braid {
namespace {

using test::Drive;
using test::kLaneTypes;
using test::Random;
using test::ScopeTensor;
using test::SetModel;
using test::SetShared;
using test::Source;
using test::SourceOf;

// torch divides a number by a tensor as the number times the reciprocal; clamp keeps NaN.
float Nearswap(float a, float b, float t) {
  if (a == b) return a;
  float distance = std::fabs(a - b);
  if (distance < 1e-6f) distance = 1e-6f;
  const float reciprocal = 1.0f / distance;
  float share = reciprocal * t;
  if (share > 1.0f) share = 1.0f;
  if (share < 0.0f) share = 0.0f;
  const float from_b = share * b, rest = 1.0f - share, from_a = rest * a;
  return from_b + from_a;
}

// a + lambda w (b - a). A lambda of 1 is mergekit's arithmetic.
float ScaledNearswap(float a, float b, float t, float lambda) {
  if (lambda == 1) return Nearswap(a, b, t);
  const float difference = b - a;
  float distance = std::fabs(difference);
  if (distance < 1e-6f) distance = 1e-6f;
  const float reciprocal = 1.0f / distance;
  float share = reciprocal * t;
  if (share > 1.0f) share = 1.0f;
  const float part = share * difference, scaled = lambda * part;
  return scaled == 0 ? a : a + scaled;
}

TEST(Nearswap, EqualsTheReference) {
  const MethodInfo& method = *FindMethod("nearswap");
  Random random;
  for (int c = 0; c < 100; ++c) {
    const size_t n = random.OneOf<size_t>({1, 2, 17, 1000, 1023, 1024, 1025, 3000, 65'537, 150'001});
    const double t = random.OneOf({0.001, 1e-4, 1e-7, 0.0, 0.1, 5.0}),
                 lambda = random.OneOf({1.0, 1.0, 0.4, -2.0, 0.0});
    std::vector<float> base(n), other(n);
    for (size_t i = 0; i < n; ++i) {
      base[i] = static_cast<float>(random.Normal() * 0.1);
      other[i] = base[i] + static_cast<float>(random.Normal() * random.OneOf({0.0, 1e-7, 1e-4, 0.01}));
      if (random.Chance(0.01)) base[i] = random.OneOf({NAN, INFINITY, -0.0f});
      if (random.Chance(0.01)) other[i] = random.OneOf({NAN, -INFINITY, 0.0f});
    }
    ScopeTensor tensor("w", n);
    tensor.base = SourceOf(kLaneTypes[random.Below(4)], base);
    tensor.models.push_back(SourceOf(kLaneTypes[random.Below(4)], other));
    tensor.coefficients = test::DefaultCoefficients(method, 1);
    SetShared(method, tensor.coefficients, "t", t);
    SetShared(method, tensor.coefficients, "lambda", lambda);
    const std::vector<float> a = reference::Decode(tensor.base.type, tensor.base.bytes);
    const std::vector<float> b = reference::Decode(tensor.models[0].type, tensor.models[0].bytes);
    std::vector<float> expected(n);
    for (size_t i = 0; i < n; ++i)
      expected[i] = ScaledNearswap(a[i], b[i], static_cast<float>(t), static_cast<float>(lambda));
    const DType type = kLaneTypes[random.Below(4)];
    const auto driven = Drive(method, {tensor}, {.blocks_per_tile = 1 + random.Below(2), .workers = 2, .type = type},
                              random);
    ASSERT_EQ(driven.tensors[0], reference::Encode(type, expected))
        << "case " << c << ", t " << t << ", lambda " << lambda;
  }
}

TEST(Nearswap, NeedsT) {
  const MethodInfo& method = *FindMethod("nearswap");
  Coefficients c = test::DefaultCoefficients(method, 1);
  EXPECT_EQ(method.check(method, c), "there is no t");
  SetShared(method, c, "t", 0);
  EXPECT_EQ(method.check(method, c), "");
}

TEST(Passthrough, OfOneTypeKeepsEveryBit) {
  const MethodInfo& method = *FindMethod("passthrough");
  Random random;
  for (DType type : kLaneTypes) {
    ScopeTensor tensor("w", 70'001);
    Source model{.type = type};
    for (size_t i = 0; i < tensor.elements * static_cast<size_t>(LaneBytes(type)); ++i)
      model.bytes.push_back(static_cast<std::byte>(random.Below(256)));
    tensor.models.push_back(model);
    tensor.coefficients = test::DefaultCoefficients(method, 1);
    const auto driven = Drive(method, {tensor}, {.type = type}, random);
    EXPECT_EQ(driven.tensors[0], model.bytes) << DTypeName(type);
    EXPECT_TRUE(type == DType::kF64 || driven.counts.non_finite.nan > 0) << DTypeName(type);
  }
}

TEST(Passthrough, ScalesInFloat32) {
  const MethodInfo& method = *FindMethod("passthrough");
  Random random;
  for (int c = 0; c < 40; ++c) {
    const size_t n = random.OneOf<size_t>({1, 17, 1000, 1025, 65'537});
    const double scale = random.OneOf({1.0, 0.1, -2.5, 0.0, 0.7});
    std::vector<float> lanes(n);
    for (float& x : lanes) x = static_cast<float>(random.Normal());
    ScopeTensor tensor("w", n);
    tensor.models.push_back(SourceOf(kLaneTypes[random.Below(4)], lanes));
    tensor.coefficients = test::DefaultCoefficients(method, 1);
    SetModel(method, tensor.coefficients, 0, "scale", scale);
    std::vector<float> expected = reference::Decode(tensor.models[0].type, tensor.models[0].bytes);
    for (float& x : expected) x *= static_cast<float>(scale);
    const DType type = kLaneTypes[random.Below(4)];
    const auto driven = Drive(method, {tensor}, {.workers = 2, .type = type}, random);
    ASSERT_EQ(driven.tensors[0], reference::Encode(type, expected)) << "case " << c << ", scale " << scale;
  }
}

}  // namespace
}  // namespace braid
