#include "ops/method.h"

#include <algorithm>
#include <array>

namespace braid {
namespace {

using enum ParameterKind;
using enum ParameterScope;

ParameterSpec Weight() {
  return {.name = "weight", .scope = kModel, .default_value = 1, .required_in_yaml = true,
          .help = "share of this model; negative forgets a task"};
}

ParameterSpec Normalize(bool by_default) {
  return {.name = "normalize", .kind = kFlag, .default_value = by_default ? 1.0 : 0.0,
          .help = "divide by the sum of the weights"};
}

// What the whole family of task-vector methods shares (mergekit: generalized task arithmetic).
std::vector<ParameterSpec> TaskVectorParameters(bool normalize) {
  return {Weight(), Normalize(normalize),
          {.name = "lambda", .default_value = 1, .help = "scale of the merged task vector"},
          {.name = "int8_mask", .kind = kFlag, .help = "accepted for mergekit's sake; changes nothing"}};
}

MethodInfo Ties() {
  MethodInfo ties{.name = "ties",
                  .summary = "trim task vectors, elect signs, merge what agrees",
                  .source = "Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708, Algorithm 1",
                  .base = BaseUse::kRequired,
                  .parameters = TaskVectorParameters(true)};
  const std::vector<ParameterSpec> own = {
      {.name = "density", .scope = kModel, .default_value = 1, .min = 0, .max = 1,
       .help = "share of each task vector's entries to keep, by magnitude"},
      {.name = "rescale", .kind = kFlag, .help = "restore the l1 norm of a trimmed task vector"},
      {.name = "scope", .kind = kChoice, .scope = kRecipe, .choices = {"tensor", "model"},
       .help = "one threshold per tensor, or one over the model's whole task vector (the paper's code)"},
      {.name = "ties_at_threshold", .kind = kChoice, .scope = kRecipe, .choices = {"index", "keep"},
       .help = "equal magnitudes at the threshold: lower index first, or the paper's code: keep int(density n) + 1 "
               "and all equals"},
      {.name = "zero_sign", .kind = kChoice, .scope = kRecipe, .choices = {"plus", "majority"},
       .help = "the elected sign where votes cancel: plus, or that of most entries (the paper's code)"},
      {.name = "elect", .kind = kChoice, .scope = kRecipe, .choices = {"mass", "count"},
       .help = "elect by the sum of values, or by counting signs"},
      {.name = "elect_weighted", .kind = kFlag, .scope = kRecipe, .default_value = 1,
       .help = "whether weights count in the election"},
  };
  ties.parameters.insert(ties.parameters.end(), own.begin(), own.end());
  return ties;
}

std::vector<MethodInfo> AllMethods() {
  return {
      Ties(),
      {.name = "task_arithmetic",
       .summary = "add the weighted task vectors to the base",
       .source = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv 2212.04089",
       .base = BaseUse::kRequired,
       .parameters = TaskVectorParameters(false)},
      {.name = "linear",
       .summary = "weighted average of the models",
       .source = "Wortsman et al., Model Soups, ICML 2022, arXiv 2203.05482",
       .base = BaseUse::kIsASource,
       .parameters = {Weight(), Normalize(true)}},
      {.name = "average",
       .summary = "plain average of the models",
       .source = "Wortsman et al., Model Soups, ICML 2022, arXiv 2203.05482",
       .base = BaseUse::kIsASource,
       .parameters = {}},
  };
}

// Of mergekit 0.1.5's methods and of those that Braid does not have yet.
constexpr std::array kOtherParameters = {
    "weight",  "density",   "lambda",      "normalize",       "rescale",           "int8_mask", "gamma",
    "epsilon", "t",         "scale",       "select_topk",     "nuslerp_row_wise",  "nuslerp_flatten",
    "eps",     "max_iter",  "tol",         "filter_wise",     "normalize_weights", "r",         "alpha",
};

}  // namespace

const ParameterSpec* MethodInfo::Find(std::string_view parameter) const {
  int index = IndexOf(parameter);
  return index < 0 ? nullptr : &parameters[static_cast<size_t>(index)];
}

int MethodInfo::IndexOf(std::string_view parameter) const {
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].name == parameter) return static_cast<int>(i);
  return -1;
}

const std::vector<MethodInfo>& Methods() {
  static const std::vector<MethodInfo> methods = AllMethods();
  return methods;
}

const MethodInfo* FindMethod(std::string_view name) {
  for (const MethodInfo& method : Methods())
    if (method.name == name) return &method;
  return nullptr;
}

bool IsParameterOfAnotherMethod(std::string_view parameter) {
  if (std::find(kOtherParameters.begin(), kOtherParameters.end(), parameter) != kOtherParameters.end()) return true;
  return std::any_of(Methods().begin(), Methods().end(),
                     [&](const MethodInfo& method) { return method.Find(parameter) != nullptr; });
}

}  // namespace braid
