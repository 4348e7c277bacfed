// ram, ramplus_tl, consensus_ta and magmax against scalar code written from their formulas (methods.md).
#include "tests/ops/delta_scenario.h"

namespace braid {
namespace {

using test::DeltaTensor;
using test::Random;
using test::SetShared;

// The merged task vector of each element.
using Rule = std::function<float(const std::vector<std::pair<size_t, float>>& entries)>;

std::vector<float> Elements(const DeltaTensor& tensor, float lambda, const Rule& rule) {
  std::vector<float> elements;
  for (size_t i = 0; i < tensor.base.size(); ++i)
    elements.push_back(test::Applied(tensor, i, rule(test::EntriesOf(tensor, i)), lambda));
  return elements;
}

struct Case {
  DeltaTensor tensor;
  Coefficients coefficients;
  float lambda = 1;
};

Case RandomCase(Random& random, const MethodInfo& method, int number) {
  const size_t models = 1 + random.Below(6);
  Case c{.tensor = test::RandomDeltaTensor(random, "w", test::RandomSize(random, number % 20 == 0 ? 200'000 : 5000),
                                           models, {.odd_lanes = random.OneOf({0.0, 0.0, 0.01}),
                                            .missing = random.OneOf({0.0, 0.0, 0.3}),
                                            .scales = {1e-3, 1e-5, 0.1}}),
         .coefficients = test::DefaultCoefficients(method, models)};
  c.lambda = random.OneOf({1.0f, 1.0f, 0.5f, -1.25f, 0.0f});
  SetShared(method, c.coefficients, "lambda", static_cast<double>(c.lambda));
  return c;
}

// What ram and ramplus_tl make of an element; `factors` are those of entries that stand alone.
float RamRule(const std::vector<std::pair<size_t, float>>& entries, float epsilon, const std::vector<float>& factors) {
  float changed_by = 0, sum = 0;
  for (const auto& [m, d] : entries) changed_by += std::fabs(d) > epsilon ? 1.0f : 0.0f;
  for (const auto& [m, d] : entries) {
    if (!(std::fabs(d) > epsilon)) continue;
    sum += changed_by > 1 ? d / changed_by : d * factors[m];
  }
  return sum;
}

TEST(Ram, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("ram");
  test::RepeatCases(60, 1, [&](int number) {
    Case c = RandomCase(random, method, number);
    const double epsilon = random.OneOf({1e-5, 0.0, 1e-3});
    SetShared(method, c.coefficients, "epsilon", epsilon);
    const std::vector<float> ones(c.tensor.models.size(), 1.0f);
    const Rule rule = [&](const auto& entries) { return RamRule(entries, static_cast<float>(epsilon), ones); };
    ExpectMerged(random, method, {c.tensor}, c.coefficients, {Elements(c.tensor, c.lambda, rule)});
  });
}

TEST(RamPlus, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("ramplus_tl");
  test::RepeatCases(60, 1, [&](int number) {
    Case c = RandomCase(random, method, number);
    const double epsilon = random.OneOf({1e-5, 0.0, 1e-3}), r = random.OneOf({0.1, 2.0, -0.5}),
                 alpha = random.OneOf({0.2, 5.0, 0.0});
    SetShared(method, c.coefficients, "epsilon", epsilon);
    SetShared(method, c.coefficients, "r", r);
    SetShared(method, c.coefficients, "alpha", alpha);
    std::vector<float> shared(c.tensor.models.size()), unique = shared, factors = shared;
    for (size_t i = 0; i < c.tensor.base.size(); ++i) {
      int changed_by = 0;
      for (const auto& [m, d] : test::EntriesOf(c.tensor, i)) changed_by += std::fabs(d) > static_cast<float>(epsilon);
      for (const auto& [m, d] : test::EntriesOf(c.tensor, i))
        if (std::fabs(d) > static_cast<float>(epsilon)) ++(changed_by > 1 ? shared : unique)[m];
    }
    for (size_t m = 0; m < factors.size(); ++m) {
      float ratio = shared[m] == 0 ? 0 : shared[m] / std::max(unique[m], static_cast<float>(epsilon));
      ratio = std::min(std::max(ratio, 0.0f), static_cast<float>(alpha));
      factors[m] = 1 + static_cast<float>(r) * ratio;
    }
    const Rule rule = [&](const auto& entries) { return RamRule(entries, static_cast<float>(epsilon), factors); };
    ExpectMerged(random, method, {c.tensor}, c.coefficients, {Elements(c.tensor, c.lambda, rule)});
  });
}

TEST(ConsensusTa, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("consensus_ta");
  test::RepeatCases(60, 1, [&](int number) {
    Case c = RandomCase(random, method, number);
    const double k = static_cast<double>(random.Below(4)), l = random.OneOf({0.2, 0.0, 0.6, 3.0});
    SetShared(method, c.coefficients, "k", k);
    SetShared(method, c.coefficients, "l", l);
    const Rule rule = [&](const auto& entries) {
      float sum = 0;
      for (const auto& [m, d] : entries) sum += d;
      int masks = 0;
      for (const auto& [m, d] : entries) masks += std::fabs(d) > static_cast<float>(l) * std::fabs(sum - d);
      return masks >= k ? sum : 0.0f;
    };
    ExpectMerged(random, method, {c.tensor}, c.coefficients, {Elements(c.tensor, c.lambda, rule)});
  });
}

TEST(ConsensusTa, RefusesACountThatMeansNothing) {
  const MethodInfo& method = *FindMethod("consensus_ta");
  Coefficients c = test::DefaultCoefficients(method, 3);
  EXPECT_EQ(method.check(method, c), "");
  SetShared(method, c, "k", 1.5);
  EXPECT_NE(method.check(method, c), "");
  SetShared(method, c, "k", 4);
  EXPECT_NE(method.check(method, c), "");
  SetShared(method, c, "k", 3);
  EXPECT_EQ(method.check(method, c), "");
}

TEST(MagMax, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("magmax");
  test::RepeatCases(60, 1, [&](int number) {
    const Case c = RandomCase(random, method, number);
    const Rule rule = [](const auto& entries) {
      float largest = 0;
      for (const auto& [m, d] : entries)
        if (std::fabs(d) > std::fabs(largest)) largest = d;
      return largest;
    };
    ExpectMerged(random, method, {c.tensor}, c.coefficients, {Elements(c.tensor, c.lambda, rule)});
  });
}

// Worked out by hand: three models, four elements, over a base of ones.
TEST(Elementwise, ExamplesByHand) {
  const std::vector<float> base = {1, 1, 1, 1};
  const std::vector<std::vector<float>> d = {{0.5f, 0.5f, 0, -2}, {0, 0.25f, 0, 1}, {0, -0.25f, 0, 2}};
  const auto merge = [&](const char* name, std::vector<std::pair<const char*, double>> parameters) {
    const MethodInfo& method = *FindMethod(name);
    test::ScopeTensor tensor("w", base.size());
    tensor.base.bytes = reference::Encode(DType::kF32, base);
    for (const auto& entries : d) {
      std::vector<float> lanes = base;
      for (size_t i = 0; i < lanes.size(); ++i) lanes[i] += entries[i];
      tensor.models.push_back({.type = DType::kF32, .bytes = reference::Encode(DType::kF32, lanes)});
    }
    tensor.coefficients = test::DefaultCoefficients(method, d.size());
    for (const auto& [parameter, value] : parameters) SetShared(method, tensor.coefficients, parameter, value);
    Random random(1);
    return reference::Decode(DType::kF32, test::Drive(method, {tensor}, {.type = DType::kF32}, random).tensors[0]);
  };
  using Lanes = std::vector<float>;
  EXPECT_EQ(merge("ram", {}),
            (Lanes{1.5f, 1 + (0.5f / 3 + 0.25f / 3 - 0.25f / 3), 1, 1 + (-2.0f / 3 + 1.0f / 3 + 2.0f / 3)}));
  // The first model has one change of its own and two that others share: 2/1, clamped to 0.5, makes 1 + 0.5 * 0.5.
  EXPECT_EQ(merge("ramplus_tl", {{"r", 0.5}, {"alpha", 0.5}})[0], 1 + 0.5f * 1.25f);
  EXPECT_EQ(merge("magmax", {}), (Lanes{1.5f, 1.5f, 1, -1}));   // -2 comes before 2
  // Sums: 0.5, 0.5, 0, 1. With l = 1 the first needs 0.5 > 0; the second 0.5 > 0, 0.25 > 0.25 (no), 0.25 > 0.75 (no);
  // the last 2 > 3 (no), 1 > 0, 2 > 1.
  EXPECT_EQ(merge("consensus_ta", {{"k", 1}, {"l", 1}}), (Lanes{1.5f, 1.5f, 1, 2}));
  EXPECT_EQ(merge("consensus_ta", {{"k", 2}, {"l", 1}}), (Lanes{1, 1, 1, 2}));
}

}  // namespace
}  // namespace braid
