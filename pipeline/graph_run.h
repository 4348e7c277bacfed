// What graph.cc, graph_read.cc, graph_together.cc and graph_tiles.cc share: one run of a plan. Private to them.
#pragma once

#include <tbb/flow_graph.h>

#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "pipeline/budget.h"
#include "pipeline/graph.h"
#include "pipeline/layer_scale.h"
#include "pipeline/output_writer.h"
#include "pipeline/scope_run.h"
#include "pipeline/shelf.h"
#include "pipeline/source_files.h"

namespace braid {

namespace flow = tbb::flow;

// What a worker needs for one tile, reused.
struct Worker {
  Worker(size_t models, size_t workspace_bytes) : scratch(models, workspace_bytes), lanes(models) {}
  Scratch scratch;
  std::vector<EncodedLanes> lanes;
};

// One run of a plan. Run and Fail are in graph.cc, with the wiring; the groups below say where the others are.
class GraphRun {
 public:
  GraphRun(const Plan& plan, const Share& share, const std::vector<std::string>& shard_paths, Progress* progress,
           StatisticsKeeper* keeper, Exchange* exchange, const std::function<void(const WrittenUnits&)>& units_done)
      : plan_(plan), share_(share), exchange_(exchange), units_done_(units_done), progress_(*progress),
        keeper_(*keeper), budget_(plan.memory.pool), draft_tokens_(plan.memory.drafts),
        files_(plan, &budget_, &progress_.of(Stage::kRead)),
        open_(plan.most_models + 1, plan.memory.open), writer_(plan, share, shard_paths, progress),
        coefficients_(plan.measured ? UnscaledCoefficients(plan) : plan.coefficients) {}

  GraphResult Run(const std::string& fingerprint, const std::atomic<int>& interrupt, ProgressReporter* reporter);

 private:
  using Read = flow::async_node<flow::continue_msg, TileWork*>;
  using Route = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*, TileWork*, TileWork*>>;
  using Accumulate = flow::multifunction_node<TileWork*, std::tuple<TileWork*>>;
  using Order = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*>>;
  using Draft = flow::multifunction_node<TileWork*, std::tuple<ScopeRun*>>;
  using Merge = flow::function_node<std::tuple<TileWork*, OutputTile*>, OutputTile*>;
  using Write = flow::async_node<OutputTile*, OutputTile*>;

  // The I/O thread (graph_read.cc). False, or null: the run has failed.
  void ReadAll(Read::gateway_type& gateway);
  bool ReadFronts(Read::gateway_type& gateway);
  bool MeasureAll(Read::gateway_type& gateway);
  std::shared_ptr<ScopeRun> Measure(const PlannedScope& scope, Read::gateway_type& gateway);
  bool ReadMerge(ScopeRun* run, Read::gateway_type& gateway);
  bool Shared(const PlannedScope& scope) const {
    return exchange_ != nullptr && plan_.tensors[scope.tensors.front()].action == TensorAction::kMerge &&
           exchange_->Shares(plan_, share_, scope);
  }
  bool ReadScope(const PlannedScope& scope, bool anew, Read::gateway_type& gateway);
  bool ReadFailedDrafts(Read::gateway_type& gateway);
  bool ReadRounds(ScopeRun* run, Read::gateway_type& gateway);
  std::shared_ptr<ScopeRun> StartScope(const PlannedScope& scope, bool anew);
  bool ReadRound(ScopeRun* run, Read::gateway_type& gateway);
  bool ReadTile(ScopeRun* run, const Piece& piece, uint64_t first, uint64_t order, uint64_t written_order,
                Read::gateway_type& gateway);

  // The same thread, with other ranks (graph_together.cc). Fronts have numbers behind those of scopes.
  uint32_t NumberOf(const PlannedScope& scope) const {
    const bool front = plan_.IsFront(scope);
    return static_cast<uint32_t>(front ? plan_.scopes.size() + static_cast<size_t>(&scope - plan_.fronts.data())
                                       : static_cast<size_t>(&scope - plan_.scopes.data()));
  }
  bool TakeTogether(ScopeRun* run, bool claims, Read::gateway_type& gateway);
  bool TakeNormsTogether(std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway);

  // Bodies of nodes (graph_tiles.cc).
  void RouteTile(TileWork* work, Route::output_ports_type& ports);
  void CountClaims(TileWork* work);
  void CountedClaims(TileWork* work);
  void AccumulateTile(TileWork* work, Accumulate::output_ports_type& ports);
  void DraftTile(TileWork* work, Draft::output_ports_type& ports);
  void FinishDraft(ScopeRun* run, Draft::output_ports_type& ports);
  void SettleTile(OutputTile* out);
  void MergeTile(TileWork* work, OutputTile* out);
  void Place(const TileWork& work, OutputTile* out);
  void Count(const MergeCounts& counts);

  const Coefficients& CoefficientsOf(const PlannedTensor& tensor) const { return coefficients_[tensor.coefficients]; }
  // The sources of a tile that are mapped in the current round, with the index of their window.
  template <typename Visit>
  void ForEachSource(const TileWork& work, Visit visit) const {
    const PlannedTensor& tensor = plan_.tensors[work.tensor];
    if (tensor.base.present()) visit(size_t{0}, tensor.base);
    for (size_t m = 0; m < tensor.models.size(); ++m)
      if (work.scope->ReadsModel(work.tensor, m)) visit(m + 1, tensor.models[m]);
  }
  OutputTile* TakeDraft();
  void GiveDraft(OutputTile* tile);
  void Release(TileWork* work, bool last_use);
  void Retire(ScopeRun* run);
  void Forget(ScopeRun* run);
  void FinishUnits(WrittenUnits units);
  void FinishStatistics(ScopeRun* run);

  // Runs a body; its first exception ends the run.
  template <typename Body>
  void Guarded(Body body) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      body();
      CheckInputs();
    } catch (...) {
      Fail(std::current_exception());
    }
  }
  void CheckInputs() const {
    if (GuardedRegion::TrippedPath() == nullptr) return;
    files_.CheckUnchanged();
    CheckGuard();
  }
  void Fail(std::exception_ptr error);

  Worker* TakeWorker() { return workers_.Take(plan_.most_models, plan_.memory.workspace); }

  const Plan& plan_;
  const Share& share_;
  Exchange* const exchange_;
  const std::function<void(const WrittenUnits&)>& units_done_;
  Progress& progress_;
  StatisticsKeeper& keeper_;
  Budget budget_;
  Budget draft_tokens_;   // in tiles
  SourceFiles files_;
  OpenPool open_;         // outlives the scopes
  OutputWriter writer_;
  std::vector<Coefficients> coefficients_;   // the plan's, scaled when alpha is known
  std::optional<double> alpha_;
  Shelf<Worker> workers_;
  Shelf<TileWork> works_;

  std::mutex mutex_;
  std::unordered_map<const ScopeRun*, std::shared_ptr<ScopeRun>> scopes_;  // thousands, if they are small
  std::vector<OutputTile*> free_drafts_;   // as many as draft_tokens_ has not given out
  std::vector<std::shared_ptr<ScopeRun>> drafted_;   // whose outcome the I/O thread still has to look at; its own
  std::vector<ChainFinding> findings_;   // of the fronts, by Chain::mergers; const while a phase reads
  std::deque<std::shared_ptr<ScopeRun>> measured_;   // that wait, in the order of the plan; its own, too
  MergeCounts counts_;
  uint64_t entries_ = 0, kept_ = 0;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace braid
