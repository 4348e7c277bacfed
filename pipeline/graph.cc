#include "pipeline/graph.h"

#include <tbb/flow_graph.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <chrono>
#include <condition_variable>
#include <thread>
#include <utility>

#include "pipeline/graph_run.h"
#include "pipeline/interrupt.h"
#include "pipeline/threads.h"

namespace braid {
namespace {

constexpr size_t kOtherThreads = 4;   // that watch, read, and write

}  // namespace

GraphResult GraphRun::Run(const std::string& fingerprint, const std::atomic<int>& interrupt,
                          ProgressReporter* reporter) {
  CheckThreads(static_cast<size_t>(plan_.memory.threads) + kOtherThreads);
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
      try {
        io_thread = std::thread([&] {
          Guarded([&] { ReadAll(gateway); });
          gateway.release_wait();
        });
      } catch (...) {
        Fail(std::current_exception());
        gateway.release_wait();
      }
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
    // Gets as many messages as the scope has drafts, and takes these in order: tasks run last first, and a tile that is
    // written before its turn keeps its buffer until the checksum has come that far.
    flow::function_node<ScopeRun*, OutputTile*> settle(g, flow::unlimited, [&](ScopeRun* run) {
      OutputTile* const tile = run->NextDraft();
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
    if (io_thread.joinable()) io_thread.join();
    writer_.Stop();
  });
  watcher.request_stop();
  watcher.join();
  reporter->Finish();
  if (error_) std::rethrow_exception(error_);
  files_.CheckUnchanged();
  writer_.Finish(fingerprint, interrupt);
  return {writer_.sums(), counts_, entries_, kept_, alpha_, writer_.output().bytes_written(),
          writer_.output().bytes_spilled(), writer_.output().stream_sum()};
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

GraphResult RunGraph(const Plan& plan, const Share& share, const std::string& fingerprint,
                     const std::vector<std::string>& shard_paths, const std::atomic<int>& interrupt, bool quiet,
                     Progress* progress, StatisticsKeeper* keeper, Exchange* exchange,
                     const std::function<void(const WrittenUnits&)>& units_done) {
  if (!progress->of_all_ranks) {
    const double part = static_cast<double>(share.bytes_written()) / static_cast<double>(plan.totals.bytes_written);
    progress->bytes_to_read += static_cast<uint64_t>(static_cast<double>(plan.totals.bytes_read) * std::min(part, 1.0));
    progress->bytes_to_write += share.bytes_written();
  }
  ProgressReporter reporter(progress, quiet);
  GraphRun run(plan, share, shard_paths, progress, keeper, exchange, units_done);
  return run.Run(fingerprint, interrupt, &reporter);
}

}  // namespace braid
