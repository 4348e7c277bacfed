// The methods of TaskVectorMerger: what mergekit calls generalized task arithmetic. methods.md, "GTA".
#include "ops/task_vector_merger.h"

namespace braid {
namespace {

using enum ParameterKind;
using enum ParameterScope;

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& scope,
                             Approach approach) {
  return std::make_unique<TaskVectorMerger>(method, c, scope.elements, approach);
}

std::vector<ParameterSpec> TiesParameters() {
  return TaskVectorParameters(true, {
      DensityParameter("share of each task vector's entries to keep, by magnitude"),
      RescaleParameter(false),
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
       .help = "whether weights count in the election"}});
}

}  // namespace

MethodInfo Ties() {
  return {.name = "ties",
          .summary = "trim task vectors, elect signs, merge what agrees",
          .source = "Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708, Algorithm 1",
          .base = BaseUse::kRequired,
          .parameters = TiesParameters(),
          .make = Make};
}

MethodInfo TaskArithmetic() {
  return {.name = "task_arithmetic",
          .summary = "add the weighted task vectors to the base",
          .source = "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv 2212.04089",
          .base = BaseUse::kRequired,
          .parameters = TaskVectorParameters(false),
          .make = Make};
}

}  // namespace braid
