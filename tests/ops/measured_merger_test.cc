// The norms that a measured merger finds, of every method with a lambda, against plain sums over what the method merges
// to.
#include "ops/measured_merger.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/merge_driver.h"
#include "tests/ops/method_in_parts.h"
#include "tests/ops/random_coefficients.h"
#include "tests/ops/reference.h"

namespace braid::test {
namespace {

// Sums of 16 interleaved lanes, in a fixed tree.
double Norm(const std::vector<float>& lanes) {
  double sums[16] = {};
  for (size_t i = 0; i < lanes.size(); ++i)
    if (std::isfinite(lanes[i])) sums[i % 16] += std::fabs(static_cast<double>(lanes[i]));
  for (size_t step = 8; step > 0; step /= 2)
    for (size_t i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}

// The sum over units of their norms, each divided.
double NormByUnits(const std::vector<float>& lanes, size_t unit, double divisor) {
  double sum = 0;
  for (size_t at = 0; at < lanes.size(); at += unit) {
    const auto begin = lanes.begin() + static_cast<ptrdiff_t>(at);
    sum += Norm({begin, begin + static_cast<ptrdiff_t>(std::min(unit, lanes.size() - at))}) / divisor;
  }
  return sum;
}

// Multiples of 1/64: differences and sums with them are exact, and many have one magnitude.
Source Coarse(Random& random, DType type, size_t n, double infinities = 0) {
  std::vector<float> lanes(n);
  for (float& lane : lanes) lane = (static_cast<float>(random.Below(129)) - 64) / 64;
  for (float& lane : lanes)
    if (random.Chance(infinities)) lane = INFINITY;
  return {type, reference::Encode(type, lanes)};
}

std::vector<float> LanesOf(const Source& source) { return reference::Decode(source.type, source.bytes); }

std::vector<float> Differences(const std::vector<float>& x, const std::vector<float>& base) {
  std::vector<float> d(x.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = x[i] - base[i];
  return d;
}

// Task vectors over a base of zeros: a method that looks at nothing else merges them to the merged task vector.
std::vector<ScopeTensor> WithoutBase(std::vector<ScopeTensor> tensors) {
  for (ScopeTensor& tensor : tensors) {
    const std::vector<float> base = LanesOf(tensor.base);
    for (Source& model : tensor.models)
      if (!model.bytes.empty())
        model = {DType::kF32, reference::Encode(DType::kF32, Differences(LanesOf(model), base))};
    tensor.base = {DType::kF32, reference::Encode(DType::kF32, std::vector<float>(base.size(), 0.0f))};
  }
  return tensors;
}

class MeasuredTest : public testing::TestWithParam<std::string> {};

TEST_P(MeasuredTest, NormsAreThoseOfWhatIsMerged) {
  const MethodInfo& method = *FindMethod(GetParam());
  const MethodInfo measured = InParts<NewMeasuredMerger>(method);
  Random random;
  for (int round = 0; round < 12; ++round) {
    const size_t models =
        std::clamp<size_t>(1 + random.Below(4), method.least_models, std::min<size_t>(method.most_models, 4));
    const bool model_scope =
        method.whole_model || ((method.name == "ties" || method.name == "pcb") && random.Chance(0.5));
    std::vector<ScopeTensor> tensors;
    for (size_t t = 0; t < (model_scope ? 3u : 1u); ++t) {
      const size_t row = random.OneOf<size_t>({1, 37, 1024, 9000}), rows = 1 + random.Below(150'000 / row);
      ScopeTensor& tensor = tensors.emplace_back("tensor" + std::to_string(3 - t), row * rows);
      tensor.row = row, tensor.slice = row;
      tensor.base = Coarse(random, random.OneOf<DType>({DType::kF32, DType::kBF16}), row * rows);
      const double infinities = random.Chance(0.2) ? 1e-4 : 0;
      for (size_t m = 0; m < models; ++m)
        tensor.models.push_back(
            models > 1 && random.Chance(0.2)
                ? Source{}
                : Coarse(random, random.OneOf<DType>({DType::kF32, DType::kBF16}), row * rows, infinities));
      tensor.coefficients = RandomCoefficients(method, models, model_scope, random);
      if (t > 0) {   // densities are one number per model
        const Coefficients own = std::exchange(tensor.coefficients, tensors[0].coefficients);
        for (size_t m = 0; method.Find("weight") != nullptr && m < models; ++m) {
          const auto weight = method.At("weight");
          tensor.coefficients.model[m][weight] = own.model[m][weight];
        }
      }
    }
    for (ScopeTensor& tensor : tensors)   // as a plan has it: a model that lacks a tensor has no weight there
      for (size_t m = 0; method.Find("weight") != nullptr && m < models; ++m)
        if (tensor.models[m].bytes.empty()) SetModel(method, tensor.coefficients, m, "weight", 0);
    const DriveOptions options{.blocks_per_tile = 1 + random.Below(3), .workers = 1 + random.Below(3)};
    const Driven driven = Drive(measured, tensors, options, random);
    const Driven plain = Drive(method, tensors, options, random);
    ASSERT_EQ(driven.tensors, plain.tensors) << "measuring changes nothing";

    // Its statistics are of softmax(x): the base stays, and what is added to it is exact.
    const bool needs_base = method.name == "arcee_fusion";
    const std::vector<ScopeTensor> inputs = needs_base ? tensors : WithoutBase(tensors);
    const Driven merged = Drive(method, inputs, options, random);
    double mean_norm = 0, merged_norm = 0;
    std::vector<size_t> by_name(tensors.size());
    for (size_t t = 0; t < tensors.size(); ++t) by_name[tensors.size() - 1 - t] = t;
    for (size_t t : by_name) {
      const ScopeTensor& tensor = tensors[t];
      const std::vector<float> base = LanesOf(tensor.base);
      std::vector<float> sum(tensor.elements, 0.0f);
      double count = 0;
      for (size_t m = 0; m < models; ++m) {
        const int weight = method.IndexOf("weight");
        if (tensor.models[m].bytes.empty()) continue;
        if (weight >= 0 && tensor.coefficients.model[m][static_cast<size_t>(weight)] == 0) continue;
        const std::vector<float> d = Differences(LanesOf(tensor.models[m]), base);
        for (size_t i = 0; i < d.size(); ++i) sum[i] += d[i];
        ++count;
      }
      const uint64_t tile_unit = method.TileUnit(tensor.coefficients, FactsOf(tensor));
      const size_t unit = tile_unit == 0 ? kReductionBlock : tile_unit;
      if (count > 0) mean_norm += NormByUnits(sum, unit, count);
      std::vector<float> lanes = reference::Decode(DType::kF32, merged.tensors[t]);
      if (needs_base) lanes = Differences(lanes, base);
      merged_norm += NormByUnits(lanes, unit, 1);
    }
    ASSERT_EQ(driven.norms.mean, mean_norm) << "round " << round;
    ASSERT_EQ(driven.norms.merged, merged_norm) << "round " << round;
  }
}

std::vector<std::string> MethodsWithLambda() {
  std::vector<std::string> names;
  for (const MethodInfo& method : Methods())
    if (method.Find("lambda") != nullptr) names.emplace_back(method.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(EveryMethod, MeasuredTest, testing::ValuesIn(MethodsWithLambda()),
                         [](const auto& its) { return its.param; });

}  // namespace
}  // namespace braid::test
