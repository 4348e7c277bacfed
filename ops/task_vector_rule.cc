#include "ops/task_vector_rule.h"

#include <cmath>

namespace braid {
namespace {

constexpr float kLeastWeightSum = 1e-8f;   // below it, normalize does nothing (without an election)
constexpr double kLeastNorm = 1e-7;        // below it, rescale does nothing

}  // namespace

TaskVectorRule::TaskVectorRule(const MethodInfo& method, bool elect, const Coefficients& c)
    : weight_(method.At("weight")), lambda_(method.IndexOf("lambda")),
      normalize_(method.IndexOf("normalize")), elect_(elect), by_count_(Shared(c, method.IndexOf("elect"), 0) != 0),
      weighted_vote_(Shared(c, method.IndexOf("elect_weighted"), 1) != 0) {}

TaskVectorBlock TaskVectorRule::BlockFor(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const {
  scratch.weights.clear();
  for (size_t m = 0; m < c.model.size(); ++m) scratch.weights.push_back(static_cast<float>(WeightOf(c, m)));
  const float sum = SumOfWeights(scratch.weights);
  scratch.weights.clear();
  scratch.voters.clear();
  for (size_t m = 0; m < c.model.size(); ++m) {
    if ((tile != nullptr && tile->models[m].bytes == nullptr) || WeightOf(c, m) == 0) continue;
    scratch.voters.push_back(m);
    scratch.weights.push_back(static_cast<float>(WeightOf(c, m)));
  }
  scratch.sources.resize(scratch.weights.size());
  scratch.min_keys.assign(scratch.weights.size(), 0);
  return {.base = nullptr,
          .models = scratch.sources.data(),
          .num_models = scratch.weights.size(),
          .weight = scratch.weights.data(),
          .factor = nullptr,
          .min_key = scratch.min_keys.data(),
          .elect = elect_,
          .elect_by_count = by_count_,
          .elect_weighted = weighted_vote_,
          .zero_elects_minus = false,
          .divide = Shared(c, normalize_, 0) != 0,
          .divisor = std::fabs(sum) < kLeastWeightSum ? 1.0f : sum,
          .lambda = static_cast<float>(Shared(c, lambda_, 1))};
}

float RescaleFactor(double norm, double kept_norm) {
  const bool finite = std::isfinite(norm) && std::isfinite(kept_norm);
  if (!finite || norm < kLeastNorm || kept_norm < kLeastNorm) return 1;
  return static_cast<float>(norm / kept_norm);
}

std::vector<ParameterSpec> TaskVectorParameters(bool normalize, std::initializer_list<ParameterSpec> own) {
  std::vector<ParameterSpec> parameters = {WeightParameter(), NormalizeParameter(normalize), LambdaParameter(),
                                           Int8MaskParameter()};
  parameters.insert(parameters.end(), own);
  return parameters;
}

}  // namespace braid
