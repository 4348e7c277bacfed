#include "pipeline/run.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <optional>

#include "io/byte_stream.h"
#include "io/error.h"
#include "io/input_stream.h"
#include "io/model_files.h"
#include "io/shard_writer.h"
#include "io/staging.h"
#include "io/temporary_file.h"
#include "pipeline/budget.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"
#include "pipeline/model_card.h"
#include "pipeline/recipe_writer.h"
#include "pipeline/run_internal.h"
#include "pipeline/run_stages.h"
#include "pipeline/shard_output.h"
#include "pipeline/tokenizer_files.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";

// The map sorted by name, as other writers do. Text, because 100,000 tensors are large as a tree.
std::string IndexText(const Plan& plan) {
  uint64_t total = 0;
  std::vector<const PlannedTensor*> by_name;
  for (const PlannedTensor& tensor : plan.tensors) total += tensor.bytes, by_name.push_back(&tensor);
  std::sort(by_name.begin(), by_name.end(),
            [](const PlannedTensor* a, const PlannedTensor* b) { return a->name < b->name; });
  std::string text = fmt::format(
      "{{\n  \"metadata\": {{\n    \"total_parameters\": {},\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{",
      plan.totals.parameters, total);
  for (const PlannedTensor* tensor : by_name)
    fmt::format_to(std::back_inserter(text), "{}\n    {}: {}", tensor == by_name.front() ? "" : ",",
                   JsonString(tensor->name), JsonString(plan.shards[tensor->shard].name));
  return text + "\n  }\n}\n";
}

// The recipe as it was given, and the same in the other syntax where that can say it.
void WriteRecipes(const Recipe& recipe, Staging* staging) {
  for (const Syntax syntax : {Syntax::kToml, Syntax::kYaml}) {
    const auto text = syntax == recipe.syntax ? recipe.text : TryWriteRecipe(recipe, syntax);
    const char* name = syntax == Syntax::kYaml ? "mergekit_config.yml" : "braid_recipe.toml";
    if (text) WriteDurably(staging->PathFor(name), *text);
  }
}

// What the name of OUT says: how many files, and how they are compressed.
void ReadOutputName(const std::string& out, Recipe* recipe, PlanOptions* options) {
  options->pipe = out == kStandardOutput;
  options->single_file = IsShardFile(out);
  if (!options->single_file) return;
  const Compression named = CompressionOf(out);
  Compression& wanted = recipe->output.compress;
  if (wanted == Compression::kNone) wanted = named;
  if (wanted == named) return;
  const std::string plain = out.substr(0, out.size() - CompressionSuffix(named).size());
  throw Error(ErrorCode::kUsage, fmt::format("compressed ({}), the output needs another name", CompressionName(wanted)))
      .Path(out)
      .Hint(fmt::format("call it {}{}", plain, CompressionSuffix(wanted)));
}

void CheckSpool(const Plan& plan) {
  if (plan.totals.bytes_spooled == 0) return;
  const std::string directory = TemporaryDirectoryPath();
  const uint64_t free = FreeSpace(directory);
  if (plan.totals.bytes_spooled > free)
    throw Error(ErrorCode::kIo, fmt::format("{} of the streams that are read have to wait here, the disk has {} free",
                                            SizeText(plan.totals.bytes_spooled), SizeText(free)))
        .Path(directory)
        .Hint("set TMPDIR to a directory on another disk, or give a larger --memory; `braid plan` says what waits");
}

// One descriptor per shard of every source and of the output; the usual soft limit of 1024 is too low for large
// families, and the hard limit is there to be used.
void RaiseFileLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

std::string FileOf(const Plan& plan, const PlannedShard& shard) {
  return shard.name + std::string(CompressionSuffix(plan.recipe.output.compress));
}

std::vector<std::string> InputsOf(const Plan& plan) {
  std::vector<std::string> inputs;
  if (!plan.recipe.path.empty()) inputs.push_back(plan.recipe.path);   // braid apply has none
  for (const Checkpoint& checkpoint : plan.checkpoints) {
    if (!checkpoint.directory.empty()) inputs.push_back(checkpoint.directory);
    for (const Shard& shard : checkpoint.shards)
      // A stage's result has no path yet.
      if (!shard.path.empty() && (shard.stream == nullptr || shard.stream->is_file())) inputs.push_back(shard.path);
  }
  if (!plan.donor_directory.empty()) inputs.push_back(plan.donor_directory);
  if (!plan.tokenizer.directory.empty()) inputs.push_back(plan.tokenizer.directory);
  return inputs;
}

void WriteSideFiles(const Plan& plan, const MergeOptions& options, const GraphResult& result,
                    const std::string& fingerprint, Staging* staging) {
  const auto write = [&](const std::string& name, std::string_view text) {
    WriteDurably(staging->PathFor(name), text);
  };
  // A delta is no model: nothing shall load it as one.
  if (!plan.delta()) WriteDonorFiles(plan, options.copy_tokenizer, staging);
  if (!plan.delta() && !plan.donor_config.path.empty()) {
    const std::string config = MergedConfig(plan.donor_config, plan.config_type, plan.untie_head);
    write("config.json", plan.tokenizer.rows > 0 ? WithVocabularySize(config, plan.tokenizer.rows) : config);
  }
  if (plan.shards.size() > 1) write(kIndexName, IndexText(plan));
  if (!plan.applies()) WriteRecipes(plan.recipe, staging);
  else if (!plan.recipe.text.empty()) WriteRecipes(ParseTomlRecipe(plan.recipe.text, plan.recipe.path), staging);
  if (options.write_model_card) write("README.md", ModelCard(plan, fs::path(staging->out()).filename().string()));
  write(kManifestName, ManifestText(plan, fingerprint, result.sums, result.alpha));
}

std::string LastFile(const Plan& plan) {
  return plan.shards.size() > 1 ? kIndexName : FileOf(plan, plan.shards.front());
}

void CheckSpace(const Plan& plan, const std::string& place, uint64_t needed, uint64_t free,
                const char* hint) {
  if (needed <= free) return;
  throw Error(ErrorCode::kIo,
              fmt::format("{} needs {}, the disk has {} free",
                          plan.in_order ? "what is merged before its turn" : "the merged checkpoint", SizeText(needed),
                          SizeText(free)))
      .Path(place)
      .Hint(hint);
}

std::vector<std::string> SpaceWarnings(const Plan& plan, uint64_t bytes, uint64_t free) {
  if (!plan.in_order || bytes <= free) return {};
  return {fmt::format("the disk has {} free: the output, {} before it is compressed, may not fit", SizeText(free),
                      SizeText(bytes))};
}

std::vector<std::string> WarningTexts(const Plan& plan) {
  std::vector<std::string> texts = WarningTexts(plan.recipe);
  for (const std::string& warning : plan.warnings) texts.push_back(Printable(warning));
  return texts;
}

void CheckOutput(const Plan& plan, const MergeOptions& options) {
  CheckSpool(plan);
  const bool pipe = options.out == kStandardOutput;
  if (pipe) CheckStandardOutput(InputsOf(plan));
  else CheckOutputPath(options.out, options.force, InputsOf(plan));
  // How small compressed shards become is known when they are.
  uint64_t needed = plan.totals.bytes_spilled;
  for (const SpilledStage& spill : plan.spills) needed += spill.plan->totals.bytes_written;
  if (!plan.in_order) needed += plan.totals.bytes_written;
  const std::string place = pipe ? SpillDirectory({options.out}) : options.out;
  CheckSpace(plan, place, needed, FreeSpace(place),
             pipe ? "free some space or set TMPDIR to a directory on another disk" : kOtherDisk);
}

namespace {

void Tell(const std::string& warning, const MergeOptions& options) {
  if (!options.quiet) PrintToStderr("warning: " + warning + "\n");
}

MergeReport RunOneOfSeveral(Plan* plan, const std::string& fingerprint, const MergeOptions& options,
                            const std::atomic<int>& interrupt, Progress* progress) {
  const std::vector<std::string> warnings = WarningTexts(*plan);
  for (const std::string& warning : warnings) Tell(warning, options);
  MergeReport report = RunRank(plan, fingerprint, options, interrupt, progress);
  report.warnings.insert(report.warnings.begin(), warnings.begin(), warnings.end());
  return report;
}

std::vector<std::string> WarningsBeforehand(const Plan& plan, const Staging* staging) {
  std::vector<std::string> warnings = WarningTexts(plan);
  if (staging == nullptr) return warnings;
  warnings.insert(warnings.end(), staging->notes().begin(), staging->notes().end());
  for (std::string& warning : SpaceWarnings(plan, plan.totals.bytes_written, FreeSpace(staging->out())))
    warnings.push_back(std::move(warning));
  return warnings;
}

// One process, which merges everything.
MergeReport RunAlone(Plan* plan, const std::string& fingerprint, const MergeOptions& options,
                     const std::atomic<int>& interrupt, Progress* progress) {
  // OUT may be written and fits the disk.
  CheckOutput(*plan, options);
  std::optional<Staging> staging;   // a pipe has none
  if (options.out != kStandardOutput) staging.emplace(options.out, options.force, InputsOf(*plan));
  MergeReport report;
  report.warnings = WarningsBeforehand(*plan, staging ? &*staging : nullptr);
  for (const std::string& warning : report.warnings) Tell(warning, options);

  // What stages leave each other.
  SpilledFiles spilled(staging ? staging->scratch_directory() : TemporaryDirectoryPath() + "/braid-stages");
  RunSpilledStages(plan, spilled, interrupt, options.quiet, progress);

  // The weights: complete and durable in OUT.partial, or gone through the pipe.
  StatisticsKeeper keeper(*plan);
  std::vector<std::string> paths;
  for (const PlannedShard& shard : plan->shards)
    paths.push_back(staging ? staging->PathFor(FileOf(*plan, shard)) : options.out);
  report.result =
      RunGraph(*plan, Share(*plan), fingerprint, paths, interrupt, options.quiet, progress, &keeper);
  spilled.Remove();

  // Everything else, then the one moment in which OUT appears.
  if (!plan->single_file) WriteSideFiles(*plan, options, report.result, fingerprint, &*staging);
  ThrowIfInterrupted(interrupt);
  if (staging) staging->Publish(LastFile(*plan));

  // What was found out on the way, for the next merge.
  keeper.Commit();
  for (const std::string& warning : keeper.warnings()) {
    report.warnings.push_back(Printable(warning));
    Tell(report.warnings.back(), options);
  }

  report.output = options.out;
  report.bytes_read = progress->of(Stage::kRead).bytes;
  report.bytes_written = report.result.bytes_written;
  report.peak_resident = ReadResidentMemory().peak;
  report.totals = plan->totals;
  report.fingerprint = fingerprint;
  return report;
}

}  // namespace

MergeReport RunMerge(const std::string& recipe_path, const MergeOptions& options, const std::atomic<int>& interrupt,
                     Progress* progress) {
  return RunMerge(ReadRecipe(recipe_path), options, interrupt, progress);
}

MergeReport RunMerge(Recipe recipe, const MergeOptions& options, const std::atomic<int>& interrupt,
                     Progress* progress) {
  const auto start = std::chrono::steady_clock::now();
  RaiseFileLimit();
  signal(SIGXFSZ, SIG_IGN);  // a file size limit becomes an error of write

  // What the user wrote was checked as far as it can be without models.
  RecordSeed(&recipe);
  const bool several = options.rank || options.group != nullptr;
  if (several) CheckRanks(recipe, options);

  // Headers read and checked; every output byte has its place; the budget suffices.
  PlanOptions plan_options = options.plan;
  ReadOutputName(options.out, &recipe, &plan_options);
  plan_options.interrupt = &interrupt;
  Plan plan = MakePlan(std::move(recipe), plan_options);
  const std::string fingerprint = PlanFingerprint(plan);

  // Merged and published; or, of several ranks, a part of it, until the last one publishes.
  if (several) return RunOneOfSeveral(&plan, fingerprint, options, interrupt, progress);
  MergeReport report = RunAlone(&plan, fingerprint, options, interrupt, progress);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace braid
