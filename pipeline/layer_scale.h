// LiNeS: lambda of layer l of L is multiplied by alpha + beta l / (L - 1), outside of the layers by alpha.
//
// Where a recipe gives no alpha, it is the l1 norm of the mean of the task vectors, over that of what they are merged
// to, both over the whole model: methods.md, row `layer_scale`. So all scopes are measured before one is merged. For a
// single model it is 1 - beta.
#pragma once

#include <map>
#include <string_view>
#include <vector>

#include "ops/merger.h"
#include "pipeline/plan.h"

namespace braid {

// Of a plan whose tensors have their sources and coefficients, and, in a recipe with a layer_scale, their layer in
// these: multiplies lambda, or decides that scopes are measured first (Plan::measured).
void PlanLayerScale(Plan* plan);

// A copy of the plan's coefficients with a lambda of 1: what a measured scope is measured with.
std::vector<Coefficients> UnscaledCoefficients(const Plan& plan);

// From the norms of all measured scopes, by the name of their first tensor. 0 where nothing is merged.
double AutomaticAlpha(const std::map<std::string_view, TaskVectorNorms>& norms);

// A copy of the plan's coefficients with the lambda that this alpha makes.
std::vector<Coefficients> ScaledCoefficients(const Plan& plan, double alpha);

}  // namespace braid
