// One rank of a merge that several share (rank_job.h): the units of its part that nobody has done yet, and, when it finds
// all of them done, the publication.
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

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

// The units of our part, whoever else is there, but for what is done. Ranks that were started together divide what is
// left. Nothing at all: OUT has been published meanwhile.
std::optional<std::vector<uint32_t>> OurUnits(const RankJob& job, const MergeOptions& options) {
  const std::vector<OutputUnit>& units = job.units();
  if (options.group != nullptr) {
    std::vector<uint8_t> left(units.size());
    if (options.group->rank() == 0) {
      const auto now = job.Missing();
      if (!now) throw RankFilesGone(job.directory());
      for (uint32_t u : *now) left[u] = 1;
    }
    options.group->Broadcast(0, left.data(), left.size());
    std::vector<uint32_t> missing;
    for (uint32_t u = 0; u < units.size(); ++u)
      if (left[u] != 0) missing.push_back(u);
    return UnitsOfRank(units, missing, options.group->rank(), options.group->of());
  }
  const auto missing = job.Missing();
  if (!missing) return std::nullopt;
  const UnitRun run = RunsOfRanks(units, options.rank->of)[options.rank->rank];
  std::vector<uint32_t> ours;
  for (uint32_t u : *missing)
    if (u >= run.first && u < run.last) ours.push_back(u);
  return ours;
}

std::unique_ptr<Exchange> ExchangeFor(const RankJob& job, const RankOptions& rank, Group* group) {
  std::vector<UnitRun> runs = RunsOfRanks(job.units(), rank.of);
  if (group != nullptr) return NewGroupExchange(group, runs[rank.rank]);
  return NewFileExchange(job.directory(), std::move(runs), rank.rank);
}

// Of ranks that were started together: all of them are done, one publishes, and nobody leaves before it has.
RankJob::Outcome PublishTogether(RankJob* job, Group* group, const std::atomic<int>& interrupt) {
  group->Wait();
  RankJob::Outcome outcome = RankJob::Outcome::kByAnother;
  if (group->rank() == 0) outcome = job->Publish(interrupt);
  group->Wait();
  return outcome;
}

}  // namespace

MergeReport RunRank(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress) {
  const auto start = std::chrono::steady_clock::now();
  const RecipeOutput& output = plan.recipe.output;
  if (options.out == kStandardOutput)
    throw Error(ErrorCode::kUsage, "several ranks cannot write one stream").Hint("name a directory as OUT");
  if (output.compress != Compression::kNone)
    throw RecipeError(plan.recipe, output.where, "several ranks cannot write an output of this kind yet");
  if (!plan.streams.empty())
    throw Error(ErrorCode::kUsage, "several ranks cannot read one stream")
        .Path(plan.checkpoints[plan.streams.front().checkpoint].reference)
        .Hint("save it to a file first");
  Group* const group = options.group;
  MergeReport report;
  report.output = options.out;
  report.fingerprint = fingerprint;
  RankReport& rank = report.rank.emplace();
  static_cast<RankOptions&>(rank) = group != nullptr ? RankOptions{group->rank(), group->of()} : *options.rank;
  rank.together = group != nullptr;
  const auto finish = [&](RankJob::Outcome outcome) {
    rank.published = outcome == RankJob::Outcome::kPublished;
    rank.complete = outcome != RankJob::Outcome::kIncomplete;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.bytes_read = progress->of(Stage::kRead).bytes;
    report.bytes_written = progress->of(Stage::kWrite).bytes;
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
  rank.all_units = job.units().size();
  const auto ours = OurUnits(job, options);
  if (!ours) return finish(RankJob::Outcome::kByAnother);
  rank.units = ours->size();

  // A rank without units has statistics to take, if the others wait for them.
  if (!ours->empty() || group != nullptr) {
    const Share share(plan, job.units(), *ours);
    StatisticsKeeper keeper(plan);
    const auto exchange = ExchangeFor(job, rank, group);
    report.result = RunGraph(plan, share, fingerprint, job.shard_paths(), interrupt, options.quiet, progress, &keeper,
                             exchange.get(), [&](const WrittenUnits& units) { job.Mark(units); });
  }
  if (group != nullptr) return finish(PublishTogether(&job, group, interrupt));
  const RankJob::Outcome outcome = job.Publish(interrupt);
  if (outcome == RankJob::Outcome::kIncomplete)
    if (const auto left = job.Missing()) rank.units_missing = left->size();
  return finish(outcome);
}

}  // namespace braid
