// braid inspect CHECKPOINT: what a checkpoint holds.
#include "pipeline/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>

#include "io/compressed_shard.h"
#include "io/error.h"
#include "io/json.h"
#include "pipeline/budget.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

struct InspectArguments {
  std::string checkpoint;
  bool stats = false;
};

// What people ask of config.json.
constexpr std::array kConfigKeys = {"num_hidden_layers",      "hidden_size",         "intermediate_size",
                                    "num_attention_heads",    "num_key_value_heads", "vocab_size",
                                    "max_position_embeddings"};

Json ConfigFacts(const ModelConfig& config) {
  Json facts = Json::object();
  if (config.path.empty()) return facts;
  facts["architectures"] = config.architectures;
  facts["model_type"] = config.model_type;
  std::vector<std::string> keys(kConfigKeys.begin(), kConfigKeys.end());
  if (config.dtype_key) keys.push_back(*config.dtype_key);
  for (const std::string& key : keys)
    if (const auto value = TopLevelValue(config.text, key))
      facts[key] = ParseJson(*value, config.path, {.python_literals = true});
  if (config.tie_word_embeddings) facts["tie_word_embeddings"] = *config.tie_word_embeddings;
  if (!config.quantisation.empty()) facts["quantisation"] = config.quantisation;
  return facts;
}

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// --- JSON -------------------------------------------------------------------------------------------------

Json StatisticsToJson(const TensorStatistics& s) {
  return {{"l2_norm", s.l2_norm}, {"largest_magnitude", s.largest_magnitude},
          {"mean", s.mean},       {"nan", s.nan},
          {"inf", s.inf},         {"zeros", s.zeros}};
}

Json TensorToJson(const Checkpoint& checkpoint, size_t index, const std::vector<TensorStatistics>& statistics) {
  const CheckpointTensor& tensor = checkpoint.tensors[index];
  Json out = {{"name", tensor.info.name},         {"dtype", DTypeName(tensor.info.dtype)},
              {"shape", tensor.info.shape},       {"elements", tensor.info.elements},
              {"bytes", tensor.info.bytes},       {"file", checkpoint.shards[tensor.shard].name}};
  if (!statistics.empty() && IsLaneType(tensor.info.dtype)) out["stats"] = StatisticsToJson(statistics[index]);
  return out;
}

Json ToJson(const Inspection& found, const std::vector<TensorStatistics>& statistics) {
  const Checkpoint& checkpoint = found.checkpoint;
  Json out = {
      {"status", "ok"},         {"checkpoint", checkpoint.reference}, {"parameters", found.elements},
      {"bytes", found.bytes},   {"dtypes", Json::object()},           {"config", ConfigFacts(checkpoint.config)},
      {"files", Json::array()}, {"warnings", checkpoint.warnings},    {"tensors", Json::array()}};
  if (!checkpoint.revision.empty()) out["revision"] = checkpoint.revision;
  for (const DTypeTotal& t : found.by_dtype)
    out["dtypes"][std::string(DTypeName(t.dtype))] = {
        {"tensors", t.tensors}, {"elements", t.elements}, {"bytes", t.bytes}};
  for (size_t i = 0; i < checkpoint.shards.size(); ++i) {
    const Shard& shard = checkpoint.shards[i];
    Json file = {{"name", shard.name}, {"bytes", shard.bytes()}, {"metadata", found.metadata[i]}};
    if (shard.compressed != nullptr)
      file.update({{"compression", CompressionName(shard.compressed->compression())},
                   {"compressed_bytes", shard.identity.size}});
    out["files"].push_back(std::move(file));
  }
  for (size_t i = 0; i < checkpoint.tensors.size(); ++i)
    out["tensors"].push_back(TensorToJson(checkpoint, i, statistics));
  return out;
}

// --- for people -------------------------------------------------------------------------------------------

size_t ColumnWidth(size_t longest) { return std::clamp<size_t>(longest, 6, 64); }

std::string StatisticsText(DType dtype, const TensorStatistics& s) {
  if (!IsLaneType(dtype)) return fmt::format("{:>12}{:>12}{:>13}{:>8}{:>8}{:>10}", "-", "-", "-", "-", "-", "-");
  return fmt::format("{:>12.5g}{:>12.5g}{:>13.4g}{:>8}{:>8}{:>10}", s.l2_norm, s.largest_magnitude, s.mean, s.nan,
                     s.inf, s.zeros);
}

void PrintTensors(const Checkpoint& checkpoint, const std::vector<TensorStatistics>& statistics) {
  size_t name_width = 0, shape_width = 0;
  for (const CheckpointTensor& tensor : checkpoint.tensors) {
    name_width = std::max(name_width, Printable(tensor.info.name).size());
    shape_width = std::max(shape_width, ShapeText(tensor.info.shape).size());
  }
  name_width = ColumnWidth(name_width), shape_width = ColumnWidth(shape_width);
  fmt::print("{:<{}}  {:<11}  {:<{}}  {:>14}", "tensor", name_width, "dtype", "shape", shape_width, "bytes");
  if (!statistics.empty())
    fmt::print("{:>12}{:>12}{:>13}{:>8}{:>8}{:>10}", "l2 norm", "largest", "mean", "NaN", "Inf", "zeros");
  fmt::print("  file\n");
  for (size_t i = 0; i < checkpoint.tensors.size(); ++i) {
    const CheckpointTensor& tensor = checkpoint.tensors[i];
    fmt::print("{:<{}}  {:<11}  {:<{}}  {:>14}", Printable(tensor.info.name), name_width, DTypeName(tensor.info.dtype),
               ShapeText(tensor.info.shape), shape_width, tensor.info.bytes);
    if (!statistics.empty()) fmt::print("{}", StatisticsText(tensor.info.dtype, statistics[i]));
    fmt::print("  {}\n", Printable(checkpoint.shards[tensor.shard].name));
  }
}

void Line(std::string_view label, const std::string& text) { fmt::print("{:<12}{}\n", label, text); }

// A long value, such as the checksums of a merge into a single file, tells people nothing.
std::string Shortened(const std::string& value) {
  constexpr size_t kMost = 100;
  if (value.size() <= kMost) return Printable(value);
  return fmt::format("{}... ({} bytes)", Printable(std::string_view(value).substr(0, 40)), value.size());
}

void PrintMetadata(const Inspection& found) {
  const bool all_equal = std::all_of(found.metadata.begin(), found.metadata.end(),
                                     [&](const auto& metadata) { return metadata == found.metadata.front(); });
  for (size_t i = 0; i < (all_equal ? std::min<size_t>(1, found.metadata.size()) : found.metadata.size()); ++i)
    for (const auto& [key, value] : found.metadata[i])
      Line("metadata", fmt::format("{}{} = {}", all_equal ? "" : Printable(found.checkpoint.shards[i].name) + ": ",
                                   Shortened(key), Shortened(value)));
}

void PrintSummary(const Inspection& found) {
  const Checkpoint& checkpoint = found.checkpoint;
  Line("checkpoint",
       Printable(checkpoint.reference) + (checkpoint.revision.empty() ? "" : " at " + checkpoint.revision));
  const Json facts = ConfigFacts(checkpoint.config);
  for (const auto& [key, value] : facts.items()) Line("config", fmt::format("{} = {}", key, Shortened(Dump(value))));
  PrintMetadata(found);
  for (const DTypeTotal& t : found.by_dtype)
    Line(DTypeName(t.dtype), fmt::format("{} tensors, {} elements, {}", t.tensors, t.elements, SizeText(t.bytes)));
  Line("total", fmt::format("{} tensors, {} parameters ({:.3f} billion), {} in {} file{}", checkpoint.tensors.size(),
                            found.elements, static_cast<double>(found.elements) / 1e9, SizeText(found.bytes),
                            checkpoint.shards.size(), checkpoint.shards.size() == 1 ? "" : "s"));
  uint64_t stored = 0;
  size_t compressed = 0;
  for (const Shard& shard : checkpoint.shards) stored += shard.identity.size, compressed += shard.compressed != nullptr;
  if (compressed > 0)
    Line("on disk",
         fmt::format("{}, {} file{} compressed", SizeText(stored), compressed, compressed == 1 ? "" : "s"));
  for (const std::string& warning : checkpoint.warnings) Line("warning", Printable(warning));
}

void PrintNonFinite(const std::vector<TensorStatistics>& statistics) {
  uint64_t nan = 0, inf = 0;
  for (const TensorStatistics& s : statistics) nan += s.nan, inf += s.inf;
  Line("values",
       nan + inf == 0 ? "no NaN, no infinite values" : fmt::format("{} NaN and {} infinite values", nan, inf));
}

void Run(const InspectArguments& arguments) {
  const Inspection found = Inspect(arguments.checkpoint);
  std::vector<TensorStatistics> statistics;
  if (arguments.stats) statistics = ComputeStatistics(found.checkpoint);
  if (JsonWanted()) return fmt::print("{}\n", Dump(ToJson(found, statistics)));
  PrintTensors(found.checkpoint, statistics);
  fmt::print("\n");
  PrintSummary(found);
  if (arguments.stats) PrintNonFinite(statistics);
}

}  // namespace

void AddInspectCommand(CLI::App& app) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Show what a checkpoint holds: tensors, types, sizes\n\n  braid inspect models/base --stats\n"
      "  braid merge recipe.toml - | braid inspect --stats -\n");
  command
      ->add_option("CHECKPOINT", arguments->checkpoint,
                   "Directory, .safetensors file, compressed or not, id in the Hugging Face cache, or -")
      ->required();
  command->add_flag("--stats", arguments->stats,
                    "Read all data: l2 norm, largest magnitude, mean of the finite values; NaN, Inf, zeros");
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
