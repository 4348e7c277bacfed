// arcee_fusion against scalar code written from its formula (methods.md).
#include "ops/elementary.h"

#include "tests/ops/delta_scenario.h"

namespace braid {
namespace {

using test::DeltaTensor;
using test::Random;
using test::SetShared;

using Function = std::function<double(double)>;

// Of a row, in float64, by 16 interleaved sums that are folded at distances 8, 4, 2, 1.
double Folded(size_t row, const std::function<double(size_t)>& term) {
  double sums[16] = {};
  for (size_t i = 0; i < row; ++i) sums[i % 16] += term(i);
  for (size_t step : {8, 4, 2, 1})
    for (size_t i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}

float Divergence(const float* x, const float* base, size_t row, const Function& exp, const Function& log) {
  const auto softmax = [&](const float* lanes) {
    double largest = -std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < row; ++i) largest = std::fmax(largest, static_cast<double>(lanes[i]));
    const double scale = 1 / Folded(row, [&](size_t i) { return exp(static_cast<double>(lanes[i]) - largest); });
    return [=, &exp](size_t i) { return exp(static_cast<double>(lanes[i]) - largest) * scale + 1e-8; };
  };
  const auto p = softmax(x), q = softmax(base);
  const double sum = Folded(row, [&](size_t i) { return p(i) * log(p(i) / q(i)); });
  return static_cast<float>(sum < 0 ? 0 : sum);
}

struct Importances {
  std::vector<float> of;
  float threshold = 0;
};

Importances Reference(const DeltaTensor& tensor, size_t row, const Function& exp, const Function& log) {
  const size_t n = tensor.base.size();
  Importances result;
  for (size_t first = 0; first < n; first += row) {
    const float divergence = Divergence(&tensor.models[0][first], &tensor.base[first], row, exp, log);
    for (size_t i = first; i < first + row; ++i)
      result.of.push_back(std::fabs(tensor.models[0][i] - tensor.base[i]) * divergence);
  }
  std::vector<float> sorted = result.of;
  std::sort(sorted.begin(), sorted.end(), [](float a, float b) { return std::isnan(a) < std::isnan(b) || a < b; });
  const auto quantile = [&](double q) { return sorted[static_cast<size_t>(q * static_cast<double>(n - 1))]; };
  result.threshold = quantile(0.5) + 1.5f * (quantile(0.75) - quantile(0.25));
  return result;
}

std::vector<float> Merged(const DeltaTensor& tensor, const Importances& importances, float lambda) {
  std::vector<float> elements;
  for (size_t i = 0; i < tensor.base.size(); ++i) {
    const bool kept = importances.of[i] >= importances.threshold;
    elements.push_back(test::Applied(tensor, i, kept ? tensor.models[0][i] - tensor.base[i] : 0, lambda));
  }
  return elements;
}

DeltaTensor RandomTensor(Random& random, int number, size_t* row) {
  *row = random.OneOf<size_t>({1, 2, 5, 16, 64, 1000, 1024, 4096, 5000, 40'001});
  const size_t rows = number % 10 == 0 ? 1 + 200'000 / *row : 1 + random.Below(std::max<size_t>(1, 6000 / *row));
  return test::RandomDeltaTensor(random, "w", *row * rows, 1,
                                 {.row = *row, .odd_lanes = random.OneOf({0.0, 0.0, 0.0, 1e-4}),
                                  .scales = {1e-2, 1e-4, 1.0}});
}

TEST(ArceeFusion, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("arcee_fusion");
  test::RepeatCases(60, 3, [&](int number) {
    size_t row = 0;
    const DeltaTensor tensor = RandomTensor(random, number, &row);
    Coefficients c = test::DefaultCoefficients(method, 1);
    const float lambda = random.OneOf({1.0f, 0.5f});
    SetShared(method, c, "lambda", static_cast<double>(lambda));
    ExpectMerged(random, method, {tensor}, c, {Merged(tensor, Reference(tensor, row, Exp, Log), lambda)});
  });
}

// With the C library's functions, whose last bits differ, almost all elements are the same.
TEST(ArceeFusion, IsThatOfTheCLibrarysFunctions) {
  Random random;
  const MethodInfo& method = *FindMethod("arcee_fusion");
  for (int number = 0; number < 10; ++number) {
    const size_t row = 1000;
    DeltaTensor tensor = test::RandomDeltaTensor(random, "w", 64 * row, 1, {.row = row, .scales = {1e-2}});
    const Importances ours = Reference(tensor, row, Exp, Log);
    const Importances theirs = Reference(tensor, row, [](double x) { return std::exp(x); },
                                         [](double x) { return std::log(x); });
    EXPECT_NEAR(ours.threshold, theirs.threshold, 1e-6f * theirs.threshold);
    tensor.sources.coefficients = test::DefaultCoefficients(method, 1);
    const test::Driven driven = test::Drive(method, {tensor.sources}, {.type = DType::kF32}, random);
    const std::vector<float> a = reference::Decode(DType::kF32, driven.tensors[0]), b = Merged(tensor, theirs, 1);
    size_t differ = 0;
    for (size_t i = 0; i < a.size(); ++i) differ += !test::SameLane(a[i], b[i]);
    EXPECT_LE(differ, 2u);
  }
}

TEST(ArceeFusion, AModelWithoutTheTensorLeavesTheBase) {
  Random random;
  const MethodInfo& method = *FindMethod("arcee_fusion");
  DeltaTensor tensor = test::RandomDeltaTensor(random, "w", 100, 1, {.row = 10, .missing = 1});
  ExpectMerged(random, method, {tensor}, test::DefaultCoefficients(method, 1), {tensor.base});
}

// One row of four, worked out by hand: importances order as |d|, so the quartiles are sorted[0], [1] and [2] of
// 0.1, 0.2, 0.4, 3.2: the threshold is 0.2 + 1.5 (0.4 - 0.1) = 0.65, times the row's divergence.
TEST(ArceeFusion, ExampleByHand) {
  const MethodInfo& method = *FindMethod("arcee_fusion");
  test::ScopeTensor tensor("w", 4);
  tensor.base.bytes = reference::Encode(DType::kF32, std::vector<float>{0, 0, 0, 0});
  tensor.models.push_back({.type = DType::kF32,
                           .bytes = reference::Encode(DType::kF32, std::vector<float>{0.4f, -3.2f, 0.2f, 0.1f})});
  tensor.coefficients = test::DefaultCoefficients(method, 1);
  Random random(1);
  const test::Driven driven = test::Drive(method, {tensor}, {.type = DType::kF32}, random);
  EXPECT_EQ(reference::Decode(DType::kF32, driven.tensors[0]), (std::vector<float>{0, -3.2f, 0, 0}));
}

}  // namespace
}  // namespace braid
