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

// Default of a number that has none: whoever needs it must set it, and what does without it can tell.
inline constexpr double kNoDefault = -1e300;

struct ParameterSpec {
  std::string_view name;
  ParameterKind kind = ParameterKind::kNumber;
  ParameterScope scope = ParameterScope::kTensor;
  double default_value = 0;                     // or kNoDefault
  double min = -1e30, max = 1e30;               // of a kNumber, inclusive
  bool whole = false;                           // of a kNumber: no fractions
  std::vector<std::string_view> choices = {};   // of a kChoice
  bool required_in_yaml = false;                // mergekit has no default for it; without one of ours, in TOML too
  std::string_view help;
};

// Parameters that many methods share.
inline ParameterSpec WeightParameter() {
  return {.name = "weight", .scope = ParameterScope::kModel, .default_value = 1, .required_in_yaml = true,
          .help = "share of this model; negative forgets a task"};
}
inline ParameterSpec NormalizeParameter(bool by_default) {
  return {.name = "normalize", .kind = ParameterKind::kFlag, .default_value = by_default ? 1.0 : 0.0,
          .help = "divide by the sum of the weights"};
}
inline ParameterSpec LambdaParameter() {
  return {.name = "lambda", .default_value = 1, .help = "scale of the merged task vector"};
}
// Of a method that need not have a base.
inline ParameterSpec LambdaWithBaseParameter() {
  return {.name = "lambda", .default_value = 1,
          .help = "scale of the merged task vector; without a base there is none, and this has no effect"};
}
inline ParameterSpec DensityParameter(std::string_view help) {
  return {.name = "density", .scope = ParameterScope::kModel, .default_value = 1, .min = 0, .max = 1, .help = help};
}
inline ParameterSpec RescaleParameter(bool by_default) {
  return {.name = "rescale", .kind = ParameterKind::kFlag, .default_value = by_default ? 1.0 : 0.0,
          .help = "restore the l1 norm of a task vector that lost entries"};
}
inline ParameterSpec SeedParameter() {
  return {.name = "seed", .scope = ParameterScope::kRecipe, .min = 0, .max = 9007199254740991, .whole = true,
          .help = "of the random draws; the same seed gives the same model"};
}
inline ParameterSpec Int8MaskParameter() {
  return {.name = "int8_mask", .kind = ParameterKind::kFlag, .help = "accepted for mergekit's sake; changes nothing"};
}

}  // namespace braid
