// What a merge alone and one by several ranks have in common, in run.cc.
#pragma once

#include <string>
#include <vector>

#include "io/staging.h"
#include "pipeline/run.h"

namespace braid {

// Every file and directory that the output must not replace.
std::vector<std::string> InputsOf(const Plan& plan);

// Everything in a checkpoint directory that is not weights.
void WriteSideFiles(const Plan& plan, const MergeOptions& options, const GraphResult& result,
                    const std::string& fingerprint, Staging* staging);

// The file that marks a complete checkpoint: the last one to appear.
std::string LastFile(const Plan& plan);

// run_rank.cc: one rank of several. The plan is made; its warnings are told.
MergeReport RunRank(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::atomic<int>& interrupt, Progress* progress);

}  // namespace braid
