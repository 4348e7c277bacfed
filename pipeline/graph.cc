#include "pipeline/graph.h"

#include <fmt/format.h>
#include <tbb/flow_graph.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <cstring>
#include <list>
#include <thread>

#include "io/error.h"
#include "io/shard_writer.h"
#include "ops/bracket.h"
#include "pipeline/budget.h"
#include "pipeline/interrupt.h"
#include "pipeline/output_writer.h"
#include "pipeline/scope_run.h"
#include "pipeline/source_files.h"

namespace braid {
namespace {

namespace flow = tbb::flow;

// What a worker needs for one tile, reused.
struct Worker {
  explicit Worker(size_t models) : scratch(models), lanes(models) {}
  Scratch scratch;
  std::vector<EncodedLanes> lanes;
};

// Objects that threads borrow; made when none is free, so there are never more than were used at once.
template <typename T>
class Shelf {
 public:
  template <typename... Args>
  T* Take(Args... args) {
    std::lock_guard lock(mutex_);
    if (free_.empty()) return &all_.emplace_back(args...);
    T* object = free_.back();
    free_.pop_back();
    return object;
  }
  void Give(T* object) {
    std::lock_guard lock(mutex_);
    free_.push_back(object);
  }

 private:
  std::mutex mutex_;
  std::list<T> all_;
  std::vector<T*> free_;
};

uint64_t MappedBytes(const TileWork& work) {
  uint64_t bytes = 0;
  for (const SourceWindow& window : work.windows) bytes += window.size();
  return bytes;
}

class GraphRun {
 public:
  GraphRun(const Plan& plan, const std::vector<std::string>& shard_paths, Progress* progress)
      : plan_(plan), progress_(*progress), budget_(plan.memory.pool), files_(plan, &budget_, &progress_.of(Stage::kRead)), candidates_(plan.memory.candidates), writer_(plan, shard_paths, progress) {}

  GraphResult Run(const std::string& fingerprint, const std::atomic<int>& interrupt, ProgressReporter* reporter);

 private:
  using Read = flow::async_node<flow::continue_msg, TileWork*>;
  using Route = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*, TileWork*>>;
  using Accumulate = flow::multifunction_node<TileWork*, std::tuple<TileWork*>>;
  using Order = flow::multifunction_node<TileWork*, std::tuple<TileWork*, TileWork*>>;
  using Merge = flow::function_node<std::tuple<TileWork*, OutputTile*>, OutputTile*>;
  using Write = flow::async_node<OutputTile*, OutputTile*>;

  // The I/O thread.
  void ReadAll(Read::gateway_type& gateway);
  std::shared_ptr<ScopeRun> StartScope(const PlannedScope& scope);
  bool ReadRound(ScopeRun* run, Read::gateway_type& gateway);
  bool ReadTile(ScopeRun* run, uint32_t slot, uint64_t first, uint64_t order, Read::gateway_type& gateway);

  // Bodies of nodes.
  void RouteTile(TileWork* work, Route::output_ports_type& ports);
  void CountClaims(TileWork* work);
  void AccumulateTile(TileWork* work, Accumulate::output_ports_type& ports);
  void MergeTile(TileWork* work, OutputTile* out);
  void CopyTile(const TileWork& work, std::byte* out);

  LaneTile LanesOf(const TileWork& work, Worker* worker) const;
  template <typename Visit>
  void ForEachSource(const TileWork& work, Visit visit) const;
  uint64_t BytesOf(const TensorSource& source, uint64_t elements) const {
    return elements * static_cast<uint64_t>(DTypeBits(plan_.Info(source).dtype)) / 8;
  }
  void Release(TileWork* work, bool last_use);
  void Retire(ScopeRun* run);
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

  Worker* TakeWorker() { return workers_.Take(plan_.models.size()); }

  const Plan& plan_;
  Progress& progress_;
  Budget budget_;
  SourceFiles files_;
  CandidatePool candidates_;  // outlives the scopes
  OutputWriter writer_;
  Shelf<Worker> workers_;
  Shelf<TileWork> works_;

  std::mutex mutex_;
  std::list<std::shared_ptr<ScopeRun>> scopes_;
  MergeCounts counts_;
  uint64_t entries_ = 0, kept_ = 0;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

GraphResult GraphRun::Run(const std::string& fingerprint, const std::atomic<int>& interrupt, ProgressReporter* reporter) {
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<size_t>(plan_.memory.threads));
  tbb::task_arena arena(plan_.memory.threads);
  std::thread io_thread;
  std::atomic<bool> done{false};

  const auto watch = [&] {  // progress and interrupts, on a thread that has nothing else to do
    while (!done) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      reporter->Tick();
      try {
        ThrowIfInterrupted(interrupt);
      } catch (...) {
        Fail(std::current_exception());
      }
    }
  };
  std::thread watcher(watch);

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
          if (next->scope->merging()) std::get<1>(ports).try_put(next);
          else std::get<0>(ports).try_put(next);
        });
      });
    });
    Accumulate accumulate(g, flow::unlimited, [&](TileWork* work, auto& ports) { AccumulateTile(work, ports); });
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
      writer_.Submit(tile, [&gateway](OutputTile* written) {
        gateway.try_put(written);
        gateway.release_wait();
      });
    });

    flow::make_edge(read, route);
    flow::make_edge(flow::output_port<0>(route), accumulate);
    flow::make_edge(flow::output_port<1>(route), claim);
    flow::make_edge(flow::output_port<2>(route), order);
    flow::make_edge(claim, order);
    flow::make_edge(flow::output_port<0>(order), accumulate);
    flow::make_edge(flow::output_port<1>(order), queue);
    flow::make_edge(flow::output_port<0>(accumulate), route);
    flow::make_edge(queue, flow::input_port<0>(join));
    flow::make_edge(buffers, flow::input_port<1>(join));
    flow::make_edge(join, merge);
    flow::make_edge(merge, write);
    flow::make_edge(write, buffers);

    writer_.Start([this](std::exception_ptr error) { Fail(error); }, [this](ScopeRun* run) { Retire(run); });
    for (OutputTile& tile : writer_.tiles()) buffers.try_put(&tile);
    read.try_put(flow::continue_msg());
    g.wait_for_all();
    io_thread.join();
    writer_.Stop();
  });
  done = true;
  watcher.join();
  reporter->Finish();
  if (error_) std::rethrow_exception(error_);
  files_.CheckUnchanged();
  writer_.Finish(fingerprint, interrupt);
  return {writer_.sums(), counts_, entries_, kept_};
}

void GraphRun::Fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (error_) return;
    error_ = error;
  }
  failed_ = true;
  budget_.Cancel();
  files_.Cancel();
  writer_.Abandon();
  std::lock_guard lock(mutex_);
  for (const auto& run : scopes_) run->Cancel();
}

// --- the I/O thread ---------------------------------------------------------------------------------------

void GraphRun::ReadAll(Read::gateway_type& gateway) {
  for (const PlannedScope& scope : plan_.scopes) {
    if (scope.elements == 0) continue;
    const std::shared_ptr<ScopeRun> run = StartScope(scope);
    if (run == nullptr) return;
    const uint32_t rounds = scope.resident ? 1 : scope.rounds;
    for (uint32_t r = 0; r < rounds; ++r) {
      {
        StallTimer stall(progress_.of(Stage::kRead));
        if (!run->WaitForRound(r)) return;
      }
      if (!ReadRound(run.get(), gateway)) return;
    }
  }
}

// Null when the run has failed.
std::shared_ptr<ScopeRun> GraphRun::StartScope(const PlannedScope& scope) {
  const uint64_t bytes = scope.statistics_bytes * plan_.memory.accumulators + scope.sums_bytes;
  {
    StallTimer stall(progress_.of(Stage::kRead));
    if (!budget_.Take(bytes)) return nullptr;
  }
  auto run = std::make_shared<ScopeRun>(plan_, scope, &candidates_);
  run->taken = bytes;
  {
    std::lock_guard lock(mutex_);
    scopes_.push_back(run);
  }
  return failed_ ? nullptr : run;  // Fail cancels the scopes that it sees; this one may have come too late for that
}

bool GraphRun::ReadRound(ScopeRun* run, Read::gateway_type& gateway) {
  uint64_t order = 0;
  const PlannedScope& scope = run->scope();
  if (!run->merging() && run->TilesInRound() == 0) {
    FinishStatistics(run);
    return true;
  }
  // Settled beforehand: the round may be over, and the next one begun, once its last tile is on its way.
  std::vector<uint32_t> slots;
  for (uint32_t slot = 0; slot < scope.tensors.size(); ++slot)
    if (run->ReadsTensor(scope.tensors[slot])) slots.push_back(slot);
  for (uint32_t slot : slots) {
    const uint32_t t = scope.tensors[slot];
    for (uint64_t first = 0; first < plan_.tensors[t].elements; first += plan_.memory.tile_elements)
      if (!ReadTile(run, slot, first, order++, gateway)) return false;
  }
  return true;
}

bool GraphRun::ReadTile(ScopeRun* run, uint32_t slot, uint64_t first, uint64_t order, Read::gateway_type& gateway) {
  const uint32_t t = run->scope().tensors[slot];
  const PlannedTensor& tensor = plan_.tensors[t];
  TileWork* work = works_.Take();
  work->scope = run, work->tensor = t, work->slot = slot, work->order = order;
  work->first = first, work->count = std::min(plan_.memory.tile_elements, tensor.elements - first);
  work->cost = TileCost(plan_, tensor, work->count);
  {
    StallTimer stall(progress_.of(Stage::kRead));
    if (!budget_.Take(work->cost)) return false;
  }
  if (run->scope().resident) run->tiles.push_back(work);
  work->windows.resize(plan_.models.size() + 1);
  std::vector<SourceRange> ranges;
  ForEachSource(*work, [&](size_t index, const TensorSource& source) {
    ranges.push_back({source, BytesOf(source, first), BytesOf(source, work->count), &work->windows[index]});
  });
  gateway.reserve_wait();
  StageTimer timer(progress_.of(Stage::kRead));
  files_.Read(ranges, [this, work, &gateway](std::exception_ptr error) {  // on this thread, or when the reads are done
    Guarded([&] {
      if (error) std::rethrow_exception(error);
      CheckInputs();
      progress_.of(Stage::kRead).bytes += MappedBytes(*work);
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

LaneTile GraphRun::LanesOf(const TileWork& work, Worker* worker) const {
  const PlannedTensor& tensor = plan_.tensors[work.tensor];
  LaneTile tile;
  tile.first = work.first, tile.count = work.count;
  if (tensor.base.present()) tile.base = {plan_.Info(tensor.base).dtype, work.windows[0].data()};
  for (size_t m = 0; m < tensor.models.size(); ++m)
    worker->lanes[m] = work.windows[m + 1].size() == 0 ? EncodedLanes{}
                                                       : EncodedLanes{plan_.Info(tensor.models[m]).dtype, work.windows[m + 1].data()};
  tile.models = worker->lanes;
  return tile;
}

void GraphRun::Release(TileWork* work, bool last_use) {
  for (const SourceWindow& window : work->windows) work->cost -= window.held();
  work->windows.clear();
  if (last_use)
    ForEachSource(*work, [&](size_t, const TensorSource& source) {
      files_.Used(source, BytesOf(source, work->first), BytesOf(source, work->count));
    });
  budget_.Give(work->cost);
  works_.Give(work);
}

void GraphRun::RouteTile(TileWork* work, Route::output_ports_type& ports) {
  if (work->scope->spec().ordered) std::get<1>(ports).try_put(work);
  else if (work->scope->merging()) std::get<2>(ports).try_put(work);
  else std::get<0>(ports).try_put(work);
}

void GraphRun::CountClaims(TileWork* work) {
  Guarded([&] {
    StageTimer timer(progress_.of(Stage::kStatistics));
    work->claims.assign(plan_.models.size(), 0);
    if (work->scope->QuotasSpent()) return;
    Worker* worker = TakeWorker();
    const Coefficients& c = plan_.coefficients[plan_.tensors[work->tensor].coefficients];
    work->scope->merger()->CountClaims(c, LanesOf(*work, worker), worker->scratch, work->claims.data());
    workers_.Give(worker);
  });
}

void GraphRun::AccumulateTile(TileWork* work, Accumulate::output_ports_type& ports) {
  Guarded([&] {
    const std::shared_ptr<ScopeRun> run = work->scope->shared_from_this();
    {
      StageTimer timer(progress_.of(Stage::kStatistics));
      Worker* worker = TakeWorker();
      Accumulator* accumulator = run->TakeAccumulator();
      const Coefficients& c = plan_.coefficients[plan_.tensors[work->tensor].coefficients];
      run->merger()->Accumulate(run->round(), c, LanesOf(*work, worker), work->claims.data(), worker->scratch,
                                accumulator, run->SumsOf(work->slot));
      run->GiveAccumulator(accumulator);
      workers_.Give(worker);
      progress_.of(Stage::kStatistics).bytes += MappedBytes(*work);
    }
    if (!run->scope().resident) Release(work, false);
    if (!run->TileDone()) return;
    FinishStatistics(run.get());
    for (TileWork* tile : run->tiles) std::get<0>(ports).try_put(tile);
  });
}

void GraphRun::FinishStatistics(ScopeRun* run) {
  StageTimer timer(progress_.of(Stage::kStatistics));
  if (run->FinishRound()) budget_.Give(std::exchange(run->taken, 0));
}

void GraphRun::MergeTile(TileWork* work, OutputTile* out) {
  const PlannedTensor& tensor = plan_.tensors[work->tensor];
  ScopeRun* const run = work->scope;
  out->tensor = work->tensor;
  out->order = work->order;
  out->begin = work->first * static_cast<uint64_t>(DTypeBits(tensor.type)) / 8;
  out->bytes = work->count * static_cast<uint64_t>(DTypeBits(tensor.type)) / 8;
  {
    StageTimer timer(progress_.of(Stage::kMerge));
    if (work->scope->is_copy()) {
      CopyTile(*work, out->data);
    } else {
      MergeCounts counts;
      Worker* worker = TakeWorker();
      work->scope->merger()->Merge(plan_.coefficients[tensor.coefficients], LanesOf(*work, worker), work->claims.data(),
                                   worker->scratch, tensor.type, out->data, &counts);
      workers_.Give(worker);
      std::lock_guard lock(mutex_);
      counts_.conflicts += counts.conflicts;
      counts_.non_finite.nan += counts.non_finite.nan;
      counts_.non_finite.inf += counts.non_finite.inf;
    }
    progress_.of(Stage::kMerge).bytes += MappedBytes(*work);
  }
  Release(work, true);
  out->scope = run;
}

// Integers and booleans: equal everywhere, or there is no right answer.
void GraphRun::CopyTile(const TileWork& work, std::byte* out) {
  const PlannedTensor& tensor = plan_.tensors[work.tensor];
  const TensorSource* first = nullptr;
  ForEachSource(work, [&](size_t index, const TensorSource& source) {
    const uint64_t bytes = BytesOf(source, work.count);
    const std::byte* data = work.windows[index].data();
    if (first == nullptr) {
      first = &source;
      std::memcpy(out, data, bytes);
    } else if (std::memcmp(out, data, bytes) != 0) {
      throw Error(ErrorCode::kIncompatible,
                  fmt::format("its values differ between {} and {}",
                              plan_.checkpoints[static_cast<size_t>(first->checkpoint)].reference,
                              plan_.checkpoints[static_cast<size_t>(source.checkpoint)].reference))
          .Tensor(tensor.name)
          .Hint("tensors that are not floating point must be the same in all sources");
    }
  });
}

// All tiles of a scope are written.
void GraphRun::Retire(ScopeRun* run) {
  std::lock_guard lock(mutex_);
  if (run->merger() != nullptr && run->scope().rounds > 1) {
    entries_ += run->merger()->entries();
    kept_ += run->merger()->kept();
  }
  scopes_.remove_if([&](const std::shared_ptr<ScopeRun>& held) { return held.get() == run; });
}

}  // namespace

GraphResult RunGraph(const Plan& plan, const std::string& fingerprint, const std::vector<std::string>& shard_paths,
                     const std::atomic<int>& interrupt, bool quiet, Progress* progress) {
  progress->bytes_to_read = plan.totals.bytes_read;
  progress->bytes_to_write = plan.totals.bytes_written;
  ProgressReporter reporter(*progress, quiet);
  return GraphRun(plan, shard_paths, progress).Run(fingerprint, interrupt, &reporter);
}

}  // namespace braid
