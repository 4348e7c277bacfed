// A stage, and those that are merged on the way to it, as one merge of files: a run. Every tensor of the stage is
// resolved: sources that are results of others become steps of a tree (ChainTree), whose leaves are files; tensors that
// a stage copies as they are become what it copies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "pipeline/plan.h"

namespace braid {

// Which checkpoint is the result of which stage.
using StageResults = std::map<int32_t, uint32_t>;

// The stages of the run that ends in `last`, which is in it, in their order. `on_the_way`: those that are not in files.
std::vector<uint32_t> StagesOfRun(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way);

// Whether a stage of a run needs statistics of whole models.
bool IsWhole(const Plan& plan);

// What keeps a run with statistics of whole models from being one merge, as the end of "..., because"; empty: nothing,
// or there are none. All tensors are then one scope, which needs: of single tensors stages find out sums at most, and
// what they find it out of comes out by its name, and once, of a whole-model stage all that it merges.
std::string WhyNotChained(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way);

// Makes the plan of `last`, whose sources are results, one of files. Counts each stage's rounds. Throws Error.
void PlanChain(std::vector<Plan>* plans, uint32_t last, const StageResults& on_the_way,
               std::vector<PlannedStage>* stages);

}  // namespace braid
