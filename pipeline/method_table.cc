#include "pipeline/method_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/merger.h"

namespace braid {
namespace {

constexpr double kUnbounded = 1e30;  // what ParameterSpec says when a method sets no bound

std::string_view KindName(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kNumber: return "number";
    case ParameterKind::kFlag: return "flag";
    case ParameterKind::kChoice: return "choice";
  }
  return "";
}

// A number that is not given here: no bound, no default.
bool IsNone(double value) { return !(std::abs(value) < kUnbounded); }

Json ValueToJson(const ParameterSpec& spec, double value) {
  if (spec.kind == ParameterKind::kFlag) return value != 0;
  if (spec.kind == ParameterKind::kChoice) return spec.choices.at(static_cast<size_t>(value));
  return IsNone(value) ? Json() : Json(value);
}

Json ParameterToJson(const ParameterSpec& spec) {
  Json out = {{"name", spec.name},
              {"type", KindName(spec.kind)},
              {"default", ValueToJson(spec, spec.default_value)},
              {"required_in_yaml", spec.required_in_yaml},
              {"one_value_per", ScopeName(spec.scope)},
              {"help", spec.help}};
  if (spec.kind == ParameterKind::kNumber)
    out["min"] = ValueToJson(spec, spec.min), out["max"] = ValueToJson(spec, spec.max);
  if (spec.kind == ParameterKind::kChoice) out["choices"] = spec.choices;
  return out;
}

// Values of a parameter that may change how many rounds there are.
std::vector<double> Probes(const ParameterSpec& spec) {
  if (spec.kind == ParameterKind::kFlag) return {0, 1};
  std::vector<double> probes;
  for (size_t i = 0; i < spec.choices.size(); ++i) probes.push_back(static_cast<double>(i));
  if (spec.kind != ParameterKind::kNumber || IsNone(spec.min) || IsNone(spec.max)) return probes;
  const double middle = (spec.min + spec.max) / 2;
  probes.push_back(spec.max - spec.min > 2 ? std::trunc(middle) : middle);
  return probes;
}

// For a tensor of a usual size, and as few models as the method takes, two at least.
size_t RoundsWith(const MethodInfo& method, const std::vector<double>& values) {
  const size_t models = std::min(std::max<size_t>(method.least_models, 2), method.most_models);
  const Coefficients c{.shared = values, .model = std::vector<std::vector<double>>(models, values)};
  if (method.check != nullptr && !method.check(method, c).empty()) return 1;
  const TensorFacts facts{.elements = 1 << 22, .row = 1 << 11, .key = 0};
  return method.make(method, c, facts, Approach::kPlain)->statistics_rounds() + 1;
}

}  // namespace

std::string_view BaseUseName(BaseUse use) {
  switch (use) {
    case BaseUse::kRequired: return "required";
    case BaseUse::kOptional: return "optional";
    case BaseUse::kIsFirst: return "first";
    case BaseUse::kIsASource: return "source";
    case BaseUse::kIsNotUsed: return "unused";
  }
  return "";
}

std::string ModelCountText(const MethodInfo& method) {
  if (method.most_models == SIZE_MAX) return fmt::format("{} or more", method.least_models);
  if (method.most_models == method.least_models) return fmt::format("{}", method.least_models);
  return fmt::format("{} to {}", method.least_models, method.most_models);
}

RoundCounts CountRounds(const MethodInfo& method) {
  std::vector<double> values;
  for (const ParameterSpec& spec : method.parameters)
    values.push_back(IsNone(spec.default_value) ? std::clamp(0.5, spec.min, spec.max) : spec.default_value);
  const size_t by_default = RoundsWith(method, values);
  RoundCounts counts{by_default, by_default};
  for (size_t p = 0; p < values.size(); ++p)
    for (const double probe : Probes(method.parameters[p])) {
      std::vector<double> changed = values;
      changed[p] = probe;
      counts.most = std::max(counts.most, RoundsWith(method, changed));
    }
  return counts;
}

std::string RangeText(const ParameterSpec& spec) {
  if (spec.kind == ParameterKind::kFlag) return "true, false";
  if (spec.kind == ParameterKind::kChoice) return fmt::format("{}", fmt::join(spec.choices, ", "));
  const bool below = IsNone(spec.min), above = IsNone(spec.max);
  if (below && above) return "any number";
  if (above) return fmt::format("{} or more", spec.min);
  if (below) return fmt::format("at most {}", spec.max);
  return fmt::format("{} to {}", spec.min, spec.max);
}

std::string DefaultText(const ParameterSpec& spec) {
  const Json value = ValueToJson(spec, spec.default_value);
  if (value.is_null()) return "none";
  if (value.is_number()) return fmt::format("{}", spec.default_value);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string_view ScopeName(ParameterScope scope) {
  switch (scope) {
    case ParameterScope::kModel: return "model";
    case ParameterScope::kTensor: return "tensor";
    case ParameterScope::kRecipe: return "recipe";
  }
  return "";
}

Json MethodToJson(const MethodInfo& method) {
  const RoundCounts rounds = CountRounds(method);
  Json out = {{"name", method.name},
              {"summary", method.summary},
              {"source", method.source},
              {"base", BaseUseName(method.base)},
              {"least_models", method.least_models},
              {"most_models", method.most_models == SIZE_MAX ? Json() : Json(method.most_models)},
              {"whole_rows", static_cast<bool>(method.by_rows)},
              {"rounds", rounds.by_default},
              {"most_rounds", rounds.most},
              {"parameters", Json::array()}};
  for (const ParameterSpec& spec : method.parameters) out["parameters"].push_back(ParameterToJson(spec));
  return out;
}

}  // namespace braid
