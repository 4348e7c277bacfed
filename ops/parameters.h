// What a merge method lets its user set. The recipe readers, the plan and `--help` all work from these
// declarations, so that a method names its parameters in one place.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace braid {

enum class ParameterKind : uint8_t {
  kNumber,
  kFlag,    // 0 or 1
  kChoice,  // index into `choices`
};

enum class ParameterScope : uint8_t {
  kModel,   // one value per model and output tensor: weight, density
  kTensor,  // one value per output tensor: lambda, normalize
  kRecipe,  // one value for the whole recipe: scope, ties_at_threshold
};

struct ParameterSpec {
  std::string_view name;
  ParameterKind kind = ParameterKind::kNumber;
  ParameterScope scope = ParameterScope::kTensor;
  double default_value = 0;
  double min = -1e30, max = 1e30;               // of a kNumber, inclusive
  std::vector<std::string_view> choices = {};   // of a kChoice
  bool required_in_yaml = false;                // mergekit has no default for it
  std::string_view help;
};

}  // namespace braid
