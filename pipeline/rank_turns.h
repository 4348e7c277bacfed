// Whose turn a part of the work is, among ranks that share a file system and nothing else: a file for each part, in the
// directory of the ranks, that is locked while a process is at it.
//
//   claim-12-20     units 12 up to 20; not empty once somebody has had it
//
// A lock ends with its process, so what a dead one had claimed is free again. On a file system without locks everybody
// gets every claim, and nobody seems to be at work: two may write the same bytes, which costs time only.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "pipeline/rank_marks.h"
#include "pipeline/run.h"

namespace braid {

// Merges units, and marks them.
using MergeUnits = std::function<void(const std::vector<uint32_t>&)>;

// Of `missing`, which were so a while ago, those of a part, unless another process is at it. False: nothing was merged.
// Throws Error; RankFilesGone.
bool MergeInTurn(const RankMarks& marks, const std::vector<uint32_t>& missing, UnitRun part, const MergeUnits& merge);

// The work of one rank: its own run, and then what slower ranks have not come to. All units of its run are done
// afterwards, whoever did them; those of a rank that nobody is at are left. Throws Error; RankFilesGone.
void MergeAndHelp(const Plan& plan, const RankMarks& marks, const RankOptions& rank, const std::atomic<int>& interrupt,
                  const MergeUnits& merge);

}  // namespace braid
