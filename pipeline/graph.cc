#include "pipeline/graph.h"

#include <tbb/flow_graph.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "io/error.h"
#include "io/shard_writer.h"
#include "ops/non_finite.h"
#include "pipeline/budget.h"
#include "pipeline/interrupt.h"
#include "pipeline/layer_scale.h"
#include "pipeline/output_writer.h"
#include "pipeline/sample.h"
#include "pipeline/scope_run.h"
#include "pipeline/shelf.h"
#include "pipeline/source_files.h"
#include "pipeline/tile_sources.h"

namespace braid {
namespace {

namespace flow = tbb::flow;

// What a worker needs for one tile, reused.
struct Worker {
  Worker(size_t models, size_t workspace_bytes) : scratch(models, workspace_bytes), lanes(models) {}
  Scratch scratch;
  std::vector<EncodedLanes> lanes;
};

class GraphRun {
 public:
  GraphRun(const Plan& plan, const Share& share, const std::vector<std::string>& shard_paths, Progress* progress,
           StatisticsKeeper* keeper, Exchange* exchange, const std::function<void(const WrittenUnits&)>& units_done)
      : plan_(plan), share_(share), exchange_(exchange), units_done_(units_done), progress_(*progress), keeper_(*keeper),
        budget_(plan.memory.pool),
        draft_tokens_(plan.memory.drafts), files_(plan, &budget_, &progress_.of(Stage::kRead)),
        open_(plan.most_models + 1, plan.memory.open), writer_(plan, share, shard_paths, progress),
        coefficients_(plan.measured ? UnscaledCoefficients(plan) : plan.coefficients) {}

  GraphResult Run(const std::string& fingerprint, const std::atomic<int>& interrupt, ProgressReporter* reporter);

 private:
  using Read = flow::async_node<flow::continue_msg, TileWork*>;
  using Route = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*, TileWork*, TileWork*>>;
  using Accumulate = flow::multifunction_node<TileWork*, std::tuple<TileWork*>>;
  using Order = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*>>;
  using Draft = flow::multifunction_node<TileWork*, std::tuple<OutputTile*>>;
  using Merge = flow::function_node<std::tuple<TileWork*, OutputTile*>, OutputTile*>;
  using Write = flow::async_node<OutputTile*, OutputTile*>;

  // The I/O thread. False, or null: the run has failed.
  void ReadAll(Read::gateway_type& gateway);
  bool MeasureAll(Read::gateway_type& gateway);
  std::shared_ptr<ScopeRun> Measure(const PlannedScope& scope, Read::gateway_type& gateway);
  bool TakeTogether(ScopeRun* run, bool claims, Read::gateway_type& gateway);
  bool TakeNormsTogether(std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway);
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

  // Bodies of nodes.
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
  template <typename Visit>
  void ForEachSource(const TileWork& work, Visit visit) const;
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
  std::deque<std::shared_ptr<ScopeRun>> measured_;   // that wait, in the order of the plan; its own, too
  MergeCounts counts_;
  uint64_t entries_ = 0, kept_ = 0;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

GraphResult GraphRun::Run(const std::string& fingerprint, const std::atomic<int>& interrupt,
                          ProgressReporter* reporter) {
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<size_t>(plan_.memory.threads));
  tbb::task_arena arena(plan_.memory.threads);
  std::thread io_thread;

  const auto watch = [&](std::stop_token stop) {  // progress and interrupts, on a thread that has nothing else to do
    std::mutex mutex;
    std::condition_variable_any stopped;
    std::unique_lock lock(mutex);
    while (!stop.stop_requested()) {
      stopped.wait_for(lock, stop, std::chrono::milliseconds(50), [] { return false; });
      reporter->Tick();
      try {
        ThrowIfInterrupted(interrupt);
      } catch (...) {
        Fail(std::current_exception());
      }
    }
  };
  std::jthread watcher(watch);

  arena.execute([&] {
    flow::graph g;  // before its nodes: it must outlive them
    Read read(g, 1, [&](flow::continue_msg, Read::gateway_type& gateway) {
      gateway.reserve_wait();
      io_thread = std::thread([&] {
        Guarded([&] { ReadAll(gateway); });
        gateway.release_wait();
      });
    });
    Route route(g, flow::unlimited, [&](TileWork* work, auto& ports) { RouteTile(work, ports); });
    flow::function_node<TileWork*, TileWork*> claim(g, flow::unlimited, [&](TileWork* work) {
      CountClaims(work);
      return work;
    });
    Order order(g, flow::serial, [&](TileWork* work, auto& ports) {
      Guarded([&] {
        const std::shared_ptr<ScopeRun> run = work->scope->shared_from_this();
        run->InOrder(work, [&](TileWork* next) {
          if (next->scope->counts_claims()) CountedClaims(next);
          else if (!next->scope->merging()) std::get<0>(ports).try_put(next);
          else if (next->written) std::get<1>(ports).try_put(next);
          else Release(next, false);   // its share of the quotas was all that it came for
        });
      });
    });
    Accumulate accumulate(g, flow::unlimited, [&](TileWork* work, auto& ports) { AccumulateTile(work, ports); });
    Draft draft(g, flow::unlimited, [&](TileWork* work, auto& ports) { DraftTile(work, ports); });
    flow::function_node<OutputTile*, OutputTile*> settle(g, flow::unlimited, [&](OutputTile* tile) {
      Guarded([&] { SettleTile(tile); });
      return tile;
    });
    flow::queue_node<TileWork*> queue(g);
    flow::buffer_node<OutputTile*> buffers(g);
    flow::join_node<std::tuple<TileWork*, OutputTile*>, flow::reserving> join(g);
    Merge merge(g, flow::unlimited, [&](const std::tuple<TileWork*, OutputTile*>& pair) {
      std::get<1>(pair)->scope = nullptr;  // stays so when the run has failed: nothing to write
      Guarded([&] { MergeTile(std::get<0>(pair), std::get<1>(pair)); });
      return std::get<1>(pair);
    });
    Write write(g, flow::unlimited, [&](OutputTile* tile, Write::gateway_type& gateway) {
      gateway.reserve_wait();
      writer_.Submit(tile, [this, &gateway](OutputTile* written) {
        if (written->draft) GiveDraft(written);
        else gateway.try_put(written);
        gateway.release_wait();
      });
    });

    flow::make_edge(read, route);
    flow::make_edge(flow::output_port<0>(route), accumulate);
    flow::make_edge(flow::output_port<1>(route), claim);
    flow::make_edge(flow::output_port<2>(route), order);
    flow::make_edge(flow::output_port<3>(route), draft);
    flow::make_edge(flow::output_port<0>(draft), settle);
    flow::make_edge(settle, write);
    flow::make_edge(claim, order);
    flow::make_edge(flow::output_port<0>(order), accumulate);
    flow::make_edge(flow::output_port<1>(order), queue);
    flow::make_edge(flow::output_port<0>(accumulate), route);
    flow::make_edge(queue, flow::input_port<0>(join));
    flow::make_edge(buffers, flow::input_port<1>(join));
    flow::make_edge(join, merge);
    flow::make_edge(merge, write);
    flow::make_edge(write, buffers);

    writer_.Start([this](std::exception_ptr error) { Fail(error); }, [this](ScopeRun* run) { Retire(run); },
                  [this](WrittenUnits units) { FinishUnits(std::move(units)); });
    for (OutputTile& tile : writer_.tiles()) {
      if (tile.draft) free_drafts_.push_back(&tile);
      else buffers.try_put(&tile);
    }
    read.try_put(flow::continue_msg());
    g.wait_for_all();
    io_thread.join();
    writer_.Stop();
  });
  watcher.request_stop();
  watcher.join();
  reporter->Finish();
  if (error_) std::rethrow_exception(error_);
  files_.CheckUnchanged();
  writer_.Finish(fingerprint, interrupt);
  return {writer_.sums(), counts_, entries_, kept_, alpha_, writer_.output().bytes_written(),
          writer_.output().bytes_spilled()};
}

void GraphRun::Fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = error;
  }
  failed_ = true;
  budget_.Cancel();
  draft_tokens_.Cancel();
  files_.Cancel();
  writer_.Abandon();
  std::lock_guard lock(mutex_);
  for (const auto& [key, run] : scopes_) run->Cancel();
}

// --- the I/O thread ---------------------------------------------------------------------------------------

void GraphRun::ReadAll(Read::gateway_type& gateway) {
  if (plan_.measured && !MeasureAll(gateway)) return;
  for (const PlannedScope& scope : plan_.scopes) {
    if (scope.elements == 0) continue;
    if (plan_.in_order && !ReadFailedDrafts(gateway)) return;
    if (measured_.empty() || &measured_.front()->scope() != &scope) {
      if ((share_.Any(scope) || Shared(scope)) && !ReadScope(scope, false, gateway)) return;
      continue;
    }
    const std::shared_ptr<ScopeRun> run = std::move(measured_.front());
    measured_.pop_front();
    if (!ReadMerge(run.get(), gateway)) return;
  }
  const auto drafted = std::exchange(drafted_, {});   // ReadScope drops what is settled
  for (const auto& run : drafted) {
    {
      StallTimer stall(progress_.of(Stage::kRead));
      if (run->WaitForDraft()) continue;
    }
    if (failed_ || !ReadScope(run->scope(), true, gateway)) return;
  }
  files_.FinishStreams();
}

// Where bytes leave in order: as soon as it is known that a draft did not come out, since all behind it waits on disk.
bool GraphRun::ReadFailedDrafts(Read::gateway_type& gateway) {
  for (;;) {
    const auto failed =
        std::find_if(drafted_.begin(), drafted_.end(), [](const auto& run) { return run->DraftStartsAnew(); });
    if (failed == drafted_.end()) return true;
    const std::shared_ptr<ScopeRun> run = *failed;
    drafted_.erase(failed);
    if (!ReadScope(run->scope(), true, gateway)) return false;
  }
}

// All rounds before the merge, of all scopes; then the scale of the merges is known. Ranks that take statistics together
// leave out what others merge, and get its norms.
bool GraphRun::MeasureAll(Read::gateway_type& gateway) {
  std::vector<std::optional<TaskVectorNorms>> norms(plan_.scopes.size());
  const bool together = exchange_ != nullptr && !plan_.model_scope;
  for (size_t s = 0; s < plan_.scopes.size(); ++s) {
    const PlannedScope& scope = plan_.scopes[s];
    if (scope.elements == 0 || plan_.tensors[scope.tensors.front()].action != TensorAction::kMerge) continue;
    norms[s] = TaskVectorNorms();
    if (together && !share_.Any(scope)) continue;
    measured_.push_back(Measure(scope, gateway));
    if (measured_.back() == nullptr) return false;
  }
  for (const auto& run : measured_) {
    StallTimer stall(progress_.of(Stage::kRead));
    if (!run->WaitForNorms()) return false;
    norms[static_cast<size_t>(&run->scope() - plan_.scopes.data())] = run->merger()->norms();
  }
  if (together && !TakeNormsTogether(&norms, gateway)) return false;
  std::map<std::string_view, TaskVectorNorms> by_name;
  for (size_t s = 0; s < norms.size(); ++s)
    if (norms[s]) by_name[plan_.tensors[plan_.scopes[s].tensors.front()].name] = *norms[s];
  alpha_ = AutomaticAlpha(by_name);
  coefficients_ = ScaledCoefficients(plan_, *alpha_);
  return true;
}

std::shared_ptr<ScopeRun> GraphRun::Measure(const PlannedScope& scope, Read::gateway_type& gateway) {
  std::shared_ptr<ScopeRun> run = StartScope(scope, false);
  return run != nullptr && ReadRounds(run.get(), gateway) ? run : nullptr;
}

// --- with other ranks ---------------------------------------------------------------------------------------

// A scope's norms are of the unit that it begins in.
bool GraphRun::TakeNormsTogether(std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway) {
  class Norms : public Counter {
   public:
    Norms(GraphRun* graph, std::vector<std::optional<TaskVectorNorms>>* norms, Read::gateway_type& gateway)
        : graph_(*graph), known_(*norms), gateway_(gateway), norms_(*norms) {}
    bool Count(UnitRun part) override {
      return ForEach(part, [&](size_t s) {
        if (graph_.share_.Any(graph_.plan_.scopes[s])) {
          norms_[s] = known_[s];
          return true;
        }
        const auto run = graph_.Measure(graph_.plan_.scopes[s], gateway_);
        if (run == nullptr || !run->WaitForNorms()) return false;
        norms_[s] = run->merger()->norms();
        graph_.Forget(run.get());
        return true;
      });
    }
    void Save(UnitRun part, const Put& put) override {
      ForEach(part, [&](size_t s) { return put(&*norms_[s], sizeof(TaskVectorNorms)), true; });
    }
    void Load(UnitRun part, const Get& get) override {
      ForEach(part, [&](size_t s) {
        TaskVectorNorms more;
        get(&more, sizeof more);
        norms_[s]->mean += more.mean, norms_[s]->merged += more.merged;
        return true;
      });
    }
    void Clear() override {
      for (auto& norms : norms_)
        if (norms) *norms = {};
    }
    bool failed() const override { return graph_.failed_; }
    const std::vector<std::optional<TaskVectorNorms>>& norms() const { return norms_; }

   private:
    bool ForEach(UnitRun part, const std::function<bool(size_t)>& visit) {
      for (size_t s = 0; s < norms_.size(); ++s) {
        if (!norms_[s]) continue;
        const uint32_t unit =
            UnitsOf(graph_.plan_, graph_.share_.all_units(), graph_.plan_.scopes[s].tensors.front()).first;
        if (unit >= part.first && unit < part.last && !visit(s)) return false;
      }
      return true;
    }

    GraphRun& graph_;
    const std::vector<std::optional<TaskVectorNorms>>& known_;
    Read::gateway_type& gateway_;
    std::vector<std::optional<TaskVectorNorms>> norms_;
  } counter(this, norms, gateway);
  counter.Clear();
  const UnitRun all{0, static_cast<uint32_t>(share_.all_units().size())};
  if (!exchange_->Take({.scope = SharedRound::kNorms, .units = all}, &counter)) return false;
  *norms = counter.norms();
  return true;
}

bool GraphRun::TakeTogether(ScopeRun* run, bool claims, Read::gateway_type& gateway) {
  class Round : public Counter {
   public:
    Round(GraphRun* graph, ScopeRun* run, bool claims, Read::gateway_type& gateway)
        : graph_(*graph), run_(*run), claims_(claims), gateway_(gateway) {
      run_.BeginPart({0, 0}, claims_);   // nothing yet
    }
    bool Count(UnitRun part) override {
      run_.BeginPart(part, claims_);
      if (run_.Pieces().empty()) return true;
      if (!graph_.ReadRound(&run_, gateway_)) return false;
      StallTimer stall(graph_.progress_.of(Stage::kRead));
      return run_.WaitForPart();
    }
    void Save(UnitRun part, const Put& put) override { run_.SavePart(part, put); }
    void Load(UnitRun part, const Get& get) override { run_.LoadPart(part, get); }
    void Clear() override { run_.ClearPart(); }
    bool failed() const override { return graph_.failed_; }

   private:
    GraphRun& graph_;
    ScopeRun& run_;
    const bool claims_;
    Read::gateway_type& gateway_;
  } counter(this, run, claims, gateway);
  const SharedRound round{.scope = static_cast<uint32_t>(&run->scope() - plan_.scopes.data()),
                          .round = run->round(), .claims = claims, .units = run->shared_units()};
  if (!exchange_->Take(round, &counter)) return false;
  run->EndParts();
  return true;
}

// Of a scope that waits, or whose statistics were taken together.
bool GraphRun::ReadMerge(ScopeRun* run, Read::gateway_type& gateway) {
  if (run->shared() && run->spec().ordered && !TakeTogether(run, true, gateway)) return false;
  if (share_.Any(run->scope())) return ReadRound(run, gateway);
  Forget(run);
  return true;
}

bool GraphRun::ReadScope(const PlannedScope& scope, bool anew, Read::gateway_type& gateway) {
  const std::shared_ptr<ScopeRun> run = StartScope(scope, anew);
  if (run == nullptr) return false;
  std::erase_if(drafted_, [](const auto& drafted) { return drafted->DraftSettled(); });
  if (run->drafts_tiles()) drafted_.push_back(run);
  return ReadRounds(run.get(), gateway);
}

// Until the last one is on its way; of a scope that is measured, the last one before its merge.
bool GraphRun::ReadRounds(ScopeRun* run, Read::gateway_type& gateway) {
  for (;;) {
    if (run->shared() && run->merging()) return ReadMerge(run, gateway);
    if (run->shared() && run->spec().ordered && !TakeTogether(run, true, gateway)) return false;
    if (run->shared() && run->StatisticsTravel()) {
      if (!TakeTogether(run, false, gateway)) return false;
      FinishStatistics(run);
      if (run->waits()) return true;
      continue;
    }
    if (run->spec().sample && !run->resident()) {
      {
        StageTimer timer(progress_.of(Stage::kRead));
        SampleScope(plan_, run);
      }
      FinishStatistics(run);
    }
    const uint32_t round = run->round();
    const bool last = run->merging() || run->drafting() || run->resident();
    if (!ReadRound(run, gateway)) return false;
    if (last) return true;
    StallTimer stall(progress_.of(Stage::kRead));
    if (!run->WaitForRound(round + 1)) return false;
    if (run->waits()) return true;
  }
}

std::shared_ptr<ScopeRun> GraphRun::StartScope(const PlannedScope& scope, bool anew) {
  const uint64_t bytes = scope.statistics_bytes * plan_.memory.accumulators + scope.sums_bytes;
  {
    StallTimer stall(progress_.of(Stage::kRead));
    if (!budget_.Take(bytes)) return nullptr;
  }
  auto run = std::make_shared<ScopeRun>(plan_, share_, scope, anew, Shared(scope));
  run->taken = bytes;
  if (run->shared()) {
    if (!budget_.Take(run->SharedBytes())) return nullptr;
    run->taken += run->SharedBytes();
  }
  if (run->merging() || run->drafting()) budget_.Give(std::exchange(run->taken, 0));   // no statistics after all
  {
    std::lock_guard lock(mutex_);
    scopes_.emplace(run.get(), run);
  }
  return failed_ ? nullptr : run;  // Fail cancels the scopes that it sees; this one may have come too late for that
}

bool GraphRun::ReadRound(ScopeRun* run, Read::gateway_type& gateway) {
  // Settled beforehand: the round may be over, and the next one begun, once its last tile is on its way.
  const std::vector<Piece> pieces = run->Pieces();
  if (!run->merging() && pieces.empty()) {
    FinishStatistics(run);
    return true;
  }
  uint64_t order = 0, written = 0;
  for (const Piece& piece : pieces) {
    const uint64_t tile = plan_.TileElements(plan_.tensors[run->scope().tensors[piece.slot]]);
    for (uint64_t first = piece.elements.first; first < piece.elements.last; first += tile)
      if (!ReadTile(run, piece, first, order++, piece.written ? written++ : 0, gateway)) return false;
  }
  return true;
}

bool GraphRun::ReadTile(ScopeRun* run, const Piece& piece, uint64_t first, uint64_t order, uint64_t written_order,
                        Read::gateway_type& gateway) {
  const uint32_t t = run->scope().tensors[piece.slot];
  const PlannedTensor& tensor = plan_.tensors[t];
  TileWork* work = works_.Take();
  work->scope = run, work->tensor = t, work->slot = piece.slot, work->order = order;
  work->written = piece.written, work->written_order = written_order;
  work->shared = piece.shared, work->begins = first == piece.elements.first && piece.shared != Piece::kNone;
  work->first = first, work->count = std::min(plan_.TileElements(tensor), piece.elements.last - first);
  work->cost = TileCost(plan_, tensor, work->count);
  {
    StallTimer stall(progress_.of(Stage::kRead));
    if (!budget_.Take(work->cost)) return false;
    if (run->drafts_tiles() && !draft_tokens_.Take(1)) return false;   // drafts read before will give theirs back
  }
  if (run->resident()) run->tiles.push_back(work);
  work->windows.resize(tensor.models.size() + 1);
  std::vector<SourceRange> ranges;
  ForEachSource(*work, [&](size_t index, const TensorSource&) {
    ranges.push_back({&tensor, index, first, work->count, &work->windows[index]});
  });
  gateway.reserve_wait();
  StageTimer timer(progress_.of(Stage::kRead));
  files_.Read(ranges, [this, work, &gateway](std::exception_ptr error) {  // on this thread, or when the reads are done
    Guarded([&] {
      if (error) std::rethrow_exception(error);
      CheckInputs();
      gateway.try_put(work);
    });
    gateway.release_wait();
  });
  return !failed_;
}

// --- tiles ------------------------------------------------------------------------------------------------

// The sources of a tile that are mapped in the current round, with the index of their window.
template <typename Visit>
void GraphRun::ForEachSource(const TileWork& work, Visit visit) const {
  const PlannedTensor& tensor = plan_.tensors[work.tensor];
  if (tensor.base.present()) visit(size_t{0}, tensor.base);
  for (size_t m = 0; m < tensor.models.size(); ++m)
    if (work.scope->ReadsModel(work.tensor, m)) visit(m + 1, tensor.models[m]);
}

void GraphRun::Release(TileWork* work, bool last_use) {
  for (const SourceWindow& window : work->windows) work->cost -= window.held();
  work->windows.clear();
  if (last_use)
    ForEachSource(*work, [&](size_t index, const TensorSource&) {
      files_.Used(plan_.tensors[work->tensor], index, work->first, work->count);
    });
  budget_.Give(work->cost);
  works_.Give(work);
}

void GraphRun::RouteTile(TileWork* work, Route::output_ports_type& ports) {
  if (work->scope->spec().ordered) std::get<1>(ports).try_put(work);
  else if (work->scope->drafting()) std::get<3>(ports).try_put(work);
  else if (work->scope->merging()) std::get<2>(ports).try_put(work);
  else std::get<0>(ports).try_put(work);
}

void GraphRun::CountClaims(TileWork* work) {
  Guarded([&] {
    StageTimer timer(progress_.of(Stage::kStatistics));
    work->claims.assign(plan_.tensors[work->tensor].models.size() * work->scope->merger()->claims_per_model(), 0);
    if (work->scope->QuotasSpent()) return;
    Worker* worker = TakeWorker();
    const Coefficients& c = CoefficientsOf(plan_.tensors[work->tensor]);
    work->scope->merger()->CountClaims(c, LanesOf(plan_, *work, &worker->lanes), worker->scratch, work->claims.data());
    workers_.Give(worker);
  });
}

void GraphRun::CountedClaims(TileWork* work) {
  const std::shared_ptr<ScopeRun> run = work->scope->shared_from_this();
  Release(work, false);
  if (run->TileDone()) run->PartDone();
}

void GraphRun::AccumulateTile(TileWork* work, Accumulate::output_ports_type& ports) {
  Guarded([&] {
    const std::shared_ptr<ScopeRun> run = work->scope->shared_from_this();
    {
      StageTimer timer(progress_.of(Stage::kStatistics));
      Worker* worker = TakeWorker();
      Accumulator* accumulator = run->TakeAccumulator();
      const Coefficients& c = CoefficientsOf(plan_.tensors[work->tensor]);
      if (run->spec().sample)
        SampleTile(LanesOf(plan_, *work, &worker->lanes), plan_.tensors[work->tensor].elements, c, *run,
                   worker->scratch, accumulator);
      else
        run->merger()->Accumulate(run->round(), c, LanesOf(plan_, *work, &worker->lanes), work->claims.data(),
                                  worker->scratch, accumulator, run->SumsOf(work->slot));
      run->GiveAccumulator(accumulator);
      workers_.Give(worker);
      progress_.of(Stage::kStatistics).bytes += MappedBytes(*work);
    }
    if (!run->resident()) Release(work, false);
    if (!run->TileDone()) return;
    if (run->in_part()) return run->PartDone();
    FinishStatistics(run.get());
    for (TileWork* tile : run->tiles) std::get<0>(ports).try_put(tile);
  });
}

void GraphRun::FinishStatistics(ScopeRun* run) {
  StageTimer timer(progress_.of(Stage::kStatistics));
  run->FinishRound();
  if (!run->merging() && !run->drafting()) return;
  if (run->merging()) keeper_.Keep(run->scope(), run->merger());
  const uint64_t kept = std::min(run->taken, run->scope().kept_bytes + run->SharedBytes());
  budget_.Give(std::exchange(run->taken, kept) - kept);
  if (!run->waits()) return;
  for (TileWork* tile : std::exchange(run->tiles, {})) Release(tile, false);
}

// --- drafts -----------------------------------------------------------------------------------------------

OutputTile* GraphRun::TakeDraft() {
  std::lock_guard lock(mutex_);
  OutputTile* const tile = free_drafts_.back();
  free_drafts_.pop_back();
  return tile;
}

void GraphRun::GiveDraft(OutputTile* tile) {
  {
    std::lock_guard lock(mutex_);
    free_drafts_.push_back(tile);
  }
  draft_tokens_.Give(1);
}

void GraphRun::DraftTile(TileWork* work, Draft::output_ports_type& ports) {
  Guarded([&] {
    const std::shared_ptr<ScopeRun> run = work->scope->shared_from_this();
    const PlannedTensor& tensor = plan_.tensors[work->tensor];
    DraftedTile& drafted = run->drafts[work->order];
    drafted.output = TakeDraft();
    Place(*work, drafted.output);
    {
      StageTimer timer(progress_.of(Stage::kMerge));
      Worker* worker = TakeWorker();
      drafted.open = OpenElements(&open_, tensor.models.size() * run->merger()->claims_per_model());
      if (!run->merger()->Draft(CoefficientsOf(tensor), LanesOf(plan_, *work, &worker->lanes), worker->scratch,
                                tensor.type, drafted.output->data, &drafted.open, &drafted.counts))
        run->DraftFailed();
      workers_.Give(worker);
      progress_.of(Stage::kMerge).bytes += MappedBytes(*work);
    }
    Release(work, true);
    if (run->TileDone()) FinishDraft(run.get(), ports);
  });
}

void GraphRun::FinishDraft(ScopeRun* run, Draft::output_ports_type& ports) {
  StageTimer timer(progress_.of(Stage::kStatistics));
  const bool settled = run->FinishDraft();
  if (settled) keeper_.Keep(run->scope(), run->merger());
  for (DraftedTile& tile : run->drafts) {
    if (settled) {
      std::get<0>(ports).try_put(tile.output);
    } else {
      tile.open.Clear();
      GiveDraft(tile.output);
    }
  }
  if (!settled) Retire(run);
}

void GraphRun::SettleTile(OutputTile* out) {
  StageTimer timer(progress_.of(Stage::kMerge));
  const PlannedTensor& tensor = plan_.tensors[out->tensor];
  DraftedTile& drafted = out->scope->drafts[out->order];
  Worker* worker = TakeWorker();
  const uint64_t first = out->begin / static_cast<uint64_t>(LaneBytes(tensor.type));
  out->scope->merger()->Settle(CoefficientsOf(tensor), drafted.open, first, worker->scratch, tensor.type,
                               out->data, &drafted.counts);
  workers_.Give(worker);
  drafted.open.Clear();
  Count(drafted.counts);
}

// --- merging ----------------------------------------------------------------------------------------------

// What a tile's output is, and where it goes.
void GraphRun::Place(const TileWork& work, OutputTile* out) {
  const auto bits = static_cast<uint64_t>(DTypeBits(plan_.tensors[work.tensor].type));
  out->scope = work.scope;
  out->tensor = work.tensor;
  out->order = work.written_order;
  out->begin = work.first * bits / 8;
  out->bytes = work.count * bits / 8;
  writer_.Place(out);
}

void GraphRun::Count(const MergeCounts& counts) {
  std::lock_guard lock(mutex_);
  counts_.conflicts += counts.conflicts;
  counts_.non_finite.nan += counts.non_finite.nan;
  counts_.non_finite.inf += counts.non_finite.inf;
}

void GraphRun::MergeTile(TileWork* work, OutputTile* out) {
  const PlannedTensor& tensor = plan_.tensors[work->tensor];
  Place(*work, out);
  {
    StageTimer timer(progress_.of(Stage::kMerge));
    MergeCounts counts;
    if (work->scope->is_copy()) {
      CopyTile(plan_, *work, out->data);
      if (tensor.action != TensorAction::kCopy && IsLaneType(tensor.type))
        CountNonFinite(tensor.type, out->data, work->count, &counts.non_finite);
    } else {
      Worker* worker = TakeWorker();
      NamingTensor(tensor.name, [&] {
        work->scope->merger()->Merge(CoefficientsOf(tensor), LanesOf(plan_, *work, &worker->lanes), work->claims.data(),
                                     worker->scratch, tensor.type, out->data, &counts);
      });
      workers_.Give(worker);
    }
    Count(counts);
    progress_.of(Stage::kMerge).bytes += MappedBytes(*work);
  }
  Release(work, true);
}

// All tiles of a scope are written.
void GraphRun::Retire(ScopeRun* run) {
  budget_.Give(std::exchange(run->taken, 0));
  const bool merged = run->merger() != nullptr && !run->failed_draft();
  std::lock_guard lock(mutex_);
  const uint32_t untrimmed = plan_.measured ? 2 : 1;   // rounds of a merge that needs no statistics
  if (merged && (run->scope().rounds > untrimmed || !run->scope().known.empty())) {
    entries_ += run->merger()->entries();
    kept_ += run->merger()->kept();
  }
  scopes_.erase(run);
}

// A scope that was measured, and that others merge.
void GraphRun::Forget(ScopeRun* run) {
  budget_.Give(std::exchange(run->taken, 0));
  std::lock_guard lock(mutex_);
  scopes_.erase(run);
}

// What sources that changed have been merged to does not count.
void GraphRun::FinishUnits(WrittenUnits units) {
  files_.CheckUnchanged();
  units.alpha = alpha_;
  units_done_(units);
}

}  // namespace

GraphResult RunGraph(const Plan& plan, const Share& share, const std::string& fingerprint,
                     const std::vector<std::string>& shard_paths, const std::atomic<int>& interrupt, bool quiet,
                     Progress* progress, StatisticsKeeper* keeper, Exchange* exchange,
                     const std::function<void(const WrittenUnits&)>& units_done) {
  const double part = progress->of_all_ranks ? 1.0
                                             : static_cast<double>(share.bytes_written()) /
                                                   static_cast<double>(plan.totals.bytes_written);
  progress->bytes_to_read += static_cast<uint64_t>(static_cast<double>(plan.totals.bytes_read) * std::min(part, 1.0));
  progress->bytes_to_write += progress->of_all_ranks ? plan.totals.bytes_written : share.bytes_written();
  ProgressReporter reporter(*progress, quiet);
  return GraphRun(plan, share, shard_paths, progress, keeper, exchange, units_done).Run(fingerprint, interrupt, &reporter);
}

}  // namespace braid
