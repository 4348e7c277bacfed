// pcb against scalar code written from its formula (methods.md, part 2, 8.1).
#include <numeric>

#include "ops/elementary.h"

#include "tests/ops/delta_scenario.h"

namespace braid {
namespace {

using test::DeltaTensor;
using test::ScopeTensor;
using test::Random;
using test::SetShared;

float Clamp(float x, float low, float high) { return std::min(std::max(x, low), high); }

// All tensors as one vector; a model's entries are 0 where it has no such tensor.
std::vector<std::vector<float>> Reference(const std::vector<DeltaTensor>& tensors, double ratio, float lambda) {
  const size_t models = tensors[0].models.size();
  std::vector<std::vector<float>> score(models), clamped(models);
  std::vector<float> t(models), top(models);
  for (size_t m = 0; m < models; ++m) {
    std::vector<float> d, sum;
    for (const DeltaTensor& tensor : tensors) {
      for (size_t i = 0; i < tensor.base.size(); ++i) {
        d.push_back(tensor.models[m].empty() ? 0 : tensor.models[m][i] - tensor.base[i]);
        sum.push_back(0);
        for (const auto& [k, entry] : test::EntriesOf(tensor, i)) sum.back() += entry;
      }
    }
    const auto n = static_cast<double>(d.size());
    std::vector<float> sorted;
    for (float x : d) sorted.push_back(std::fabs(x));
    std::sort(sorted.begin(), sorted.end());
    const float low = sorted[static_cast<size_t>(n * 0.0001)];
    const float high = sorted[static_cast<size_t>(std::max(0.0, n * (1 - 0.0001) - 1))];
    for (size_t i = 0; i < d.size(); ++i) {
      const float magnitude = Clamp(std::fabs(d[i]), low, high);
      const float place = high > low ? (magnitude - low) / (high - low) : 0;
      const float square = place * place, exponent = static_cast<float>(models) * square, product = d[i] * sum[i];
      score[m].push_back(static_cast<float>(Exp(exponent)) * static_cast<float>(Tanh(product)));
      clamped[m].push_back(d[i] > 0 ? magnitude : d[i] < 0 ? -magnitude : 0);
    }
    sorted = score[m];
    std::sort(sorted.begin(), sorted.end());
    t[m] = sorted[std::min(static_cast<size_t>(n * (1 - ratio)), sorted.size() - 1)];
    top[m] = sorted.back();
  }
  std::vector<std::vector<float>> expected;
  size_t at = 0;
  for (const DeltaTensor& tensor : tensors) {
    expected.emplace_back();
    for (size_t i = 0; i < tensor.base.size(); ++i, ++at) {
      float sum = 0, divisor = 0;
      for (size_t m = 0; m < models; ++m) {
        if (tensor.models[m].empty()) continue;
        const float reached = score[m][at] >= t[m] ? 1 : 0;
        const float c = top[m] > t[m] ? (Clamp(score[m][at], t[m], top[m]) - t[m]) / (top[m] - t[m]) : reached;
        sum += clamped[m][at] * c;
        divisor += c;
      }
      expected.back().push_back(test::Applied(tensor, i, sum / std::max(divisor, 1e-12f), lambda));
    }
  }
  return expected;
}

Coefficients Parameters(const MethodInfo& method, size_t models, double ratio, float lambda) {
  Coefficients c = test::DefaultCoefficients(method, models);
  SetShared(method, c, "ratio", ratio);
  SetShared(method, c, "lambda", static_cast<double>(lambda));
  return c;
}

TEST(Pcb, EqualsTheReferenceOverOneTensor) {
  Random random;
  const MethodInfo& method = *FindMethod("pcb");
  test::RepeatCases(60, 2, [&](int number) {
    const size_t models = 1 + random.Below(6);
    const std::vector<DeltaTensor> tensors = {
        test::RandomDeltaTensor(random, "w", test::RandomSize(random, number % 10 == 0 ? 200'000 : 5000), models,
                                {.missing = random.OneOf({0.0, 0.2}), .scales = {1e-3, 1.0}})};
    const double ratio = random.OneOf({0.1, 0.5, 0.01, 1.0, 1e-6});
    const float lambda = random.OneOf({1.0f, 1.2f});
    ExpectMerged(random, method, tensors, Parameters(method, models, ratio, lambda), Reference(tensors, ratio, lambda));
  });
}

TEST(Pcb, EqualsTheReferenceOverTheWholeModel) {
  Random random;
  const MethodInfo& method = *FindMethod("pcb");
  test::RepeatCases(40, 2, [&](int number) {
    const size_t models = 1 + random.Below(4);
    std::vector<DeltaTensor> tensors;
    for (const char* name : {"a", "b", "c"})
      tensors.push_back(test::RandomDeltaTensor(random, name,
                                                test::RandomSize(random, number % 10 == 0 ? 100'000 : 3000), models,
                                                {.missing = 0.2, .scales = {1e-3, 1e-2}}));
    const double ratio = random.OneOf({0.1, 0.5, 0.95});
    ExpectMerged(random, method, tensors, Parameters(method, models, ratio, 1), Reference(tensors, ratio, 1));
  });
}

// A sample that says nothing, and one that is wrong: the answer is the same, a round or two later.
TEST(Pcb, NeverDependsOnTheSample) {
  Random random;
  const MethodInfo& method = *FindMethod("pcb");
  enum class Sample { kGood, kTooSmall, kWrong };
  for (const Sample kind : {Sample::kGood, Sample::kTooSmall, Sample::kWrong}) {
    std::vector<DeltaTensor> tensors = {test::RandomDeltaTensor(random, "w", 60'000, 2, {})};
    for (size_t m = 0; m < 2; ++m) {   // no two entries alike
      for (size_t i = 0; i < 60'000; ++i)
        tensors[0].models[m][i] = tensors[0].base[i] + static_cast<float>(random.Normal() * 1e-3);
      tensors[0].sources.models[m] = {.type = DType::kF32,
                                      .bytes = reference::Encode(DType::kF32, tensors[0].models[m])};
    }
    const std::vector<float> expected = Reference(tensors, 0.1, 1)[0];
    ScopeTensor sources = tensors[0].sources;
    const Coefficients c = Parameters(method, 2, 0.1, 1);
    sources.coefficients = c;
    const auto merger = method.make(method, c, test::FactsOf(sources), Approach::kSampled);
    Scratch scratch(2);
    std::vector<EncodedLanes> models;
    for (const auto& model : sources.models) models.push_back({model.type, model.bytes.data()});
    const LaneTile whole{.count = 60'000,
                         .tensor = test::FactsOf(sources),
                         .base = {sources.base.type, sources.base.bytes.data()},
                         .models = models};
    std::vector<size_t> runs(60'000 / 32);
    std::iota(runs.begin(), runs.end(), size_t{0});
    if (kind == Sample::kTooSmall) runs.resize(20);
    if (kind == Sample::kWrong) std::fill(runs.begin(), runs.end(), random.Below(runs.size()));
    const size_t planned = merger->statistics_rounds();
    for (size_t r = 0; r < merger->statistics_rounds(); ++r) {
      const auto accumulator = merger->NewAccumulator(r);
      const auto count = [&](const LaneTile& tile) {
        merger->Accumulate(r, c, tile, nullptr, scratch, accumulator.get(), {});
      };
      const auto at = [&](EncodedLanes lanes, size_t first) {
        return EncodedLanes{lanes.type, lanes.bytes + first * static_cast<size_t>(LaneBytes(lanes.type))};
      };
      if (!merger->round(r).sample) count(whole);
      for (size_t i = 0; merger->round(r).sample && i < runs.size(); ++i) {
        const std::vector<EncodedLanes> its = {at(models[0], runs[i] * 32), at(models[1], runs[i] * 32)};
        const EncodedLanes base = at(whole.base, runs[i] * 32);
        count({.first = runs[i] * 32, .count = 32, .tensor = whole.tensor, .base = base, .models = its});
      }
      merger->Finish(r, accumulator.get(), {});
    }
    EXPECT_EQ(planned, 3u);
    EXPECT_EQ(merger->statistics_rounds(), planned + static_cast<size_t>(kind));
    std::vector<std::byte> out(60'000 * sizeof(float));
    MergeCounts counts;
    merger->Merge(c, whole, nullptr, scratch, DType::kF32, out.data(), &counts);
    test::ExpectBytes(expected, DType::kF32, out);
  }
}

// An entry that is no number spoils its element and nothing else.
TEST(Pcb, ANanStaysWhereItIs) {
  Random random;
  const MethodInfo& method = *FindMethod("pcb");
  DeltaTensor tensor = test::RandomDeltaTensor(random, "w", 20'000, 2, {.scales = {1e-2}});
  tensor.models[1][77] = NAN;
  tensor.sources.models[1] = {.type = DType::kF32, .bytes = reference::Encode(DType::kF32, tensor.models[1])};
  tensor.sources.coefficients = test::DefaultCoefficients(method, 2);
  const test::Driven driven = test::Drive(method, {tensor.sources}, {.type = DType::kF32}, random);
  const auto merged = reference::Decode(DType::kF32, driven.tensors[0]);
  size_t nans = 0, changed = 0;
  for (size_t i = 0; i < merged.size(); ++i) nans += std::isnan(merged[i]), changed += merged[i] != tensor.base[i];
  EXPECT_TRUE(std::isnan(merged[77]));
  EXPECT_EQ(nans, 1u);
  EXPECT_GT(changed, 500u);
}

}  // namespace
}  // namespace braid
