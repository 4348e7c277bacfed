// Deltas. A merge that writes one keeps the tensors that it merges, in float32 or bfloat16, and remembers the types
// that they would have had; all others come out as the base has them, so that the delta need not have them. A plan that
// applies one is that of a method with the base and one model, whose types the delta says.

#include <fmt/format.h>


#include "io/base_identity.h"
#include "io/error.h"
#include "pipeline/plan_internal.h"
#include "pipeline/recipe_writer.h"

namespace braid {

void PlanDelta(Plan* plan) {
  if (!plan->delta()) return;
  const DType written = plan->recipe.output.delta_dtype.value_or(DType::kF32);
  std::vector<PlannedTensor> merged;
  for (PlannedTensor& tensor : plan->tensors) {
    if (tensor.action == TensorAction::kMerge) {
      tensor.applied = std::exchange(tensor.type, written);
      tensor.bytes = tensor.elements * static_cast<uint64_t>(LaneBytes(written));
      merged.push_back(std::move(tensor));
    } else if (tensor.action == TensorAction::kKeep && plan->Info(tensor.base).name == tensor.name) {
      plan->left_out_elements += tensor.elements;
    } else if (plan->Info(tensor.base).name != tensor.name) {
      throw Error(ErrorCode::kIncompatible, "a delta cannot say that this tensor is another one of the base's")
          .Tensor(tensor.name)
          .Hint("write the checkpoint");
    }
  }
  if (merged.empty())
    throw RecipeError(plan->recipe, plan->recipe.output.where,
                      "the delta is empty: the merge changes nothing of the base")
        .Hint("look at the weights, and at what 'exclude' leaves");
  plan->tensors = std::move(merged);
}

void CheckDeltaFits(const Plan& plan) {
  const Checkpoint& base = plan.checkpoints[static_cast<size_t>(plan.base)];
  const Checkpoint& delta = plan.checkpoints[plan.models.front()];
  const BaseIdentity identity = IdentityOfBase(base);
  const bool same_headers = identity.headers == delta.delta->base;
  const bool unknown = identity.samples.empty() || delta.delta->samples.empty();
  if (same_headers && (unknown || identity.samples == delta.delta->samples)) return;
  throw Error(ErrorCode::kIncompatible, fmt::format("the delta {} was made from another base", delta.reference))
      .Path(base.reference)
      .Hint(same_headers ? "the weights differ: perhaps this is a fine-tune of that base"
                         : "names, order, shapes, types or shards differ: take the very files that the merge had");
}

Recipe ApplyRecipe(const std::string& base, const std::string& delta) {
  Recipe recipe;
  recipe.method = ApplyDelta().name;
  recipe.base = base;
  recipe.models = {{.reference = delta, .where = {}, .settings = {}}};
  try {
    Recipe origin = ReadRecipe(delta + "/braid_recipe.toml");
    origin.output = {};
    recipe.text = WriteRecipe(origin, Syntax::kToml);
  } catch (const Error&) {
    // The delta is one file, or somebody took its recipe away.
  }
  return recipe;
}

}  // namespace braid
