// A run of stages in phases (Chain, ops/chain_merger.h): which stage has its rounds when. Whole models are gone through
// as rarely as can be, and what stages find out of single tensors in the last phase, where only what they read of
// others is read for it: each tensor then has its rounds and is merged at once.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "pipeline/plan.h"

namespace braid {

// Which checkpoint is the result of which stage.
using StageResults = std::map<int32_t, uint32_t>;

// What a stage has to know before it can merge.
struct StageFinds {
  enum class Of : uint8_t { kNothing, kTensors, kModels };
  Of of = Of::kNothing;
  bool ordered = false;      // quotas are handed out
  uint64_t kept_bytes = 0;   // that it would take to keep what it finds, of all tensors, from one phase to another
};
std::vector<StageFinds> FindsOf(const std::vector<Plan>& plans);   // by stage

// Of one run. By stage of the recipe; others than those of the run have none.
struct RunPhases {
  static constexpr uint32_t kNone = UINT32_MAX;
  std::vector<bool> whole;        // by phase
  std::vector<uint32_t> phase;    // in which a stage has its rounds
  std::vector<bool> shared;       // its mergers are the chain's: not only the last phase, tensor by tensor, needs them
  uint32_t last() const { return static_cast<uint32_t>(whole.size() - 1); }
};
RunPhases PhasesOf(const std::vector<Plan>& plans, const std::vector<StageFinds>& finds,
                   const std::vector<uint32_t>& run, const StageResults& on_the_way);

// Whether a stage reads that checkpoint.
bool UsesResult(const Plan& plan, int32_t checkpoint);

// Plan::fronts, of a plan whose chain has several phases.
void PlanFronts(Plan* plan);

}  // namespace braid
