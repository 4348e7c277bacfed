// Stages that are merged first, into a file (run_stages.h), of a merge by several ranks. Each stage is a job of its
// own, in a directory of the ranks: its file, marks of what is done, statistics that are taken together. Ranks at once
// divide it and wait for each other, since what follows needs all of it; one that finds nobody else does it all.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "io/error.h"
#include "pipeline/interrupt.h"
#include "pipeline/plan_lent.h"
#include "pipeline/rank_files.h"
#include "pipeline/rank_marks.h"
#include "pipeline/rank_turns.h"
#include "pipeline/run_internal.h"
#include "pipeline/statistics_cache.h"

namespace braid {
namespace {

// Of a plan whose checkpoints are lent to it.
class StageJob {
 public:
  StageJob(const SpilledStage& spill, const std::string& directory, const Ranks& ranks,
           const std::atomic<int>& interrupt, bool quiet, Progress* progress)
      : spill_(spill), path_(StageFile(directory)), marks_(directory, OutputUnits(*spill.plan)),
        ranks_(ranks), interrupt_(interrupt), quiet_(quiet), progress_(progress) {
    if (TheOs().Mkdir(directory.c_str(), 0777) < 0 && errno != EEXIST) throw SystemError(errno, "make it", directory);
  }

  const std::string& path() const { return path_; }

  // Afterwards the file is complete.
  void Run() {
    if (ranks_.group == nullptr || ranks_.group->rank() == 0) marks_.ForgetGone({path_});
    if (ranks_.group == nullptr) return RunAlone();
    const std::vector<uint32_t> missing = MissingUnits(marks_, ranks_.group);
    MergeTogether(*spill_.plan, marks_, missing, ranks_.group, progress_, [&](const auto& units) { Merge(units); });
    ranks_.group->Wait();
  }

 private:
  // With whoever else is there: what nobody has done, and no living process is at, our own part first.
  void RunAlone() {
    const std::vector<UnitRun> runs = RunsOfRanks(marks_.units(), ranks_.of);
    auto pause = std::chrono::milliseconds(10);
    for (;;) {
      ThrowIfInterrupted(interrupt_);
      const auto missing = marks_.Missing();
      if (!missing) throw RankFilesGone(marks_.directory());
      if (missing->empty()) return;
      bool merged = false;
      for (uint32_t i = 0; i < ranks_.of && !merged; ++i)
        merged = MergeInTurn(marks_, *missing, runs[(ranks_.rank + i) % ranks_.of],
                             [&](const std::vector<uint32_t>& units) { Merge(units); });
      if (merged) continue;
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds(500));
    }
  }

  void Merge(const std::vector<uint32_t>& units) {
    const Share share(*spill_.plan, marks_.units(), units);
    StatisticsKeeper keeper(*spill_.plan);
    const auto exchange = ExchangeFor(marks_, ranks_);
    RunGraph(*spill_.plan, share, spill_.fingerprint, {path_}, interrupt_, quiet_, progress_, &keeper, exchange.get(),
             [&](const WrittenUnits& written) { marks_.Mark(written); });
  }

  const SpilledStage& spill_;
  const std::string path_;
  const RankMarks marks_;
  const Ranks ranks_;
  const std::atomic<int>& interrupt_;
  const bool quiet_;
  Progress* const progress_;
};

}  // namespace

std::string StageDirectory(const std::string& ranks, const SpilledStage& spill) {
  return fmt::format("{}/stage-{}", ranks, spill.stage + 1);
}

std::string StageFile(const std::string& directory) { return directory + "/stage.safetensors"; }

void RunSpilledStagesOfRanks(Plan* plan, const std::string& directory, const Ranks& ranks,
                             const std::atomic<int>& interrupt, bool quiet, Progress* progress) {
  for (const SpilledStage& spill : plan->spills) {
    std::string path;
    {
      const LentCheckpoints lent(plan, spill.plan.get());
      StageJob job(spill, StageDirectory(directory, spill), ranks, interrupt, quiet, progress);
      job.Run();
      path = job.path();
    }
    Shard& shard = plan->checkpoints[static_cast<size_t>(spill.checkpoint)].shards.front();
    shard.path = path;
    OpenForReading(path, &shard.identity);
  }
}

}  // namespace braid
