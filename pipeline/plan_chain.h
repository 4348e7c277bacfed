// A stage, and those that are merged on the way to it, as one merge of files: a run. Every tensor of the stage is
// resolved: sources that are results of others become steps of a tree (ChainTree), whose leaves are files; tensors that
// a stage copies as they are become what it copies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/plan.h"
#include "pipeline/plan_phases.h"

namespace braid {

// The stages of the run that ends in `last`, which is in it, in their order. `on_the_way`: those that are not in files.
std::vector<uint32_t> StagesOfRun(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way);

// What keeps a run in which something is found out of whole models from being one merge, as the end of "...,
// because"; empty: nothing. Of a stage that finds it, all that it merges has to come out by its name, and once: then
// all tensors of the output, in the order of their names, are the model that it is found of.
std::string WhyNotChained(const std::vector<Plan>& plans, const std::vector<StageFinds>& finds, uint32_t last,
                          const StageResults& on_the_way);

// Makes the plan of `last`, whose sources are results, one of files. Counts each stage's rounds. Throws Error.
void PlanChain(std::vector<Plan>* plans, const std::vector<StageFinds>& finds, uint32_t last,
               const StageResults& on_the_way, std::vector<PlannedStage>* stages);

}  // namespace braid
