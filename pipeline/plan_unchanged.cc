// Which tensors come out as the base has them, known without reading: of a base-relative method, those whose task
// vectors are all zero because every model has weight 0, lacks the tensor, or has it in the same bytes of the same file
// (through links, or because the base lends it).

#include <algorithm>
#include <tuple>
#include <vector>

#include "pipeline/plan_internal.h"

namespace braid {
namespace {

bool SameBytes(const Plan& plan, const TensorSource& a, const TensorSource& b) {
  const auto place = [&](const TensorSource& source) {
    const Checkpoint& checkpoint = plan.checkpoints[static_cast<size_t>(source.checkpoint)];
    const CheckpointTensor& tensor = checkpoint.tensors[source.tensor];
    const FileIdentity& file = checkpoint.shards[tensor.shard].identity;
    return std::tuple(checkpoint.shards[tensor.shard].stream.get(), file.device, file.inode, tensor.info.offset,
                      tensor.info.bytes, tensor.info.dtype);
  };
  return place(a) == place(b);
}

// Per model, whether it has a weight in some tensor. A model without one takes no part in the statistics of a scope.
std::vector<bool> HaveWeight(const Plan& plan, int weight) {
  std::vector<bool> some(plan.most_models, weight < 0);
  for (const Coefficients& c : plan.coefficients)
    for (size_t m = 0; weight >= 0 && m < some.size(); ++m)
      if (c.model[m][static_cast<size_t>(weight)] != 0) some[m] = true;
  return some;
}

}  // namespace

void MarkUnchanged(Plan* plan) {
  if (!plan->relative) return;
  const int weight = plan->method->IndexOf("weight");   // -1: the method has none
  const std::vector<bool> have_weight = plan->model_scope ? HaveWeight(*plan, weight) : std::vector<bool>();
  for (PlannedTensor& tensor : plan->tensors) {
    // Float64 is merged in float32, and rounded by that.
    if (!tensor.rows.empty() || tensor.action != TensorAction::kMerge || tensor.type != plan->Info(tensor.base).dtype ||
        tensor.type == DType::kF64)
      continue;
    const Coefficients& c = plan->coefficients[tensor.coefficients];
    const auto adds_nothing = [&](size_t m) {
      const TensorSource& source = tensor.models[m];
      if (!source.present() || SameBytes(*plan, source, tensor.base)) return true;
      // With scope = "model", entries of weight 0 still count for the threshold of the others.
      return plan->model_scope ? !have_weight[m] : weight >= 0 && c.model[m][static_cast<size_t>(weight)] == 0;
    };
    bool unchanged = true;
    for (size_t m = 0; unchanged && m < tensor.models.size(); ++m) unchanged = adds_nothing(m);
    if (!unchanged) continue;
    tensor.action = TensorAction::kKeep;
    std::fill(tensor.models.begin(), tensor.models.end(), TensorSource{});
  }
}

}  // namespace braid
