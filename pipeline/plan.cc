#include "pipeline/plan.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>

#include "io/file_system.h"
#include "io/input_stream.h"
#include "ops/measured_merger.h"
#include "ops/task_vector_parts.h"
#include "pipeline/budget.h"
#include "pipeline/layer_scale.h"
#include "pipeline/plan_internal.h"
#include "pipeline/statistics_cache.h"
#include "pipeline/vocabulary.h"

namespace braid {
namespace {

ReadChoice HowToRead(const Checkpoint& checkpoint, ReadMode mode) {
  const Shard& first = checkpoint.shards.front();
  if (first.stream != nullptr) return {ReadBackend::kStream, std::string(first.stream->kind())};
  return ChooseReadBackend(mode, FileSystemOf(first.path), RunningKernel());
}

}  // namespace

void PlanOneMerge(Plan* plan, Recipe recipe, const PlanOptions& options) {
  plan->method = recipe.method == ApplyDelta().name ? &ApplyDelta() : FindMethod(recipe.method);
  plan->recipe = std::move(recipe);
  plan->relative = plan->method->base == BaseUse::kRequired ||
                   (plan->method->base == BaseUse::kOptional && plan->recipe.base);
  OpenSources(plan, options.interrupt);
  if (plan->applies()) CheckDeltaFits(*plan);
  // The checkpoints are open; every header has been checked.
  for (size_t c = plan->reading.size(); c < plan->checkpoints.size(); ++c)
    plan->reading.push_back(HowToRead(plan->checkpoints[c], options.read));
  if (std::unique_ptr<const Vocabulary> vocabulary = Vocabulary::Make(plan)) {
    PlanTensors(plan, vocabulary.get());
    plan->memory.planning = vocabulary->MemoryBytes();
    vocabulary.reset();
    ReturnFreedMemory();
  } else {
    PlanTensors(plan, nullptr);
  }
  PlanLayerScale(plan);
  // Each output tensor knows its sources, coefficients and type.
  MarkUnchanged(plan);
  PlanDelta(plan);
  // What is left is read because it may change.
}

Plan MakePlan(Recipe recipe, const PlanOptions& options) {
  Plan plan;
  plan.memory.budget = options.memory > 0 ? options.memory : DefaultMemory();
  const auto before_opening = std::chrono::system_clock::now();
  if (recipe.stages.empty()) PlanOneMerge(&plan, std::move(recipe), options);
  else PlanStages(&plan, std::move(recipe), options);
  FindStreams(&plan);
  PlanLayout(&plan, options);
  LayOutSpills(&plan, options);
  // Every output byte has its place.
  PlanScopes(&plan);
  PlanSpills(&plan, options);
  if (!options.cache.empty() && plan.stages.empty()) LoadStatistics(&plan, options.cache, before_opening);
  // What earlier merges found out needs no rounds.
  PlanMemory(&plan, options);
  // The rounds and their memory are known.
  PlanStreams(&plan);
  // So is what of a stream has to wait on the disk.
  return plan;
}

TensorFacts PlannedTensor::Facts() const {
  const bool axes = shape.size() >= 2 && elements > 0;
  return {.elements = elements,
          .row = axes ? shape.back() : elements,
          .slice = axes ? elements / shape.front() : 0,
          .key = XXH3_64bits(name.data(), name.size())};
}

uint64_t Plan::TileUnit(const PlannedTensor& tensor) const {
  if (tensor.action != TensorAction::kMerge) return 0;   // elements may be half a byte
  if (IsChain()) return chain.TreeOf(coefficients[tensor.coefficients]).unit;
  return method->TileUnit(coefficients[tensor.coefficients], tensor.Facts());
}

uint64_t Plan::TileElements(const PlannedTensor& tensor, uint64_t wanted) const {
  const uint64_t unit = TileUnit(tensor);
  return unit == 0 ? wanted : std::max<uint64_t>(wanted / unit, 1) * unit;
}

uint64_t Plan::SumBlocks(const PlannedTensor& tensor) const {
  if (IsChain() && tensor.action == TensorAction::kMerge)
    return chain.TreeOf(coefficients[tensor.coefficients]).sum_blocks;
  const uint64_t unit = TileUnit(tensor), block = unit == 0 ? kReductionBlock : unit;
  return (tensor.elements + block - 1) / block;
}

Coefficients SharedCoefficients(const Plan& plan, const std::vector<uint32_t>& tensors) {
  const auto of = [&](uint32_t t) -> const Coefficients& { return plan.coefficients[plan.tensors[t].coefficients]; };
  Coefficients shared = of(tensors.front());
  const int weight = plan.method->IndexOf("weight");
  for (size_t m = 0; m < shared.model.size(); ++m) {
    const auto merges_it = [&](uint32_t t) {
      if (weight < 0) return plan.tensors[t].models[m].present();
      return of(t).model[m][static_cast<size_t>(weight)] != 0;
    };
    const auto merged = std::find_if(tensors.begin(), tensors.end(), merges_it);
    if (merged != tensors.end()) shared.model[m] = of(*merged).model[m];
  }
  return shared;
}

std::unique_ptr<Merger> Plan::MakeMerger(const PlannedScope& scope, Approach approach,
                                         const std::vector<ChainFinding>* found) const {
  if (IsChain()) return MakeChainMerger(*this, scope, approach, found);
  const Coefficients shared = model_scope ? SharedCoefficients(*this, scope.tensors)
                                          : coefficients[tensors[scope.tensors.front()].coefficients];
  TensorFacts facts{.elements = scope.elements};
  if (!model_scope) facts = tensors[scope.tensors.front()].Facts();
  // Merged only when all is known.
  if ((measured || delta()) && approach == Approach::kDraft) approach = Approach::kPlain;
  std::unique_ptr<Merger> merger = method->make(*method, shared, facts, approach);
  if (measured || delta()) {
    uint64_t part = 0;
    for (uint32_t t : scope.tensors)
      part = std::max(part, TaskVectorPart(*method, coefficients[tensors[t].coefficients], tensors[t].Facts()));
    if (measured) merger = NewMeasuredMerger(*method, shared.model.size(), part, std::move(merger));
    if (delta()) merger = NewDeltaMerger(*method, shared.model.size(), part, std::move(merger));
  }
  if (!statistics.directory.empty()) merger->UseStatistics(scope.known);
  return merger;
}

}  // namespace braid
