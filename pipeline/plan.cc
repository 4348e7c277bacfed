#include "pipeline/plan.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "pipeline/plan_internal.h"

namespace braid {

Plan MakePlan(Recipe recipe, const PlanOptions& options) {
  Plan plan;
  plan.method = FindMethod(recipe.method);
  plan.recipe = std::move(recipe);

  OpenSources(&plan);
  // The checkpoints are open; every header has been checked.
  for (const Checkpoint& checkpoint : plan.checkpoints)
    plan.reading.push_back(
        ChooseReadBackend(options.read, FileSystemOf(checkpoint.shards.front().path), RunningKernel()));
  PlanTensors(&plan);
  // Each output tensor knows its sources, coefficients and type.
  PlanLayout(&plan, options);
  // Every output byte has its place.
  PlanScopes(&plan);
  PlanMemory(&plan, options);
  // The rounds and their memory are known.
  return plan;
}

std::unique_ptr<Merger> Plan::MakeMerger(const PlannedScope& scope, CandidatePool* pool) const {
  Coefficients shared = coefficients[tensors[scope.tensors.front()].coefficients];
  if (model_scope) {
    // A weight may differ from tensor to tensor; statistics only ask whether it is zero everywhere.
    const int weight = method->IndexOf("weight");
    for (uint32_t t : scope.tensors)
      for (size_t m = 0; m < shared.model.size(); ++m)
        if (const double w = coefficients[tensors[t].coefficients].model[m][static_cast<size_t>(weight)]; w != 0)
          shared.model[m][static_cast<size_t>(weight)] = w;
  }
  return NewMerger(*method, shared, scope.elements, pool);
}

namespace {

Json CoefficientsToJson(const MethodInfo& method, const Coefficients& c) {
  Json out = Json::object();
  for (size_t p = 0; p < method.parameters.size(); ++p) {
    const ParameterSpec& spec = method.parameters[p];
    Json value;
    if (spec.scope == ParameterScope::kModel)
      for (const auto& model : c.model) value.push_back(model[p]);
    else
      value = c.shared[p];
    out[std::string(spec.name)] = value;
  }
  return out;
}

// Where the bytes come from and go to: what a fingerprint is taken of.
Json LayoutToJson(const Plan& plan) {
  Json out;
  out["method"] = plan.method->name;
  out["on_missing"] = static_cast<int>(plan.recipe.on_missing);
  for (const Checkpoint& checkpoint : plan.checkpoints) {
    Json source;
    for (const Shard& shard : checkpoint.shards)
      source["files"].push_back({{"name", shard.name}, {"bytes", shard.identity.size}});
    out["sources"].push_back(source);
  }
  for (const Coefficients& c : plan.coefficients) out["coefficients"].push_back(CoefficientsToJson(*plan.method, c));
  for (const PlannedShard& shard : plan.shards) out["shards"].push_back({{"name", shard.name}, {"bytes", shard.bytes}});
  for (const PlannedTensor& tensor : plan.tensors) {
    Json row = {{"name", tensor.name}, {"dtype", DTypeName(tensor.type)}, {"shape", tensor.shape},
                {"shard", tensor.shard}, {"offset", tensor.offset}, {"bytes", tensor.bytes},
                {"action", tensor.action == TensorAction::kCopy ? "copy" : "merge"},
                {"coefficients", tensor.coefficients}};
    const auto add = [&](const TensorSource& source) {
      if (!source.present()) return row["sources"].push_back(nullptr);
      const Checkpoint& checkpoint = plan.checkpoints[static_cast<size_t>(source.checkpoint)];
      const CheckpointTensor& from = checkpoint.tensors[source.tensor];
      row["sources"].push_back({source.checkpoint, from.shard, from.info.offset, DTypeName(from.info.dtype)});
    };
    if (tensor.base.present()) add(tensor.base);
    for (const TensorSource& source : tensor.models) add(source);
    out["tensors"].push_back(std::move(row));
  }
  return out;
}

}  // namespace

Json PlanToJson(const Plan& plan) {
  Json out;
  out["method"] = plan.method->name;
  out["scope"] = plan.model_scope ? "model" : "tensor";
  out["fingerprint"] = PlanFingerprint(plan);
  out["parameters"] = plan.totals.parameters;
  out["tensors_merged"] = plan.totals.merged;
  out["tensors_copied"] = plan.totals.copied;
  out["rounds"] = plan.totals.read_per_round.size();
  out["read_per_round"] = plan.totals.read_per_round;
  out["bytes_read"] = plan.totals.bytes_read;
  out["bytes_written"] = plan.totals.bytes_written;
  const MemoryPlan& m = plan.memory;
  out["memory"] = {{"budget", m.budget}, {"least", m.least}, {"threads", m.threads}, {"catalogue", m.catalogue},
                   {"scratch", m.scratch}, {"tile_elements", m.tile_elements}, {"buffers", m.buffers},
                   {"buffer_bytes", m.buffer_bytes}, {"accumulators", m.accumulators}, {"candidates", m.candidates}, {"pool", m.pool}};
  out["warnings"] = plan.warnings;
  const Json layout = LayoutToJson(plan);
  for (const char* key : {"sources", "shards", "coefficients", "tensors"})
    if (layout.contains(key)) out[key] = layout[key];
  for (size_t i = 0; i < plan.checkpoints.size(); ++i) {
    out["sources"][i]["reference"] = plan.checkpoints[i].reference;
    out["sources"][i]["io"] = ReadBackendName(plan.reading[i].backend);
    out["sources"][i]["io_why"] = plan.reading[i].why;
    if (!plan.checkpoints[i].revision.empty()) out["sources"][i]["revision"] = plan.checkpoints[i].revision;
  }
  return out;
}

std::string PlanFingerprint(const Plan& plan) {
  const std::string text = LayoutToJson(plan).dump(-1, ' ', false, Json::error_handler_t::replace);
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace braid
