// braid merge RECIPE OUT: the main job.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <memory>

#include "io/error.h"
#include "io/json.h"
#include "pipeline/budget.h"
#include "pipeline/manifest.h"
#include "pipeline/recipe_output.h"
#include "pipeline/recipe_writer.h"
#include "pipeline/run.h"
#include "tools/braid/command.h"
#include "tools/braid/group.h"
#include "tools/braid/merge_options.h"

namespace braid {
namespace {

double Seconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e9; }
double Gigabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }

std::string Percent(uint64_t part, uint64_t whole) {
  return fmt::format("{:.2f} %", whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

Json ReportToJson(const MergeReport& report, const Progress& progress, bool stats) {
  Json out = {{"status", "ok"},
              {"seconds", report.seconds},
              {"bytes_read", report.bytes_read},
              {"bytes_written", report.bytes_written},
              {"peak_rss_bytes", report.peak_resident},
              {"output", report.output},
              {"fingerprint", report.fingerprint},
              {"tensors_merged", report.totals.merged},
              {"tensors_copied", report.totals.copied},
              {"tensors_unchanged", report.totals.unchanged},
              {"parameters", report.totals.parameters},
              {"entries", report.result.entries},
              {"entries_kept", report.result.kept},
              {"sign_conflicts", report.result.counts.conflicts},
              {"nan", report.result.counts.non_finite.nan},
              {"inf", report.result.counts.non_finite.inf},
              {"warnings", report.warnings}};
  if (report.result.bytes_spilled > 0) out["bytes_spilled"] = report.result.bytes_spilled;
  if (report.result.stream_sum) out["xxh3_128"] = SumText(*report.result.stream_sum);
  if (report.result.alpha) out["layer_scale_alpha"] = *report.result.alpha;
  if (report.rank)
    out["rank"] = {{"rank", report.rank->rank}, {"of", report.rank->of}, {"units", report.rank->units},
                   {"all_units", report.rank->all_units}, {"units_missing", report.rank->units_missing},
                   {"complete", report.rank->complete}, {"published", report.rank->published}};
  if (!stats) return out;
  for (size_t i = 0; i < progress.stages.size(); ++i) {
    const StageCounters& s = progress.stages[i];
    out["stages"][std::string(StageName(static_cast<Stage>(i)))] = {
        {"bytes", s.bytes.load()}, {"wall", Seconds(s.wall_ns)}, {"cpu", Seconds(s.cpu_ns)},
        {"stall", Seconds(s.stall_ns)}};
  }
  return out;
}

void PrintSummary(const MergeReport& report) {
  const double seconds = std::max(report.seconds, 1e-3);
  fmt::print(Results(), "merged {} tensors ({} copied, {} unchanged), {:.2f} billion parameters, in {:.1f} s\n",
             report.totals.merged, report.totals.copied, report.totals.unchanged,
             static_cast<double>(report.totals.parameters) / 1e9, report.seconds);
  if (report.bytes_written != report.totals.bytes_written && !report.rank)
    fmt::print(Results(), "compressed {} to {}\n", SizeText(report.totals.bytes_written),
               Percent(report.bytes_written, report.totals.bytes_written));
  fmt::print(Results(), "read {} and wrote {} ({:.2f} GB/s), peak memory {} MiB\n", SizeText(report.bytes_read),
             SizeText(report.bytes_written), Gigabytes(report.bytes_read + report.bytes_written) / seconds,
             report.peak_resident >> 20);
  if (report.rank) fmt::print(Results(), "by {} ranks\n", report.rank->of);
  if (report.result.entries > 0 && !report.rank)   // a rank knows of its own
    fmt::print(Results(), "trimmed {} of the task vectors' entries; signs conflicted at {} of the parameters\n",
               Percent(report.result.entries - report.result.kept, report.result.entries),
               Percent(report.result.counts.conflicts, report.totals.merged_elements));
  if (report.result.alpha) fmt::print(Results(), "layer_scale: alpha = {:.6g}\n", *report.result.alpha);
  const NonFinite& bad = report.result.counts.non_finite;
  if (bad.nan + bad.inf > 0)
    fmt::print(Results(), "the output holds {} NaN and {} infinite values\n", bad.nan, bad.inf);
  else fmt::print(Results(), "no NaN, no infinite values\n");
  if (const auto sum = report.result.stream_sum)
    return fmt::print(Results(), "output: standard output, {} bytes, XXH3-128 {}\n", report.bytes_written,
                      SumText(*sum));
  fmt::print(Results(), "output: {}   (check it any time: braid verify {})\n", report.output, report.output);
}

void PrintRank(const MergeReport& report) {
  const RankReport& rank = *report.rank;
  fmt::print("rank {} of {}: {} of {} pieces written, {} read and {} written, in {:.1f} s, peak memory {} MiB\n",
             rank.rank, rank.of, rank.units, rank.all_units, SizeText(report.bytes_read),
             SizeText(report.bytes_written), report.seconds, report.peak_resident >> 20);
  if (rank.published) fmt::print("output: {}   (check it any time: braid verify {})\n", report.output, report.output);
  else if (rank.complete) fmt::print("output: {}, which another rank has published\n", report.output);
  else
    fmt::print("{} pieces are left to other ranks; {} appears with the last one\n", rank.units_missing, report.output);
}

// Bytes: of the sources that a stage went through (read: mapped), for write those of the output.
void PrintStages(const Progress& progress) {
  fmt::print(Results(), "{:<12}{:>12}{:>10}{:>10}{:>10}{:>10}\n", "stage", "bytes", "wall s", "cpu s", "stall s",
             "GB/s");
  for (size_t i = 0; i < progress.stages.size(); ++i) {
    const StageCounters& s = progress.stages[i];
    const double wall = Seconds(s.wall_ns);
    fmt::print(Results(), "{:<12}{:>12}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}\n", StageName(static_cast<Stage>(i)),
               SizeText(s.bytes), wall, Seconds(s.cpu_ns), Seconds(s.stall_ns),
               wall > 0 ? Gigabytes(s.bytes) / wall : 0.0);
  }
}

void Run(const MergeArguments& arguments) {
  RouteResults(arguments.out);
  MergeOptions options;
  if (arguments.of == 0) options.group = JoinGroup();
  // What ends one of several ends all of them, without a word from each: the launcher sees to it.
  if (options.group == nullptr) HandleSignals();
  else signal(SIGPIPE, SIG_IGN);
  options.out = arguments.out;
  options.plan = PlanOptionsFrom(arguments);
  options.force = arguments.force;
  options.quiet = arguments.quiet || (options.group != nullptr && options.group->rank() > 0);
  if (options.group != nullptr && !arguments.cache.empty())
    throw Error(ErrorCode::kUsage, "--cache cannot be used with several ranks: each would write it anew");
  if (arguments.of > 0) {
    if (arguments.rank >= arguments.of)
      throw Error(ErrorCode::kUsage, fmt::format("there is no rank {} of {}", arguments.rank, arguments.of))
          .Hint("ranks count from 0");
    if (!arguments.cache.empty())
      throw Error(ErrorCode::kUsage, "--cache cannot be used with --rank: ranks would each write it anew");
    options.rank = {static_cast<uint32_t>(arguments.rank), static_cast<uint32_t>(arguments.of)};
  }
  MergeAndReport(RecipeFrom(arguments), options, arguments.stats);
}

}  // namespace

void MergeAndReport(Recipe recipe, const MergeOptions& options, bool stats) {
  Progress progress;
  const MergeReport report = RunMerge(std::move(recipe), options, Interrupt(), &progress);
  if (options.group != nullptr && options.group->rank() > 0) return;
  if (JsonWanted()) {
    fmt::print(Results(), "{}\n",
               ReportToJson(report, progress, stats).dump(-1, ' ', false, Json::error_handler_t::replace));
    return;
  }
  if (!options.quiet) report.rank && !report.rank->together ? PrintRank(report) : PrintSummary(report);
  if (stats) PrintStages(progress);
}

void AddResourceOptions(CLI::App* command, MergeArguments* arguments) {
  command->add_option(
      "--memory", arguments->memory,
      "Most memory to use, as 512MiB or 4GB. Default: a quarter of what is available, 256 MiB to 4 GiB");
  command->add_option("--threads", arguments->threads, "Worker threads. Default: one per core")
      ->check(CLI::Range(1, 1024));
  command
      ->add_option(
          "--io", arguments->io,
          "How to read: mapped, direct (past the page cache), or auto: mapped, but direct on network file systems")
      ->check(CLI::IsMember({"auto", "mapped", "direct"}));
  command->add_option("--shard-size", arguments->shard_size,
                      "Largest output shard, decimal as on the Hub. Default: 5GB");
  command
      ->add_option("--compress", arguments->compress,
                   "Compress the shards: zstd, planes (smaller and faster, for `braid cat`), or none. Default: as the "
                   "recipe's [output] says")
      ->check(CLI::IsMember({"none", "zstd", "planes"}));
}

void AddPlanOptions(CLI::App* command, MergeArguments* arguments) {
  AddResourceOptions(command, arguments);
  command->add_option(
      "--cache", arguments->cache,
      "Directory that keeps thresholds and histograms, so that a later merge of these models with other "
      "weights reads them once. Default: nothing is kept");
}

Recipe RecipeFrom(const MergeArguments& arguments) {
  Recipe recipe = ReadRecipe(arguments.recipe);
  const auto compress = ParseCompression(arguments.compress);
  if (!compress || *compress == recipe.output.compress) return recipe;
  recipe.output.compress = *compress;
  if (recipe.syntax == Syntax::kToml) recipe.text = WriteRecipe(recipe, Syntax::kToml);  // what was done stays with it
  return recipe;
}

PlanOptions PlanOptionsFrom(const MergeArguments& arguments) {
  PlanOptions options;
  if (!arguments.memory.empty()) options.memory = ParseSize(arguments.memory, "--memory");
  if (!arguments.shard_size.empty()) options.shard_bytes = ParseSize(arguments.shard_size, "--shard-size");
  options.threads = arguments.threads;
  options.cache = arguments.cache;
  if (arguments.io != "auto") options.read = arguments.io == "direct" ? ReadMode::kDirect : ReadMode::kMapped;
  return options;
}

void AddMergeCommand(CLI::App& app) {
  auto arguments = std::make_shared<MergeArguments>();
  CLI::App* command = app.add_subcommand(
      "merge", "Merge checkpoints by a recipe\n\n  braid merge configs/ties.toml merged --memory 2GiB\n"
               "  braid merge configs/ties.toml - | zstd -T0 | ssh host 'cat > merged.safetensors.zst'\n"
               "  ssh host cat math.safetensors | braid merge configs/ties-from-a-pipe.toml merged\n\n"
               "A source of the recipe may be \"-\" (standard input), a FIFO or /dev/fd/N: one safetensors file, plain "
               "or\nzstd, read once and in order.\n");
  command->add_option("RECIPE", arguments->recipe, "Recipe: our TOML, or mergekit's YAML (.yml, .yaml)")->required();
  command->add_option("OUT", arguments->out,
                      "Directory to write, one file if it ends in .safetensors (or .safetensors.zst), or - for one "
                      "safetensors stream on standard output")
      ->required();
  AddPlanOptions(command, arguments.get());
  command->add_flag("--force", arguments->force, "Replace OUT if it is a checkpoint");
  CLI::Option* rank = command
      ->add_option("--rank", arguments->rank,
                   "Do this part of the work, counted from 0; with --of. Ranks run at once or one after another, on "
                   "any machines that share OUT's file system; one that is done helps others that are at work, and the "
                   "last one to end publishes OUT. One that died is run again. (mpirun -n N braid merge RECIPE OUT does "
                   "all of this by itself)")
      ->check(CLI::Range(0, 99'999));
  CLI::Option* of = command->add_option("--of", arguments->of, "How many ranks there are");
  of->check(CLI::Range(1, 100'000));
  rank->needs(of);
  of->needs(rank);
  command->add_flag("--quiet", arguments->quiet, "Print nothing but errors");
  command->add_flag("--stats", arguments->stats, "Print bytes and times per stage");
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
