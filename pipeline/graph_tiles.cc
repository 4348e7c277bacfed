// What happens to a tile: the bodies of the graph's nodes.
#include <utility>

#include "io/error.h"
#include "ops/non_finite.h"
#include "pipeline/graph_run.h"
#include "pipeline/sample.h"
#include "pipeline/tile_sources.h"

namespace braid {

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
    const PlannedTensor& tensor = plan_.tensors[work->tensor];
    NamingTensor(tensor.name, [&] {   // a chain merges what its stages read of each other
      work->scope->merger()->CountClaims(CoefficientsOf(tensor), LanesOf(plan_, *work, &worker->lanes), worker->scratch,
                                         work->claims.data());
    });
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
      const PlannedTensor& tensor = plan_.tensors[work->tensor];
      const Coefficients& c = CoefficientsOf(tensor);
      const LaneTile tile = LanesOf(plan_, *work, &worker->lanes);
      NamingTensor(tensor.name, [&] {
        if (run->spec().sample) return SampleTile(tile, tensor.elements, c, *run, worker->scratch, accumulator);
        run->merger()->Accumulate(run->round(), c, tile, work->claims.data(), worker->scratch, accumulator,
                                  run->SumsOf(work->slot));
      });
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
  const uint64_t sharing = run->shared() ? ScopeRun::SharingBytes(plan_, run->scope(), *run->merger()) : 0;
  const uint64_t kept = std::min(run->taken, run->scope().kept_bytes + sharing);
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
      std::get<0>(ports).try_put(run);
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

}  // namespace braid
