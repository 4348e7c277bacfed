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

// Of what is missing, the units of our part, whoever else is there. Ranks that were started together divide what is left.
std::vector<uint32_t> OurUnits(const RankMarks& marks, std::vector<uint32_t> missing, const Ranks& ranks) {
  if (ranks.group != nullptr) return UnitsOfRank(marks.units(), missing, ranks.rank, ranks.of);
  const UnitRun run = RunsOfRanks(marks.units(), ranks.of)[ranks.rank];
  std::erase_if(missing, [&](uint32_t u) { return u < run.first || u >= run.last; });
  return missing;
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

std::optional<std::vector<uint32_t>> MissingUnits(const RankMarks& marks, Group* group) {
  auto missing = group == nullptr || group->rank() == 0 ? marks.Missing() : std::vector<uint32_t>();
  if (group == nullptr) return missing;
  if (!missing) throw RankFilesGone(marks.directory());
  std::vector<uint8_t> left(marks.units().size());
  for (uint32_t u : *missing) left[u] = 1;
  group->Broadcast(0, left.data(), left.size());
  missing->clear();
  for (uint32_t u = 0; u < left.size(); ++u)
    if (left[u] != 0) missing->push_back(u);
  return missing;
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
    rank.published = outcome == RankJob::Outcome::kPublished;
    rank.complete = outcome != RankJob::Outcome::kIncomplete;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.bytes_read = progress->of(Stage::kRead).bytes;
    report.bytes_written = report.result.bytes_written;
    report.peak_resident = ReadResidentMemory().peak;
    report.totals = plan.totals;
    NonFinite& bad = report.result.counts.non_finite;
    if (group != nullptr)
      for (uint64_t* number : {&report.bytes_read, &report.bytes_written, &bad.nan, &bad.inf})
        *number = group->Sum(*number);
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
  const auto missing = MissingUnits(marks, group);
  if (!missing) return finish(RankJob::Outcome::kByAnother);
  const std::vector<uint32_t> ours = OurUnits(marks, *missing, ranks);
  rank.all_units = marks.units().size();
  rank.units = ours.size();

  // A rank without units has statistics to take, if the others wait for them.
  if (group != nullptr ? !missing->empty() : !ours.empty()) {
    RunSpilledStagesOfRanks(plan_of_all, marks.directory(), ranks, interrupt, options.quiet, progress);
    const Share share(plan, marks.units(), ours);
    StatisticsKeeper keeper(plan);
    const auto exchange = ExchangeFor(marks, ranks);
    report.result = RunGraph(plan, share, fingerprint, job.shard_paths(), interrupt, options.quiet, progress, &keeper,
                             exchange.get(), [&](const WrittenUnits& units) { marks.Mark(units); });
  }
  if (group != nullptr) return finish(PublishTogether(&job, group, interrupt));
  const RankJob::Outcome outcome = job.Publish(interrupt);
  if (outcome == RankJob::Outcome::kIncomplete)
    if (const auto left = marks.Missing()) rank.units_missing = left->size();
  return finish(outcome);
}

}  // namespace braid
