// The steps of MakePlan, each in a file of its own.
#pragma once

#include "pipeline/plan.h"

namespace braid {

class Vocabulary;

// plan.cc: all that is known of a merge before its output has a layout: sources, coefficients, actions. The plan may
// have opened checkpoints before; the options' budget is its own.
void PlanOneMerge(Plan* plan, Recipe recipe, const PlanOptions& options);

// With scope = "model", what the merger of these tensors, in their order, is made with. A model's coefficients are
// those of a tensor that it is merged in. Its weight may differ there; statistics only ask whether it is 0 everywhere.
Coefficients SharedCoefficients(const Plan& plan, const std::vector<uint32_t>& tensors);

// plan_stages.cc: the same for a recipe with stages.
void PlanStages(Plan* plan, Recipe recipe, const PlanOptions& options);
// The layout, then the memory of the plans of spilled stages; between the two that of the main plan must be known.
void LayOutSpills(Plan* plan, const PlanOptions& options);
void PlanSpills(Plan* plan, const PlanOptions& options);

// plan_phases.cc: the merger of a scope of a plan that is a chain; see Plan::MakeMerger.
std::unique_ptr<Merger> MakeChainMerger(const Plan& plan, const PlannedScope& scope, Approach approach,
                                        const std::vector<ChainFinding>* found);

// plan_sources.cc: opens the checkpoints, decides which tensors come out, and finds each one's sources.
void OpenSources(Plan* plan, const std::atomic<int>* interrupt);
void PlanTensors(Plan* plan, const Vocabulary* vocabulary);  // null: the sources' vocabularies must agree

// plan_unchanged.cc: finds the tensors that come out as the base has them.
void MarkUnchanged(Plan* plan);

// plan_delta.cc: of a merge that writes a delta, leaves the tensors that are in it. Of a plan that applies one: that
// the base is the one that it was made from.
void PlanDelta(Plan* plan);
void CheckDeltaFits(const Plan& plan);

// plan_layout.cc: output types are known; assigns shards and offsets, and writes the headers.
void PlanLayout(Plan* plan, const PlanOptions& options);

// plan_memory.cc: scopes; then rounds, totals, and how the budget is spent. Throws Error(kMemory).
void PlanScopes(Plan* plan);
// Those that are merged, in the order that whole models are gone through: bytewise by name. In it equal magnitudes at
// a threshold are kept, and sums added.
std::vector<uint32_t> MergedByName(const Plan& plan);
// Of all merged tensors, those included that come out as they are: their zeros are entries too.
uint64_t ElementsOfModel(const Plan& plan);
void PlanMemory(Plan* plan, const PlanOptions& options);
// What a plan occupies, its checkpoints left out.
uint64_t PlanBytes(const Plan& plan);

// plan_streams.cc: which shards are streams; whether any source of a scope's tensors is one. When rounds and what stays
// in memory are known: which bytes of streams are spooled, with the scopes in the order that spools the fewest.
void FindStreams(Plan* plan);
bool ReadsStream(const Plan& plan, const PlannedScope& scope);
void PlanStreams(Plan* plan);

}  // namespace braid
