// A delta, and the checkpoint that it and its base make: of every method that has one the bytes of the merge.
#include "ops/delta_merger.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/merge_driver.h"
#include "tests/ops/method_in_parts.h"
#include "tests/ops/random_coefficients.h"
#include "tests/ops/reference.h"

namespace braid::test {
namespace {

// Small numbers, with duplicates and what is no number here and there.
Source Odd(Random& random, DType type, size_t n, const std::vector<float>* around) {
  std::vector<float> lanes(n);
  const bool rare = random.Chance(0.3);
  for (size_t i = 0; i < n; ++i) {
    lanes[i] = static_cast<float>(random.Normal() * 0.05);
    if (around != nullptr)
      lanes[i] = (*around)[i] + static_cast<float>(random.Normal() * random.OneOf({0.0, 0.001, 0.1}));
    if (random.Chance(0.02)) lanes[i] = -0.0f;
    if (rare && random.Chance(1e-3)) lanes[i] = random.OneOf({NAN, INFINITY, -INFINITY, 3e38f, 1e-42f});
  }
  return SourceOf(type, lanes);
}

std::vector<std::string> MethodsWithDelta() {
  std::vector<std::string> names;
  for (const MethodInfo& method : Methods())
    if (method.HasDelta()) names.emplace_back(method.name);
  return names;
}

class DeltaTest : public testing::TestWithParam<std::string> {};

TEST_P(DeltaTest, TheBaseAndItMakeTheMerge) {
  const MethodInfo& method = *FindMethod(GetParam());
  const MethodInfo delta_method = InParts<NewDeltaMerger>(method);
  Random random;
  for (int round = 0; round < 16; ++round) {
    const size_t models =
        std::clamp<size_t>(1 + random.Below(4), method.least_models, std::min<size_t>(method.most_models, 4));
    const size_t row = random.OneOf<size_t>({1, 37, 1024, 9000}), rows = 1 + random.Below(150'000 / row);
    ScopeTensor tensor("tensor", row * rows);
    tensor.row = row, tensor.slice = row;
    const auto any_type = [&] { return kLaneTypes[random.Below(4)]; };
    tensor.base = Odd(random, any_type(), row * rows, nullptr);
    const std::vector<float> base = reference::Decode(tensor.base.type, tensor.base.bytes);
    tensor.coefficients = RandomCoefficients(method, models, false, random);
    SetShared(method, tensor.coefficients, "lambda", random.OneOf<double>({1, 0.7, -0.3, 0}));
    for (size_t m = 0; m < models; ++m) {
      tensor.models.push_back(random.Chance(0.1) ? Source{} : Odd(random, any_type(), row * rows, &base));
      if (tensor.models[m].bytes.empty() && method.Find("weight") != nullptr)
        SetModel(method, tensor.coefficients, m, "weight", 0);
    }
    const DType type = any_type();
    const auto options = [&](DType written) {
      return DriveOptions{.blocks_per_tile = 1 + random.Below(3), .workers = 1 + random.Below(3), .type = written};
    };
    const Driven merged = Drive(method, {tensor}, options(type), random);
    const Driven delta = Drive(delta_method, {tensor}, options(DType::kF32), random);
    EXPECT_EQ(delta.kept, merged.kept);

    ScopeTensor pair("tensor", row * rows);
    pair.base = tensor.base;
    pair.models.push_back({DType::kF32, delta.tensors[0]});
    pair.coefficients = DefaultCoefficients(ApplyDelta(), 1);
    const Driven applied = Drive(ApplyDelta(), {pair}, options(type), random);
    for (size_t i = 0, size = static_cast<size_t>(LaneBytes(type)); i < tensor.elements; ++i)
      ASSERT_TRUE(std::equal(&applied.tensors[0][i * size], &applied.tensors[0][i * size] + size,
                             &merged.tensors[0][i * size]))
          << "round " << round << ", element " << i << " as " << DTypeName(type) << ": base " << base[i] << ", delta "
          << reference::Decode(DType::kF32, delta.tensors[0])[i] << ", "
          << reference::Decode(type, merged.tensors[0])[i] << " became "
          << reference::Decode(type, applied.tensors[0])[i];
    EXPECT_EQ(applied.counts.non_finite.nan, merged.counts.non_finite.nan);

    const Driven rounded = Drive(delta_method, {tensor}, options(DType::kBF16), random);
    const std::vector<float> exact = reference::Decode(DType::kF32, delta.tensors[0]);
    ASSERT_EQ(rounded.tensors[0], reference::Encode(DType::kBF16, exact));
  }
}

INSTANTIATE_TEST_SUITE_P(EveryMethod, DeltaTest, testing::ValuesIn(MethodsWithDelta()),
                         [](const auto& its) { return its.param; });

TEST(Delta, OnlyOfWhatIsAddedInFloat32) {
  for (const char* name : {"model_stock", "nearswap", "nuslerp", "multislerp", "slerp", "linear", "karcher",
                           "passthrough"})
    EXPECT_FALSE(FindMethod(name)->HasDelta()) << name;
  EXPECT_EQ(MethodsWithDelta().size(), 16u);
  EXPECT_EQ(FindMethod(ApplyDelta().name), nullptr) << "no recipe names it";
}

// Nothing is added: the base's bits, also those of -0.0 and of a tensor that the delta lacks.
TEST(Delta, ZeroKeepsTheBase) {
  ScopeTensor pair("tensor", 4);
  pair.base = SourceOf(DType::kBF16, {-0.0f, 0.0f, 1.5f, -3e38f});
  pair.models = {SourceOf(DType::kF32, {0.0f, -0.0f, 0.0f, -0.0f})};
  pair.coefficients = DefaultCoefficients(ApplyDelta(), 1);
  Random random;
  EXPECT_EQ(Drive(ApplyDelta(), {pair}, {.type = DType::kBF16}, random).tensors[0], pair.base.bytes);
  pair.models = {{}};
  EXPECT_EQ(Drive(ApplyDelta(), {pair}, {.type = DType::kBF16}, random).tensors[0], pair.base.bytes);
}

}  // namespace
}  // namespace braid::test
