// braid plan RECIPE: what a merge would read, compute and write. From headers alone.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "io/error.h"
#include "io/model_directory.h"
#include "io/staging.h"
#include "io/temporary_file.h"
#include "pipeline/budget.h"
#include "pipeline/plan.h"
#include "pipeline/run.h"
#include "pipeline/share.h"
#include "tools/braid/command.h"
#include "tools/braid/merge_options.h"

namespace braid {
namespace {

void PrintLine(std::string_view label, const std::string& text) { fmt::print("{:<11}{}\n", label, text); }

void PrintModel(const Checkpoint& checkpoint) {
  PrintLine("model",
            fmt::format("{}  ({} in {} file{})", Printable(checkpoint.reference), SizeText(checkpoint.TotalBytes()),
                        checkpoint.shards.size(), checkpoint.shards.size() == 1 ? "" : "s"));
}

// "direct (NFS): models/base, models/math", one line per backend and reason.
std::vector<std::string> ReadingTexts(const Plan& plan) {
  std::map<std::string, std::string> sources;
  for (size_t i = 0; i < plan.checkpoints.size(); ++i) {
    if (plan.checkpoints[i].shards.empty() || plan.checkpoints[i].shards.front().path.empty()) continue;   // a stage's
    std::string& names = sources[fmt::format("{} ({})", ReadBackendName(plan.reading[i].backend), plan.reading[i].why)];
    names += (names.empty() ? "" : ", ") + Printable(plan.checkpoints[i].reference);
  }
  std::vector<std::string> texts;
  for (const auto& [how, names] : sources) texts.push_back(sources.size() == 1 ? how : how + ": " + names);
  return texts;
}

// "fifo: 1.05 GB in /tmp: 2 tensors out of order (model.norm.weight, lm_head.weight)", one line per stream and reason.
std::vector<std::string> SpoolTexts(const Plan& plan) {
  std::vector<std::string> texts;
  for (const PlannedStream& stream : plan.streams) {
    const Checkpoint& checkpoint = plan.checkpoints[stream.checkpoint];
    struct Spooled {
      uint64_t bytes = 0;
      std::vector<std::string> names;
    };
    std::map<SpoolReason, Spooled> by_reason;
    for (size_t i = 0; i < stream.tensors.size(); ++i) {
      const TensorInfo& info = checkpoint.tensors[stream.first + i].info;
      Spooled& spooled = by_reason[stream.tensors[i]];
      spooled.bytes += info.bytes, spooled.names.push_back(info.name);
    }
    by_reason.erase(SpoolReason::kNone);
    for (const auto& [reason, spooled] : by_reason)
      texts.push_back(fmt::format("{} of {}, {}: {} tensor{} ({})", SizeText(spooled.bytes),
                                  Printable(checkpoint.reference), SpoolReasonName(reason), spooled.names.size(),
                                  spooled.names.size() == 1 ? "" : "s", ListedNames(spooled.names, 3)));
    if (by_reason.empty()) texts.push_back(fmt::format("nothing of {}", Printable(checkpoint.reference)));
  }
  return texts;
}

// What is merged, and how.
void PrintMerge(const Plan& plan) {
  PrintLine("method", fmt::format("{}: {}", plan.method->name, plan.method->summary));
  if (plan.base >= 0) PrintLine("base", Printable(plan.checkpoints[static_cast<size_t>(plan.base)].reference));
  for (uint32_t model : plan.models) PrintModel(plan.checkpoints[model]);
}

// Of a stage with statistics of whole models, or that such a stage reads.
std::string ChoiceText(const Plan& plan, uint32_t stage) {
  const SpillChoice& choice = *plan.stages[stage].choice;
  const auto spill = std::find_if(plan.spills.begin(), plan.spills.end(),
                                  [&](const SpilledStage& candidate) { return candidate.stage == stage; });
  if (spill == plan.spills.end())
    return fmt::format("is computed anew where it is needed: {} read and written in all, {} if it were merged into a "
                       "file first",
                       SizeText(choice.recomputed), SizeText(choice.spilled));
  const std::string why = choice.why_not.empty()
                              ? fmt::format("{} read and written in all, {} if it were computed anew",
                                            SizeText(choice.spilled), SizeText(choice.recomputed))
                              : "it cannot be computed anew where it is needed, because " + choice.why_not;
  return fmt::format("is merged first, from {}, into a file of {} beside the output: {}",
                     SizeText(spill->plan->totals.bytes_read), SizeText(spill->plan->totals.bytes_written), why);
}

void PrintStages(const Plan& plan) {
  const auto name_of = [&](uint32_t c) { return Printable(plan.checkpoints[c].reference); };
  for (const PlannedStage& stage : plan.stages) {
    std::string models;
    for (uint32_t model : stage.models) models += (models.empty() ? "" : ", ") + name_of(model);
    const std::string base = stage.base < 0 ? "" : ", base " + name_of(static_cast<uint32_t>(stage.base));
    const std::string type = stage.type ? fmt::format(", as {}", TorchName(*stage.type)) : "";
    PrintLine("stage", fmt::format("{}{} of {}{}{}; {} of statistics",
                                   stage.name.empty() ? "" : Printable(stage.name) + ": ", stage.method->name, models,
                                   base, type, stage.rounds == 1 ? "1 round" : fmt::format("{} rounds", stage.rounds)));
    if (stage.choice) PrintLine("", ChoiceText(plan, static_cast<uint32_t>(&stage - plan.stages.data())));
  }
  for (const Checkpoint& checkpoint : plan.checkpoints)
    if (!checkpoint.shards.empty() && !checkpoint.shards.front().path.empty()) PrintModel(checkpoint);
}

// What each of so many ranks would write.
void PrintRanks(const Plan& plan, uint32_t of) {
  const std::vector<OutputUnit> units = OutputUnits(plan);
  const std::vector<UnitRun> runs = RunsOfRanks(units, of);
  for (uint32_t rank = 0; rank < of; ++rank) {
    uint64_t bytes = 0;
    for (uint32_t u = runs[rank].first; u < runs[rank].last; ++u) bytes += units[u].bytes();
    fmt::print("{:<11}{} of {} pieces, {}{}\n", fmt::format("rank {}", rank), runs[rank].last - runs[rank].first,
               units.size(), SizeText(bytes),
               bytes == 0 ? "" : fmt::format(", from {}", plan.shards[units[runs[rank].first].shard].name));
  }
  if (!plan.spills.empty()) PrintLine("", "those that run at once divide what is merged first, too");
  if (const std::string idle = IdleRanksText(plan, units, of); !idle.empty()) PrintLine("warning", idle);
}

void PrintPlan(const Plan& plan) {
  const auto line = PrintLine;
  if (plan.stages.empty()) PrintMerge(plan);
  else PrintStages(plan);
  for (const std::string& text : ReadingTexts(plan)) line("io", text);
  const PlanTotals& totals = plan.totals;
  line("tensors", fmt::format("{} merged, {} copied, {} unchanged, {:.3f} billion parameters", totals.merged,
                              totals.copied, totals.unchanged, static_cast<double>(totals.parameters) / 1e9));
  size_t resident = 0, drafted = 0;
  for (const PlannedScope& scope : plan.scopes) {
    drafted += scope.approach == Approach::kDraft;
    resident += scope.resident && scope.approach != Approach::kDraft;
  }
  line("rounds", fmt::format("{}{}", totals.read_per_round.size(),
                             !plan.fronts.empty() ? ", of the whole model and of single tensors in turn"
                             : plan.model_scope   ? ", over the whole model"
                                                  : ""));
  for (size_t r = 0; r < totals.read_per_round.size(); ++r)
    line("", fmt::format("round {}: {}", r + 1, SizeText(totals.read_per_round[r])));
  if (drafted > 0)
    line("",
         fmt::format("{} of {} tensors are read once: a sample says nearly all, what it leaves open waits in memory",
                     drafted, plan.scopes.size()));
  if (resident > 0)
    line("", fmt::format("{} of {} tensors stay in memory from the first round to the {}", resident, plan.scopes.size(),
                         plan.measured ? "one before the last" : "last"));
  if (plan.measured)
    line("", "the last round begins when the others are through: the alpha of layer_scale is found from all tensors");
  line("reads", fmt::format("{} (what is mapped and still in the page cache is not read from the disk again)",
                            SizeText(totals.bytes_read)));
  for (const std::string& text : SpoolTexts(plan)) line("spools", text);
  if (totals.bytes_spooled > 0)
    line("", fmt::format("{} in {} (TMPDIR), gone when the merge ends", SizeText(totals.bytes_spooled),
                         TemporaryDirectoryPath()));
  line("writes", fmt::format("{} in {} shard{}{}", SizeText(totals.bytes_written), plan.shards.size(),
                             plan.shards.size() == 1 ? "" : "s",
                             plan.delta() ? ", a delta: the merged task vector without the base" : ""));
  if (const Compression compression = plan.recipe.output.compress; compression != Compression::kNone)
    line("", fmt::format("compressed ({}) by {} threads: so much is not known yet", CompressionName(compression),
                         plan.memory.encoders));
  if (totals.bytes_spilled > 0)
    line("",
         fmt::format("{} of it come before their turn and wait in a temporary file", SizeText(totals.bytes_spilled)));
  const MemoryPlan& m = plan.memory;
  line("memory", fmt::format("{} MiB: {} MiB for tiles and statistics, {} MiB output buffers, {} MiB drafts, {} MiB "
                             "catalogue and scratch; {} MiB would do",
                             m.budget >> 20, m.pool >> 20, m.buffers * m.buffer_bytes >> 20,
                             (m.drafts * m.buffer_bytes + m.open) >> 20, (m.catalogue + m.scratch) >> 20,
                             (m.least + (1 << 20) - 1) >> 20));
  if (const DecodingSizes& d = m.decoding; d.decoders > 0)
    line("frames", fmt::format("of compressed shards: {} decoded at once, {} kept for the next tile, {} MiB",
                               d.decoders, d.kept, d.MemoryBytes() >> 20));
  line("tile", fmt::format("{} elements, {} threads", m.tile_elements, m.threads));
  for (const std::string& warning : WarningTexts(plan)) line("warning", warning);
}

void Run(const MergeArguments& arguments) {
  const Plan plan = MakePlan(RecipeFrom(arguments), PlanOptionsFrom(arguments));
  const uint64_t free = FreeSpace(".");
  uint64_t needed = plan.totals.bytes_written;
  for (const SpilledStage& spill : plan.spills) needed += spill.plan->totals.bytes_written;
  if (JsonWanted()) {
    WritePlanJson(plan, {{"disk_needed", needed}, {"disk_free_here", free}},
                  [](std::string_view text) { fmt::print("{}", text); });
    fmt::print("\n");
    return;
  }
  PrintPlan(plan);
  fmt::print("{:<11}{} needed, {} free here\n", "disk", SizeText(needed), SizeText(free));
  if (arguments.of > 0) PrintRanks(plan, static_cast<uint32_t>(arguments.of));
}

}  // namespace

void AddPlanCommand(CLI::App& app) {
  auto arguments = std::make_shared<MergeArguments>();
  CLI::App* command = app.add_subcommand(
      "plan", "Show what a merge would read, compute and write, without doing it\n\n  braid plan configs/ties.toml\n");
  command->add_option("RECIPE", arguments->recipe, "Recipe")->required();
  AddPlanOptions(command, arguments.get());
  command->add_option("--of", arguments->of, "Show what each of so many ranks would write")
      ->check(CLI::Range(1, 100'000));
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
