// What a merge alone and one by several ranks have in common, in run.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/staging.h"
#include "pipeline/rank_marks.h"
#include "pipeline/run.h"

namespace braid {

// Every file and directory that the output must not replace.
std::vector<std::string> InputsOf(const Plan& plan);

// Everything in a checkpoint directory that is not weights.
void WriteSideFiles(const Plan& plan, const MergeOptions& options, const GraphResult& result,
                    const std::string& fingerprint, Staging* staging);

// The file that marks a complete checkpoint: the last one to appear.
std::string LastFile(const Plan& plan);

// Throws Error(kIo) where the merge needs more than is free on the disk of `place`, in bytes.
inline constexpr const char* kOtherDisk = "free some space or choose an output on another disk";
void CheckSpace(const Plan& plan, const std::string& place, uint64_t needed, uint64_t free,
                const char* hint = kOtherDisk);
// The same of an output that is compressed, and so many bytes before: it may fit.
std::vector<std::string> SpaceWarnings(const Plan& plan, uint64_t bytes, uint64_t free);

// What a shard's file is called.
std::string FileOf(const Plan& plan, const PlannedShard& shard);

// --- one rank of several

struct Ranks : RankOptions {
  Group* group = nullptr;   // of those that were started together
};

// run_rank.cc: before anything is opened, refuses what ranks cannot do. Throws Error(kUsage).
void CheckRanks(const Recipe& recipe, const MergeOptions& options);

// The plan is made; its warnings are told.
MergeReport RunRank(Plan* plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress);

// What nobody has done, the same for all of a group.
std::vector<uint32_t> MissingUnits(const RankMarks& marks, Group* group);

// For ranks that were started together: calls `merge` with parts of what is missing, until all is taken. Where
// statistics are of the whole model, which all take together, it is called once, by each rank, perhaps with nothing.
// All have merged their parts when all have waited (Group::Wait).
void MergeTogether(const Plan& plan, const RankMarks& marks, const std::vector<uint32_t>& missing, Group* group,
                   Progress* progress, const std::function<void(const std::vector<uint32_t>&)>& merge);

std::unique_ptr<Exchange> ExchangeFor(const RankMarks& marks, const Ranks& ranks);

// Where a stage that is merged first is in the directory of the ranks: its own directory, and its result in that.
std::string StageDirectory(const std::string& ranks, const SpilledStage& spill);
std::string StageFile(const std::string& directory);

// run_rank_stages.cc: merges the plan's spilled stages, with the other ranks, in `directory`, and makes their results
// sources of what follows. All of a group call it. Throws Error.
void RunSpilledStagesOfRanks(Plan* plan, const std::string& directory, const Ranks& ranks,
                             const std::atomic<int>& interrupt, bool quiet, Progress* progress);

}  // namespace braid
