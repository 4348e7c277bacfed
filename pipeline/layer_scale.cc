#include "pipeline/layer_scale.h"

#include <algorithm>

namespace braid {
namespace {

size_t LambdaOf(const Plan& plan) { return plan.method->At("lambda"); }

// Models that have the tensor and a weight there.
size_t ModelsIn(const Plan& plan, const PlannedTensor& tensor) {
  const int weight = plan.method->IndexOf("weight");
  const Coefficients& c = plan.coefficients[tensor.coefficients];
  size_t models = 0;
  for (size_t m = 0; m < tensor.models.size(); ++m)
    models += tensor.models[m].present() && (weight < 0 || c.model[m][static_cast<size_t>(weight)] != 0);
  return models;
}

}  // namespace

std::vector<Coefficients> UnscaledCoefficients(const Plan& plan) {
  std::vector<Coefficients> unscaled = plan.coefficients;
  for (Coefficients& c : unscaled) c.shared[LambdaOf(plan)] = 1;
  return unscaled;
}

double AutomaticAlpha(const std::map<std::string_view, TaskVectorNorms>& norms) {
  TaskVectorNorms all;
  for (const auto& [name, scope] : norms) all.mean += scope.mean, all.merged += scope.merged;
  return all.merged > 0 ? all.mean / all.merged : 0;
}

std::vector<Coefficients> ScaledCoefficients(const Plan& plan, double alpha) {
  std::vector<Coefficients> scaled = plan.coefficients;
  for (Coefficients& c : scaled) c.shared[LambdaOf(plan)] *= alpha + plan.recipe.layer_scale->beta * c.layer;
  return scaled;
}

void PlanLayerScale(Plan* plan) {
  if (!plan->recipe.layer_scale) return;
  const std::optional<double>& alpha = plan->recipe.layer_scale->alpha;
  const auto merges_several = [&](const PlannedTensor& tensor) {
    return tensor.action == TensorAction::kMerge && ModelsIn(*plan, tensor) > 1;
  };
  plan->measured = !alpha && std::any_of(plan->tensors.begin(), plan->tensors.end(), merges_several);
  if (plan->measured) return;
  plan->coefficients = ScaledCoefficients(*plan, alpha.value_or(1 - plan->recipe.layer_scale->beta));
  for (Coefficients& c : plan->coefficients) c.layer = 0;
}

}  // namespace braid
