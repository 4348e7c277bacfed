// The I/O thread: which tiles are read, when, and what waits for what.
#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "io/error.h"
#include "pipeline/graph_run.h"
#include "pipeline/sample.h"
#include "pipeline/tile_sources.h"

namespace braid {

void GraphRun::ReadAll(Read::gateway_type& gateway) {
  if (!ReadFronts(gateway)) return;
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

// What stages find out before the last phase; none of it is needed where nothing is merged that it matters to.
bool GraphRun::ReadFronts(Read::gateway_type& gateway) {
  const std::vector<PlannedScope>& fronts = plan_.fronts;
  const auto matters = [&](const PlannedScope& front) { return share_.Any(front) || Shared(front); };
  if (std::none_of(fronts.begin(), fronts.end(), matters)) return true;
  findings_.resize(plan_.chain.mergers.size());
  for (size_t i = 0; i < fronts.size();) {
    std::vector<std::shared_ptr<ScopeRun>> runs;
    for (const uint32_t phase = fronts[i].phase; i < fronts.size() && fronts[i].phase == phase; ++i) {
      if (fronts[i].elements == 0) continue;
      runs.push_back(Measure(fronts[i], gateway));
      if (runs.back() == nullptr) return false;
    }
    for (const auto& run : runs) {
      StallTimer stall(progress_.of(Stage::kRead));
      if (!run->WaitUntilItWaits()) return false;
      KeepFindings(*run->merger(), &findings_);
      run->taken -= std::min(run->taken, run->scope().kept_bytes);   // they keep it
      Forget(run.get());
    }
  }
  return true;
}

// All rounds before the merge, of all scopes; then the scale of the merges is known. Ranks that take statistics
// together leave out what others merge, and get its norms.
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
    if (!run->WaitUntilItWaits()) return false;
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
  auto run = std::make_shared<ScopeRun>(plan_, share_, scope, anew, Shared(scope), findings_);
  run->taken = bytes;
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
    if ((!run->resident() || order == 0) && !files_.WaitForBuffers()) return false;
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

}  // namespace braid
