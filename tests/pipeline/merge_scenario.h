// A merge drawn at random: sources, recipe, and what the plain reference says must come out. Everything that the
// pipeline resolves (gradients, filters, missing tensors, types) is worked out here once more, independently.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/recipe.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid::fixture {

// A parameter as a recipe gives it: a number or gradient, and perhaps another one for tensors with `part` in the name.
struct Rule {
  std::vector<double> values = {1};
  std::string part = {};
  std::vector<double> part_values = {};
  double Of(const std::string& tensor, int layers) const;
};

struct Source {
  std::string name;
  std::vector<StoredTensor> tensors;
  Rule weight, density;
  const StoredTensor* Find(const std::string& tensor) const;
};

struct Scenario {
  std::string method = "ties";
  Syntax syntax = Syntax::kToml;
  int layers = 3;
  Source base;
  std::vector<Source> models;
  bool has_base = true;      // linear and average do without one
  Rule lambda, normalize;
  bool model_scope = false, keep_equals = false, majority = false, by_count = false, elect_weighted = true;
  bool rescale = false;
  std::optional<DType> dtype, out_dtype;
  OnMissing on_missing = OnMissing::kError;

  bool relative() const { return method == "ties" || method == "task_arithmetic"; }
};

Scenario RandomScenario(test::Random& random, const std::string& method, Syntax syntax);

// Writes sources and recipe; returns the recipe's path.
std::string WriteScenario(const TemporaryDirectory& place, const Scenario& scenario, test::Random& random);

// A scenario in a directory of its own.
struct WrittenScenario {
  TemporaryDirectory place;
  Scenario scenario;
  std::string recipe;   // paths
  std::string out;      // nothing is there yet
};

// Draws so many of all methods and hands each to `body`, until a test fails.
void ForRandomScenarios(int count, test::Random& random, const std::function<void(const WrittenScenario&)>& body);

struct Expected {
  std::vector<StoredTensor> tensors;
  uint64_t conflicts = 0, nans = 0;
};
Expected Reference(const Scenario& scenario);

}  // namespace braid::fixture
