// The steps of MakePlan, each in a file of its own.
#pragma once

#include "pipeline/plan.h"

namespace braid {

class Vocabulary;

// plan_sources.cc: opens the checkpoints, decides which tensors come out, and finds each one's sources.
void OpenSources(Plan* plan);
void PlanTensors(Plan* plan, const Vocabulary* vocabulary);  // null: the sources' vocabularies must agree

// plan_unchanged.cc: finds the tensors that come out as the base has them.
void MarkUnchanged(Plan* plan);

// plan_layout.cc: output types are known; assigns shards and offsets, and writes the headers.
void PlanLayout(Plan* plan, const PlanOptions& options);

// plan_memory.cc: scopes; then rounds, totals, and how the budget is spent. Throws Error(kMemory).
void PlanScopes(Plan* plan);
void PlanMemory(Plan* plan, const PlanOptions& options);

}  // namespace braid
