// The plan as JSON text. It is made tensor by tensor: as a tree, 100,000 tensors of three sources took 300 MB and a
// second, and a merge would pay that for its fingerprint alone.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "io/checksum.h"
#include "pipeline/manifest.h"
#include "pipeline/plan.h"

namespace braid {
namespace {

using Write = std::function<void(std::string_view)>;

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json CoefficientsToJson(const MethodInfo& method, const Coefficients& c, bool measured) {
  Json out = Json::object();
  if (measured) out["layer"] = c.layer;
  for (size_t p = 0; p < method.parameters.size(); ++p) {
    const ParameterSpec& spec = method.parameters[p];
    Json value;
    const auto number = [](double set) { return set == kNoDefault ? Json() : Json(set); };
    if (spec.scope == ParameterScope::kModel)
      for (const auto& model : c.model) value.push_back(number(model[p]));
    else
      value = number(c.shared[p]);
    out[std::string(spec.name)] = value;
  }
  return out;
}

std::string_view ActionName(TensorAction action) {
  switch (action) {
    case TensorAction::kMerge: return "merge";
    case TensorAction::kCopy: return "copy";
    case TensorAction::kKeep: return "keep";
    case TensorAction::kExclude: return "exclude";
  }
  return "";
}

// Where the bytes come from and go to, but for the tensors.
Json LayoutToJson(const Plan& plan) {
  Json out;
  out["method"] = plan.method->name;
  out["single_file"] = plan.single_file;  // its header holds the checksums, unless it leaves in order
  if (plan.recipe.output.compress != Compression::kNone)
    out["compress"] = CompressionName(plan.recipe.output.compress);
  if (plan.delta()) out["content"] = "delta";
  out["on_missing"] = static_cast<int>(plan.recipe.on_missing);
  for (const Checkpoint& checkpoint : plan.checkpoints) {
    Json source;
    for (const Shard& shard : checkpoint.shards)
      source["files"].push_back({{"name", shard.name}, {"bytes", shard.bytes()}});
    out["sources"].push_back(source);
  }
  if (!plan.IsChain())
    for (const Coefficients& c : plan.coefficients)
      out["coefficients"].push_back(CoefficientsToJson(*plan.method, c, plan.measured));
  for (const PlannedStage& stage : plan.stages) {
    out["stages"].push_back({{"name", stage.name}, {"method", stage.method->name}, {"base", stage.base},
                             {"models", stage.models}, {"rounds", stage.rounds},
                             {"dtype", stage.type ? Json(DTypeName(*stage.type)) : Json()}});
  }
  for (const SpilledStage& spill : plan.spills)
    out["spilled"].push_back({{"stage", spill.stage}, {"bytes", spill.plan->totals.bytes_written},
                              {"bytes_read", spill.plan->totals.bytes_read}, {"fingerprint", spill.fingerprint}});
  for (const Coefficients& c : plan.chain.coefficients)
    out["coefficients"].push_back({{"shared", c.shared}, {"model", c.model}});
  if (plan.measured) out["layer_scale"] = {{"alpha", nullptr}, {"beta", plan.recipe.layer_scale->beta}};
  for (const PlannedShard& shard : plan.shards) out["shards"].push_back({{"name", shard.name}, {"bytes", shard.bytes}});
  return out;
}

std::string SourceText(const Plan& plan, const TensorSource& source) {
  if (!source.present()) return "null";
  const Checkpoint& checkpoint = plan.checkpoints[static_cast<size_t>(source.checkpoint)];
  const CheckpointTensor& from = checkpoint.tensors[source.tensor];
  return fmt::format("[{},{},{},\"{}\"]", source.checkpoint, from.shard, from.info.offset, DTypeName(from.info.dtype));
}

// How a tensor is made of its sources: "f1" is the second of them, "s0" the first step.
std::string StepsText(const ChainTree& tree) {
  const auto input = [](const ChainInput& from) -> std::string {
    if (from.kind == ChainInput::Kind::kNone) return "null";
    return fmt::format("\"{}{}\"", from.kind == ChainInput::Kind::kSource ? 'f' : 's', from.index);
  };
  std::vector<std::string> steps;
  for (const ChainStep& step : tree.steps) {
    std::vector<std::string> models;
    for (const ChainInput& model : step.models) models.push_back(input(model));
    steps.push_back(fmt::format(
        R"({{"stage":{},"coefficients":{},"key":"{:016x}","dtype":"{}","base":{},"models":[{}]}})", step.stage,
        step.coefficients, step.tensor.key, DTypeName(step.type), input(step.base), fmt::join(models, ",")));
  }
  return fmt::format("[{}]", fmt::join(steps, ","));
}

std::string TensorText(const Plan& plan, const PlannedTensor& tensor) {
  std::string text = fmt::format(
      R"({{"name":{},"dtype":"{}","shape":[{}],"shard":{},"offset":{},"bytes":{},"action":"{}","coefficients":{})",
      JsonString(tensor.name), DTypeName(tensor.type), fmt::join(tensor.shape, ","), tensor.shard, tensor.offset,
      tensor.bytes, ActionName(tensor.action), tensor.coefficients);
  std::vector<std::string> sources;
  if (tensor.base.present()) sources.push_back(SourceText(plan, tensor.base));
  for (const TensorSource& source : tensor.models) sources.push_back(SourceText(plan, source));
  std::vector<std::string> rows;
  for (const MappedRows& mapped : tensor.rows)
    rows.push_back(mapped.map == nullptr ? "null" : fmt::format("\"{}\"", SumText(mapped.map->Sum())));
  if (!rows.empty()) text += fmt::format(",\"rows\":[{}]", fmt::join(rows, ","));
  if (plan.IsChain() && tensor.action == TensorAction::kMerge)
    text += ",\"steps\":" + StepsText(plan.chain.TreeOf(plan.coefficients[tensor.coefficients]));
  return fmt::format("{},\"sources\":[{}]}}", text, fmt::join(sources, ","));
}

Json StreamToJson(const Plan& plan, const PlannedStream& stream) {
  const Checkpoint& checkpoint = plan.checkpoints[stream.checkpoint];
  Json out = {{"source", stream.checkpoint}, {"file", stream.shard}, {"bytes_spooled", stream.spooled}};
  out["spooled"] = Json::array();
  for (size_t i = 0; i < stream.tensors.size(); ++i) {
    const TensorInfo& info = checkpoint.tensors[stream.first + i].info;
    if (stream.tensors[i] != SpoolReason::kNone)
      out["spooled"].push_back(
          {{"tensor", info.name}, {"bytes", info.bytes}, {"why", SpoolReasonName(stream.tensors[i])}});
  }
  return out;
}

// The object `head` with the tensors as its last member.
void WriteWithTensors(const Plan& plan, const Json& head, const Write& write) {
  std::string text = Dump(head);
  text.pop_back();  // its brace
  write(text);
  const char* before = ",\"tensors\":[";
  for (const PlannedTensor& tensor : plan.tensors) write(before), write(TensorText(plan, tensor)), before = ",";
  write(plan.tensors.empty() ? "}" : "]}");
}

}  // namespace

void WritePlanJson(const Plan& plan, const Json& more, const Write& write) {
  Json out;
  out["method"] = plan.method->name;
  out["scope"] = plan.model_scope ? "model" : "tensor";
  out["fingerprint"] = PlanFingerprint(plan);
  out["parameters"] = plan.totals.parameters;
  out["tensors_merged"] = plan.totals.merged;
  out["tensors_copied"] = plan.totals.copied;
  out["tensors_unchanged"] = plan.totals.unchanged;
  out["rounds"] = plan.totals.read_per_round.size();
  out["read_per_round"] = plan.totals.read_per_round;
  out["bytes_read"] = plan.totals.bytes_read;
  out["bytes_written"] = plan.totals.bytes_written;
  out["bytes_spooled"] = plan.totals.bytes_spooled;
  for (const PlannedStream& stream : plan.streams) out["streams"].push_back(StreamToJson(plan, stream));
  if (plan.in_order) out["bytes_spilled"] = plan.totals.bytes_spilled;
  const MemoryPlan& m = plan.memory;
  out["memory"] = {{"budget", m.budget}, {"least", m.least}, {"threads", m.threads}, {"catalogue", m.catalogue},
                   {"scratch", m.scratch}, {"decoding", m.decoding.MemoryBytes()}, {"ordering", m.ordering},
                   {"tile_elements", m.tile_elements}, {"buffers", m.buffers}, {"buffer_bytes", m.buffer_bytes},
                   {"accumulators", m.accumulators}, {"drafts", m.drafts}, {"open", m.open}, {"pool", m.pool},
                   {"waiting", m.waiting}};
  out["warnings"] = plan.warnings;
  const Json layout = LayoutToJson(plan);
  for (const char* key : {"content", "sources", "shards", "stages", "spilled", "coefficients", "layer_scale"})
    if (layout.contains(key)) out[key] = layout[key];
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    if (!plan.stages[i].choice) continue;
    const SpillChoice& choice = *plan.stages[i].choice;
    Json& stage = out["stages"][i];
    stage["bytes_spilled"] = choice.spilled;
    if (choice.why_not.empty()) stage["bytes_recomputed"] = choice.recomputed;
    else stage["not_recomputed"] = choice.why_not;
  }
  for (size_t i = 0; i < plan.checkpoints.size(); ++i) {
    out["sources"][i]["reference"] = plan.checkpoints[i].reference;
    out["sources"][i]["io"] = ReadBackendName(plan.reading[i].backend);
    out["sources"][i]["io_why"] = plan.reading[i].why;
    if (!plan.checkpoints[i].revision.empty()) out["sources"][i]["revision"] = plan.checkpoints[i].revision;
  }
  out.update(more);
  WriteWithTensors(plan, out, write);
}

std::string PlanFingerprint(const Plan& plan) {
  Checksum sum;
  WriteWithTensors(plan, LayoutToJson(plan), [&](std::string_view text) { sum.Add(text.data(), text.size()); });
  return SumText(sum.Take());
}

}  // namespace braid
