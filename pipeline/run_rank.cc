// One rank of a merge that several share (rank_job.h): the units of its part that nobody has done yet, and, when it finds
// all of them done, the publication.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

#include "io/error.h"
#include "io/input_stream.h"
#include "pipeline/budget.h"
#include "pipeline/exchange.h"
#include "pipeline/manifest.h"
#include "pipeline/rank_files.h"
#include "pipeline/rank_job.h"
#include "pipeline/run_internal.h"
#include "pipeline/shard_output.h"

namespace braid {
namespace {

// A scheduler may run a rank again when all is over.
bool WasPublished(const std::string& out, const std::string& fingerprint) {
  if (!FileExists(out)) return false;
  try {
    return ReadManifest(out).fingerprint == fingerprint;
  } catch (const Error&) {
    return false;   // something else lies there, which Staging refuses
  }
}

// Of what is missing, the units of our part, whoever else is there.
std::vector<uint32_t> OurUnits(const RankMarks& marks, std::vector<uint32_t> missing, const RankOptions& rank) {
  const UnitRun run = RunsOfRanks(marks.units(), rank.of)[rank.rank];
  std::erase_if(missing, [&](uint32_t u) { return u < run.first || u >= run.last; });
  return missing;
}

// Of one more part.
void Add(const GraphResult& part, GraphResult* result) {
  result->counts.conflicts += part.counts.conflicts;
  result->counts.non_finite.nan += part.counts.non_finite.nan;
  result->counts.non_finite.inf += part.counts.non_finite.inf;
  result->entries += part.entries, result->kept += part.kept;
  if (part.alpha) result->alpha = part.alpha;
  result->bytes_written += part.bytes_written, result->bytes_spilled += part.bytes_spilled;
}

// Of ranks that were started together: all of them are done, one publishes, and nobody leaves before it has.
RankJob::Outcome PublishTogether(RankJob* job, Group* group, const std::atomic<int>& interrupt) {
  group->Wait();
  RankJob::Outcome outcome = RankJob::Outcome::kByAnother;
  if (group->rank() == 0) outcome = job->Publish(interrupt);
  group->Wait();
  return outcome;
}

// A zstd file without a seek table, since a stream was refused before.
void CheckSources(const Plan& plan) {
  if (plan.streams.empty()) return;
  throw Error(ErrorCode::kUsage, "without a seek table, this is read from end to end, by each of several ranks")
      .Path(plan.checkpoints[plan.streams.front().checkpoint].reference)
      .Hint("decompress it first, or merge by one process");
}

// The rest of what it says. Of ranks that were started together, it is of all of them.
void FinishReport(RankJob::Outcome outcome, const Progress& progress, Group* group, MergeReport* report) {
  report->rank->published = outcome == RankJob::Outcome::kPublished;
  report->rank->complete = outcome != RankJob::Outcome::kIncomplete;
  report->bytes_read = progress.of(Stage::kRead).bytes;
  report->bytes_written = report->result.bytes_written;
  report->peak_resident = ReadResidentMemory().peak;
  if (group == nullptr) return;
  NonFinite& bad = report->result.counts.non_finite;
  for (uint64_t* number : {&report->bytes_read, &report->bytes_written, &bad.nan, &bad.inf}) *number = group->Sum(*number);
}

}  // namespace

void CheckRanks(const Recipe& recipe, const MergeOptions& options) {
  if (options.out == kStandardOutput)
    throw Error(ErrorCode::kUsage, "several ranks cannot write one stream").Hint("name a directory as OUT");
  const auto check = [](const Recipe& of, const std::string& reference, Location where) {
    if (!InputStream::IsNamedBy(reference)) return;
    throw RecipeError(of, where, fmt::format("{}: a stream comes once, and each of several ranks reads by itself", reference))
        .Hint("save it to a file that all ranks see, or merge by one process");
  };
  const auto check_all = [&](const Recipe& of) {
    if (of.base) check(of, *of.base, of.base_where);
    for (const RecipeModel& model : of.models) check(of, model.reference, model.where);
    for (const RecipeModule& module : of.modules)
      for (const RecipeSlice& slice : module.slices)
        for (const RecipeModel& model : slice.models) check(of, model.reference, model.where);
  };
  for (const Recipe& stage : recipe.stages) check_all(stage);
  check_all(recipe);
}

// Rank 0 looks.
std::vector<uint32_t> MissingUnits(const RankMarks& marks, Group* group) {
  std::vector<uint8_t> left(marks.units().size());
  if (group->rank() == 0) {
    const auto missing = marks.Missing();
    if (!missing) throw RankFilesGone(marks.directory());
    for (uint32_t u : *missing) left[u] = 1;
  }
  group->Broadcast(0, left.data(), left.size());
  std::vector<uint32_t> missing;
  for (uint32_t u = 0; u < left.size(); ++u)
    if (left[u] != 0) missing.push_back(u);
  return missing;
}

void MergeTogether(const Plan& plan, const RankMarks& marks, const std::vector<uint32_t>& missing, Group* group,
                   Progress* progress, const std::function<void(const std::vector<uint32_t>&)>& merge) {
  if (missing.empty()) return;
  progress->bytes_to_read += plan.totals.bytes_read, progress->bytes_to_write += plan.totals.bytes_written;
  if (plan.model_scope || plan.measured) return merge(UnitsOfRank(marks.units(), missing, group->rank(), group->of()));
  const std::vector<std::vector<uint32_t>> parts = PartsToTake(plan, marks.units(), missing, group->of());
  for (uint64_t i = group->Next(parts.size()); i < parts.size(); i = group->Next(parts.size())) merge(parts[i]);
}

std::unique_ptr<Exchange> ExchangeFor(const RankMarks& marks, const Ranks& ranks) {
  std::vector<UnitRun> runs = RunsOfRanks(marks.units(), ranks.of);
  if (ranks.group != nullptr) return NewGroupExchange(ranks.group, runs[ranks.rank]);
  return NewFileExchange(marks.directory(), std::move(runs), ranks.rank);
}

MergeReport RunRank(Plan* plan_of_all, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress) {
  const auto start = std::chrono::steady_clock::now();
  const Plan& plan = *plan_of_all;
  CheckSources(plan);
  Group* const group = options.group;
  const Ranks ranks{group != nullptr ? RankOptions{group->rank(), group->of()} : *options.rank, group};
  MergeReport report;
  report.output = options.out;
  report.fingerprint = fingerprint;
  RankReport& rank = report.rank.emplace();
  static_cast<RankOptions&>(rank) = ranks;
  rank.together = group != nullptr;
  const auto finish = [&](RankJob::Outcome outcome) {
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.totals = plan.totals;
    FinishReport(outcome, *progress, group, &report);
    return report;
  };
  if (group == nullptr && !options.force && WasPublished(options.out, fingerprint)) {
    Staging::RemoveLeftovers(options.out, RankKey(plan, fingerprint, options, OutputUnits(plan)));
    return finish(RankJob::Outcome::kByAnother);
  }
  if (group != nullptr)
    progress->of_all_ranks = [group](uint64_t bytes) { return group->Progress(bytes); };

  RankJob job(plan, fingerprint, options);
  const RankMarks& marks = job.marks();
  if (const std::string idle = IdleRanksText(plan, marks.units(), ranks.of); !idle.empty()) {
    report.warnings.push_back(idle);
    if (!options.quiet) PrintToStderr("warning: " + idle + "\n");
  }
  rank.all_units = marks.units().size();
  const auto merge_stages = [&] {
    RunSpilledStagesOfRanks(plan_of_all, marks.directory(), ranks, interrupt, options.quiet, progress);
  };
  const auto merge = [&](const std::vector<uint32_t>& units) {
    const Share share(plan, marks.units(), units);
    StatisticsKeeper keeper(plan);
    const auto exchange = ExchangeFor(marks, ranks);
    rank.units += units.size();
    Add(RunGraph(plan, share, fingerprint, job.shard_paths(), interrupt, options.quiet, progress, &keeper,
                 exchange.get(), [&](const WrittenUnits& written) { marks.Mark(written); }),
        &report.result);
  };
  if (group != nullptr) {
    const std::vector<uint32_t> missing = MissingUnits(marks, group);
    if (!missing.empty()) merge_stages();
    MergeTogether(plan, marks, missing, group, progress, merge);
    return finish(PublishTogether(&job, group, interrupt));
  }
  const auto missing = marks.Missing();
  if (!missing) return finish(RankJob::Outcome::kByAnother);
  const std::vector<uint32_t> ours = OurUnits(marks, *missing, ranks);
  if (!ours.empty()) merge_stages(), merge(ours);
  const RankJob::Outcome outcome = job.Publish(interrupt);
  if (outcome == RankJob::Outcome::kIncomplete)
    if (const auto left = marks.Missing()) rank.units_missing = left->size();
  return finish(outcome);
}

}  // namespace braid
