// sce against scalar code written from its formula (methods.md).
#include <numeric>

#include "tests/ops/delta_scenario.h"

namespace braid {
namespace {

using test::DeltaTensor;
using test::Random;
using test::SetShared;

// Of the float32 variance: all NaNs are equal and the largest.
uint32_t Rank(float variance) { return std::isnan(variance) ? 0x7f800001 : test::ToBits(std::fabs(variance)); }

float Variance(const std::vector<std::pair<size_t, float>>& entries) {
  double mean = 0, sum = 0;
  for (const auto& [m, d] : entries) mean += static_cast<double>(d);
  mean /= static_cast<double>(entries.size());
  for (const auto& [m, d] : entries) sum += (static_cast<double>(d) - mean) * (static_cast<double>(d) - mean);
  return static_cast<float>(sum / static_cast<double>(entries.size()));
}

// Blocks of 65,536, 16 interleaved sums in each, folded at distances 8, 4, 2, 1; then the blocks in order.
double SumOfSquares(const std::vector<float>& lanes) {
  double total = 0;
  for (size_t block = 0; block < lanes.size(); block += 65'536) {
    double sums[16] = {};
    for (size_t i = block; i < std::min(lanes.size(), block + 65'536); ++i)
      sums[i % 16] += static_cast<double>(lanes[i]) * static_cast<double>(lanes[i]);
    for (size_t step : {8, 4, 2, 1})
      for (size_t i = 0; i < step; ++i) sums[i] += sums[i + step];
    total += sums[0];
  }
  return total;
}

struct Expected {
  std::vector<float> elements;
  uint64_t kept = 0, conflicts = 0;
};

Expected Reference(const DeltaTensor& tensor, double select_topk, float lambda) {
  const size_t n = tensor.base.size(), models = tensor.models.size();
  Expected expected;
  std::vector<char> selected(n, 1);
  expected.kept = n;
  if (select_topk < 1) {
    std::vector<uint32_t> ranks(n);
    for (size_t i = 0; i < n; ++i) {
      const auto entries = test::EntriesOf(tensor, i);
      ranks[i] = entries.empty() ? 0 : Rank(Variance(entries));
    }
    const auto not_zero = static_cast<double>(n - static_cast<size_t>(std::count(ranks.begin(), ranks.end(), 0u)));
    expected.kept = static_cast<uint64_t>(select_topk * not_zero);
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return ranks[a] > ranks[b]; });
    std::fill(selected.begin(), selected.end(), 0);
    for (size_t k = 0; k < expected.kept; ++k) selected[order[k]] = 1;
  }
  std::vector<double> energy(models);
  double all = 0;
  size_t present = 0;
  for (size_t m = 0; m < models; ++m) {
    if (tensor.models[m].empty()) continue;
    ++present;
    std::vector<float> d(n);
    for (size_t i = 0; i < n; ++i) d[i] = selected[i] ? tensor.models[m][i] - tensor.base[i] : 0;
    energy[m] = SumOfSquares(d) / static_cast<double>(n);
  }
  for (double e : energy) all += e;
  for (size_t i = 0; i < n; ++i) {
    float total = 0, sum = 0, divisor = 0;
    bool conflict = false;
    auto entries = test::EntriesOf(tensor, i);
    for (auto& [m, d] : entries) d = selected[i] ? d : 0;
    for (const auto& [m, d] : entries) total += d;
    for (const auto& [m, d] : entries) {
      const float weight = std::fabs(all) < 1e-6 ? 1.0f / static_cast<float>(present)
          : static_cast<float>(energy[m] / all);
      const bool agrees = total >= 0 ? d > 0 : d < 0;
      conflict |= total >= 0 ? d < 0 : d > 0;
      if (agrees) sum += d * weight, divisor += weight;
    }
    expected.conflicts += conflict;
    expected.elements.push_back(test::Applied(tensor, i, sum / std::max(divisor, 1e-6f), lambda));
  }
  return expected;
}

TEST(Sce, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("sce");
  test::RepeatCases(100, 3, [&](int number) {
    const size_t models = 1 + random.Below(6);
    const DeltaTensor tensor =
        test::RandomDeltaTensor(random, "w", test::RandomSize(random, number % 10 == 0 ? 200'000 : 5000), models,
                                {.odd_lanes = random.OneOf({0.0, 0.0, 0.001}), .missing = random.OneOf({0.0, 0.0, 0.3}),
                                 .scales = {1e-2, 1e-4, 1.0}});
    Coefficients c = test::DefaultCoefficients(method, models);
    const double select = random.OneOf({1.0, 0.5, 0.1, 0.9, 0.001, 1e-9, 0.0});
    const float lambda = random.OneOf({1.0f, 0.5f, -1.0f});
    SetShared(method, c, "select_topk", select);
    SetShared(method, c, "lambda", static_cast<double>(lambda));
    Expected expected = Reference(tensor, select, lambda);
    if (select == 0) {   // no model is read then, so a NaN in one does not show
      expected.elements = tensor.base;
      expected.conflicts = 0;
    }
    const test::Driven driven = ExpectMerged(random, method, {tensor}, c, {expected.elements});
    EXPECT_EQ(driven.kept, expected.kept);
    const bool nan = std::any_of(expected.elements.begin(), expected.elements.end(),
                                 [](float x) { return std::isnan(x); });
    if (!nan) {   // what an element that is NaN counts as is not defined
      EXPECT_EQ(driven.counts.conflicts, expected.conflicts);
    }
  });
}

// Many variances are equal, so the quota is spent in one of several tiles.
TEST(Sce, EqualVariancesAreKeptByIndexAcrossTiles) {
  Random random;
  const MethodInfo& method = *FindMethod("sce");
  DeltaTensor tensor{.sources = test::ScopeTensor("w", 250'000), .base = std::vector<float>(250'000, 1.0f),
                     .models = {}};
  tensor.sources.base.bytes = reference::Encode(DType::kF32, tensor.base);
  for (int m = 0; m < 3; ++m) {
    std::vector<float> lanes = tensor.base;
    for (float& lane : lanes) lane += random.OneOf({0.0f, 0.25f, -0.25f});
    tensor.sources.models.push_back({.type = DType::kF32, .bytes = reference::Encode(DType::kF32, lanes)});
    tensor.models.push_back(lanes);
  }
  for (double select : {0.1, 0.37, 0.8}) {
    Coefficients c = test::DefaultCoefficients(method, 3);
    SetShared(method, c, "select_topk", select);
    const Expected expected = Reference(tensor, select, 1);
    EXPECT_GT(expected.kept, 10'000u);
    ExpectMerged(random, method, {tensor}, c, {expected.elements});
  }
}

// With the help of a sample, and without. Gaussian entries have many variances, so that several share a bin of a
// bracket.
TEST(Sce, SampledEqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("sce");
  constexpr size_t kSize = 300'000;
  for (double zeros : {0.0, 0.6})
    for (double select : {0.03, 0.5, 0.999}) {
      DeltaTensor tensor{.sources = test::ScopeTensor("w", kSize), .base = std::vector<float>(kSize, 0.5f),
                         .models = {}};
      tensor.sources.base.bytes = reference::Encode(DType::kF32, tensor.base);
      std::vector<char> stays(kSize);
      for (char& stay : stays) stay = random.Chance(zeros);
      for (int m = 0; m < 3; ++m) {
        std::vector<float> lanes = tensor.base;
        for (size_t i = 0; i < kSize; ++i) lanes[i] += stays[i] ? 0.0f : static_cast<float>(random.Normal() * 0.02);
        tensor.sources.models.push_back({.type = DType::kF32, .bytes = reference::Encode(DType::kF32, lanes)});
        tensor.models.push_back(lanes);
      }
      Coefficients c = test::DefaultCoefficients(method, 3);
      SetShared(method, c, "select_topk", select);
      const Expected expected = Reference(tensor, select, 1);
      tensor.sources.coefficients = c;
      for (Approach approach : {Approach::kPlain, Approach::kSampled}) {
        SCOPED_TRACE(testing::Message() << select << " of " << 1 - zeros << ", approach "
                     << static_cast<int>(approach));
        const test::Driven driven = test::Drive(method, {tensor.sources},
                                                {.blocks_per_tile = 2, .workers = 3, .approach = approach}, random);
        test::ExpectBytes(expected.elements, DType::kF32, driven.tensors[0]);
        EXPECT_EQ(driven.kept, expected.kept);
        EXPECT_EQ(driven.counts.conflicts, expected.conflicts);
      }
    }
}

// Two models, worked out by hand: energies 4 and 1 (of two elements), weights 0.8 and 0.2.
TEST(Sce, ExampleByHand) {
  const MethodInfo& method = *FindMethod("sce");
  DeltaTensor tensor{.sources = test::ScopeTensor("w", 2), .base = {0, 0}, .models = {{2, 2}, {-1, 1}}};
  tensor.sources.base.bytes = reference::Encode(DType::kF32, tensor.base);
  for (const auto& lanes : tensor.models)
    tensor.sources.models.push_back({.type = DType::kF32, .bytes = reference::Encode(DType::kF32, lanes)});
  Random random(1);
  tensor.sources.coefficients = test::DefaultCoefficients(method, 2);
  const auto merged = [&] {
    return reference::Decode(DType::kF32,
                             test::Drive(method, {tensor.sources}, {.type = DType::kF32}, random).tensors[0]);
  };
  const std::vector<float> all = merged();
  EXPECT_EQ(all[0], 0.8f * 2 / 0.8f);                      // plus is elected, -1 is erased
  EXPECT_EQ(all[1], (0.8f * 2 + 0.2f) / (0.8f + 0.2f));
  SetShared(method, tensor.sources.coefficients, "select_topk", 0.5);   // variances 2.25 and 0.25
  EXPECT_EQ(merged()[1], 0);
}

}  // namespace
}  // namespace braid
