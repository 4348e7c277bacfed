// One rank of a merge that several share (rank_job.h): the units of its part that nobody has done yet, and, when it finds
// all of them done, the publication.
#include <algorithm>
#include <chrono>

#include "pipeline/budget.h"
#include "pipeline/manifest.h"
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

}  // namespace

MergeReport RunRank(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress) {
  const auto start = std::chrono::steady_clock::now();
  const RecipeOutput& output = plan.recipe.output;
  if (options.out == kStandardOutput)
    throw Error(ErrorCode::kUsage, "several ranks cannot write one stream").Hint("name a directory as OUT");
  if (output.compress != Compression::kNone)
    throw RecipeError(plan.recipe, output.where, "several ranks cannot write an output of this kind yet");
  MergeReport report;
  report.output = options.out;
  report.fingerprint = fingerprint;
  static_cast<RankOptions&>(report.rank.emplace()) = *options.rank;
  const auto finish = [&](RankJob::Outcome outcome) {
    report.rank->published = outcome == RankJob::Outcome::kPublished;
    report.rank->complete = outcome != RankJob::Outcome::kIncomplete;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.bytes_read = progress->of(Stage::kRead).bytes;
    report.bytes_written = progress->of(Stage::kWrite).bytes;
    report.peak_resident = ReadResidentMemory().peak;
    report.totals = plan.totals;
    return report;
  };
  if (!options.force && WasPublished(options.out, fingerprint)) {
    Staging::RemoveLeftovers(options.out, RankKey(plan, fingerprint, options, OutputUnits(plan)));
    return finish(RankJob::Outcome::kByAnother);
  }

  RankJob job(plan, fingerprint, options);
  const std::vector<OutputUnit>& units = job.units();
  std::vector<uint32_t> all(units.size());
  for (uint32_t u = 0; u < units.size(); ++u) all[u] = u;

  // Our part, whoever else is there, but for what is done.
  const auto missing = job.Missing();
  if (!missing) return finish(RankJob::Outcome::kByAnother);
  std::vector<OutputUnit> mine;
  for (uint32_t u : UnitsOfRank(units, all, options.rank->rank, options.rank->of))
    if (std::binary_search(missing->begin(), missing->end(), u)) mine.push_back(units[u]);
  report.rank->units = mine.size();

  if (!mine.empty()) {
    const Share share(plan, std::move(mine));
    StatisticsKeeper keeper(plan);
    report.result = RunGraph(plan, share, fingerprint, job.shard_paths(), interrupt, options.quiet, progress, &keeper,
                             [&](const WrittenUnit& unit) { job.Mark(unit); });
  }
  const RankJob::Outcome outcome = job.Publish(interrupt);
  report.rank->all_units = units.size();
  if (outcome == RankJob::Outcome::kIncomplete)
    if (const auto left = job.Missing()) report.rank->units_missing = left->size();
  return finish(outcome);
}

}  // namespace braid
