// Coefficients of any method that adds to a base, drawn at random.
#pragma once

#include "tests/ops/merge_driver.h"

namespace braid::test {

inline Coefficients RandomCoefficients(const MethodInfo& method, size_t models, bool model_scope, Random& random) {
  Coefficients c = DefaultCoefficients(method, models);
  for (size_t m = 0; m < models; ++m) {
    if (method.Find("weight") != nullptr) SetModel(method, c, m, "weight", random.OneOf<double>({1, 0.5, -0.25, 0}));
    if (method.Find("density") != nullptr) SetModel(method, c, m, "density", random.OneOf<double>({0.5, 0.3, 0.6}));
  }
  if (method.Find("scope") != nullptr && (method.name == "ties" || method.name == "pcb"))
    SetShared(method, c, "scope", model_scope ? 1 : 0);
  if (method.Find("select_topk") != nullptr) SetShared(method, c, "select_topk", 0.4);
  if (method.name == "breadcrumbs" && random.Chance(0.5)) SetShared(method, c, "scope", 1);
  if (method.name == "nearswap") SetShared(method, c, "t", 0.25);
  if (method.name == "model_stock") SetShared(method, c, "filter_wise", random.OneOf<double>({0, 1}));
  if (method.name == "nuslerp") SetShared(method, c, "axis", random.OneOf<double>({0, 1, 2}));
  return c;
}

}  // namespace braid::test
