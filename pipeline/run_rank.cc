// One rank of a merge that several share (rank_job.h): the units of its part that nobody has done yet, and, when it
// finds all of them done, the publication.
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
#include "pipeline/rank_turns.h"
#include "pipeline/run_internal.h"
#include "pipeline/shard_output.h"

namespace braid {
namespace {

bool IsOutputOf(const std::string& out, const std::string& fingerprint) {
  try {
    return ReadManifest(out).fingerprint == fingerprint;
  } catch (const Error&) {
    return false;
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

// A zstd file without a seek table, since a stream was refused before.
void CheckSources(const Plan& plan) {
  if (plan.streams.empty()) return;
  throw Error(ErrorCode::kUsage, "without a seek table, this is read from end to end, by each of several ranks")
      .Path(plan.checkpoints[plan.streams.front().checkpoint].reference)
      .Hint("decompress it first, or merge by one process");
}

// Whether much is found out before the first tensor is merged: each rank then merges all its units at once, since it
// would be found out again for each part of them.
bool FindsOfWhole(const Plan& plan) { return plan.model_scope || plan.measured || !plan.fronts.empty(); }

class RankRun {
 public:
  RankRun(Plan* plan, const std::string& fingerprint, const MergeOptions& options, const std::atomic<int>& interrupt,
          Progress* progress)
      : plan_(*plan), fingerprint_(fingerprint), options_(options), interrupt_(interrupt), progress_(*progress),
        group_(options.group),
        ranks_{group_ != nullptr ? RankOptions{group_->rank(), group_->of()} : *options.rank, group_} {
    report_.output = options.out;
    report_.fingerprint = fingerprint;
    report_.rank.emplace();
    static_cast<RankOptions&>(*report_.rank) = ranks_;
    report_.rank->together = group_ != nullptr;
  }

  MergeReport Run() {
    const auto start = std::chrono::steady_clock::now();
    CheckSources(plan_);
    const Outcome outcome = group_ != nullptr ? RunTogether() : RunApartOrTooLate();
    report_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    FinishReport(outcome);
    return std::move(report_);
  }

 private:
  using Outcome = RankJob::Outcome;

  // Whatever goes wrong while another rank publishes does not matter. Without --force there was no OUT before.
  Outcome RunApartOrTooLate() {
    try {
      return RunApart();
    } catch (const Error& error) {
      const bool too_late = dynamic_cast<const RankFilesGone*>(&error) != nullptr || !options_.force;
      if (error.code() == ErrorCode::kInterrupted || !too_late || !WasPublished()) throw;
      return Outcome::kByAnother;
    }
  }

  // A scheduler may run a rank again when all is over. One compressed file does not say which merge it is of: it is
  // ours when it has appeared since, and who has nothing to do need not know. Anything else that lies there is refused
  // later.
  bool WasPublished() const {
    if (!FileExists(options_.out)) return false;
    if (plan_.single_file && plan_.in_order) {
      const UnitRun ours = RunsOfRanks(OutputUnits(plan_), ranks_.of)[ranks_.rank];
      return !was_there_ || ours.first == ours.last;
    }
    return IsOutputOf(options_.out, fingerprint_);
  }

  // By files: our part, whoever else is there.
  Outcome RunApart() {
    if (!options_.force && WasPublished()) {
      Staging::RemoveLeftovers(options_.out, RankKey(plan_, fingerprint_, options_, OutputUnits(plan_)));
      return Outcome::kByAnother;
    }
    RankJob job(plan_, fingerprint_, options_);
    Join(job);
    Forget(job);
    do {
      const auto missing = job.marks().Missing();
      if (!missing) return Outcome::kByAnother;
      const std::vector<uint32_t> ours = OurUnits(job.marks(), *missing, ranks_);
      if (!ours.empty()) Begin(&job, ours);
      if (!FindsOfWhole(plan_)) MergeInParts(&job, ours);
      else if (!ours.empty()) Merge(job, ours);
    } while (Forget(job));
    const Outcome outcome = job.Publish(interrupt_);
    if (outcome == Outcome::kIncomplete)
      if (const auto left = job.marks().Missing()) report_.rank->units_missing = left->size();
    return outcome;
  }

  // All of them are done, one publishes, and nobody leaves before it has.
  Outcome RunTogether() {
    progress_.of_all_ranks = [this](uint64_t bytes) { return group_->Progress(bytes); };
    RankJob job(plan_, fingerprint_, options_);
    Join(job);
    const bool first = group_->rank() == 0;
    if (first) Forget(job);
    do {
      const std::vector<uint32_t> missing = MissingUnits(job.marks(), group_);
      if (!missing.empty()) Begin(&job, missing);
      MergeTogether(plan_, job.marks(), missing, group_, &progress_, [&](const auto& units) { Merge(job, units); });
      group_->Wait();
    } while (group_->Sum(first && Forget(job) ? 1 : 0) > 0);
    Outcome outcome = Outcome::kByAnother;
    if (first) outcome = job.Publish(interrupt_);
    group_->Wait();
    return outcome;
  }

  void Join(const RankJob& job) {
    report_.rank->all_units = job.marks().units().size();
    const std::string idle = IdleRanksText(plan_, job.marks().units(), ranks_.of);
    if (!idle.empty()) Warn(idle);
  }

  void Warn(const std::string& warning) {
    report_.warnings.push_back(warning);
    if (!options_.quiet) PrintToStderr("warning: " + warning + "\n");
  }

  // True when there is more to write than there was.
  bool Forget(const RankJob& job) {
    const std::vector<std::string> gone = job.ForgetGone(interrupt_);
    for (const std::string& name : gone) Warn(name + ": it was written, and is gone: it is written again");
    return !gone.empty();
  }

  static uint64_t BytesOf(const RankJob& job, const std::vector<uint32_t>& units) {
    uint64_t bytes = 0;
    for (uint32_t u : units) bytes += job.marks().units()[u].bytes();
    return bytes;
  }

  // Before the first unit is written: a disk that is too small, and what all units need. Of a group, rank 0 looks.
  void Begin(RankJob* job, const std::vector<uint32_t>& units) {
    if (begun_) return;
    begun_ = true;
    if (group_ == nullptr || group_->rank() == 0)
      for (const std::string& warning : job->CheckSpace(BytesOf(*job, units))) Warn(warning);
    if (group_ != nullptr) group_->Wait();
    RunSpilledStagesOfRanks(&plan_, job->marks().directory(), ranks_, interrupt_, options_.quiet, &progress_);
  }

  // Progress is that of all our units, and of what we help others with.
  void MergeInParts(RankJob* job, const std::vector<uint32_t>& ours) {
    Expect(BytesOf(*job, ours));
    progress_.of_all_ranks = [](uint64_t bytes) { return bytes; };
    MergeAndHelp(plan_, job->marks(), ranks_, interrupt_, [&](const std::vector<uint32_t>& units) {
      Begin(job, units);
      if (!std::binary_search(ours.begin(), ours.end(), units.front())) Expect(BytesOf(*job, units));
      Merge(*job, units);
    });
    progress_.of_all_ranks = {};
  }

  void Expect(uint64_t bytes) {
    const uint64_t all = std::max<uint64_t>(plan_.totals.bytes_written, 1);
    const double read_per_byte = static_cast<double>(plan_.totals.bytes_read) / static_cast<double>(all);
    progress_.bytes_to_write += bytes;
    progress_.bytes_to_read += static_cast<uint64_t>(static_cast<double>(bytes) * read_per_byte);
  }

  void Merge(const RankJob& job, const std::vector<uint32_t>& units) {
    const RankMarks& marks = job.marks();
    const Share share(plan_, marks.units(), units);
    StatisticsKeeper keeper(plan_);
    const auto exchange = ExchangeFor(marks, ranks_);
    report_.rank->units += units.size();
    Add(RunGraph(plan_, share, fingerprint_, job.shard_paths(), interrupt_, options_.quiet, &progress_, &keeper,
                 exchange.get(), [&](const WrittenUnits& written) { marks.Mark(written); }),
        &report_.result);
  }

  // Of ranks that were started together, it is of all of them.
  void FinishReport(Outcome outcome) {
    report_.rank->published = outcome == Outcome::kPublished;
    report_.rank->complete = outcome != Outcome::kIncomplete;
    report_.bytes_read = progress_.of(Stage::kRead).bytes;
    report_.bytes_written = report_.result.bytes_written;
    report_.peak_resident = ReadResidentMemory().peak;
    report_.totals = plan_.totals;
    if (group_ == nullptr) return;
    NonFinite& bad = report_.result.counts.non_finite;
    for (uint64_t* number : {&report_.bytes_read, &report_.bytes_written, &bad.nan, &bad.inf})
      *number = group_->Sum(*number);
  }

  Plan& plan_;
  const std::string& fingerprint_;
  const MergeOptions& options_;
  const std::atomic<int>& interrupt_;
  Progress& progress_;
  Group* const group_;
  const Ranks ranks_;
  const bool was_there_ = FileExists(options_.out);
  bool begun_ = false;
  MergeReport report_;
};

}  // namespace

void CheckRanks(const Recipe& recipe, const MergeOptions& options) {
  if (options.out == kStandardOutput)
    throw Error(ErrorCode::kUsage, "several ranks cannot write one stream").Hint("name a directory as OUT");
  const auto check = [](const Recipe& of, const std::string& reference, Location where) {
    if (!InputStream::IsNamedBy(reference)) return;
    throw RecipeError(of, where,
                      fmt::format("{}: a stream comes once, and each of several ranks reads by itself", reference))
        .Hint("save it to a file that all ranks see, or merge by one process");
  };
  const auto check_all = [&](const Recipe& of) {
    if (of.base) check(of, *of.base, of.base_where);
    for (const RecipeModel& model : of.models) check(of, model.reference, model.where);
    for (const RecipeModule& module : of.modules)
      for (const RecipeSlice& slice : module.slices) {
        if (slice.base) check(of, slice.base->reference, slice.base->where);
        for (const RecipeModel& model : slice.models) check(of, model.reference, model.where);
      }
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
  if (FindsOfWhole(plan)) return merge(UnitsOfRank(marks.units(), missing, group->rank(), group->of()));
  const std::vector<std::vector<uint32_t>> parts = PartsToTake(plan, marks.units(), missing, group->of());
  for (uint64_t i = group->Next(parts.size()); i < parts.size(); i = group->Next(parts.size())) merge(parts[i]);
}

std::unique_ptr<Exchange> ExchangeFor(const RankMarks& marks, const Ranks& ranks) {
  std::vector<UnitRun> runs = RunsOfRanks(marks.units(), ranks.of);
  if (ranks.group != nullptr) return NewGroupExchange(ranks.group, runs[ranks.rank]);
  return NewFileExchange(marks.directory(), std::move(runs), ranks.rank);
}

MergeReport RunRank(Plan* plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress) {
  return RankRun(plan, fingerprint, options, interrupt, progress).Run();
}

}  // namespace braid
