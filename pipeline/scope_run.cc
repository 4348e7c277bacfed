#include "pipeline/scope_run.h"

#include <algorithm>

#include "io/error.h"

namespace braid {

ScopeRun::ScopeRun(const Plan& plan, const Share& share, const PlannedScope& scope, bool anew, bool shared,
                   const std::vector<ChainFinding>& found)
    : plan_(plan), share_(share), scope_(scope), shared_(shared) {
  const bool streamed = anew || shared || !share.Whole(scope);
  resident_ = scope.resident && !streamed;
  drafts_tiles_ = scope.approach == Approach::kDraft && !streamed;
  if (plan.tensors[scope.tensors.front()].action == TensorAction::kMerge)
    merger_ = plan.MakeMerger(scope, streamed ? Approach::kPlain : scope.approach, &found);
  if (merger_ != nullptr && scope.keeps_decisions && !streamed) merger_->KeepDecisions();
  shared_ = shared_ && merger_ != nullptr && merger_->statistics_rounds() > 0;
  if (shared_) MakePieces();
  BeginRound();
}

bool ScopeRun::ReadsModel(uint32_t tensor, size_t model) const {
  const PlannedTensor& planned = plan_.tensors[tensor];
  if (!planned.models[model].present()) return false;
  if (is_copy()) return true;
  const Coefficients& c = plan_.coefficients[planned.coefficients];
  if (!resident_) return merger_->Reads(round_, model, c);
  for (size_t r = 0; r <= merger_->statistics_rounds(); ++r)
    if (merger_->Reads(r, model, c)) return true;
  return false;
}

bool ScopeRun::ReadsTensor(uint32_t tensor) const {
  if (merging() || resident_) return true;
  for (size_t m = 0; m < plan_.tensors[tensor].models.size(); ++m)
    if (ReadsModel(tensor, m)) return true;
  return false;
}

// Statistics are of everything. An ordered merge of a part also reads what comes before it, to hand out its quotas.
std::vector<Piece> ScopeRun::Pieces() const {
  const bool writes = merging() || drafting();
  std::vector<Piece> pieces;
  if (part_) {
    for (size_t i = 0; i < pieces_.size(); ++i)
      if (pieces_[i].unit >= part_->first && pieces_[i].unit < part_->last &&
          (writes || ReadsTensor(scope_.tensors[pieces_[i].slot])))
        pieces.push_back({pieces_[i].slot, pieces_[i].elements, i, false});
    return pieces;
  }
  size_t end = 0;   // behind the last one that is written
  for (uint32_t slot = 0; slot < scope_.tensors.size(); ++slot) {
    const uint32_t t = scope_.tensors[slot];
    if (!ReadsTensor(t)) continue;
    uint64_t at = 0;
    const auto skip_to = [&](uint64_t element) {
      if (at < element && (!writes || (spec_.ordered && !quotas_known_)))
        pieces.push_back({slot, {at, element}, Piece::kNone, !writes && resident_});
      at = element;
    };
    if (writes) {
      for (const ElementRange& range : share_.Merged(t)) {
        skip_to(range.first);
        pieces.push_back({slot, range, quotas_known_ ? PieceAt(slot, range.first) : Piece::kNone, true});
        at = range.last, end = pieces.size();
      }
    }
    skip_to(plan_.tensors[t].elements);
  }
  if (writes) pieces.resize(end);
  return pieces;
}

void ScopeRun::BeginRound() {
  if (waits()) resident_ = false;   // it is read anew for the merge
  spec_ = is_copy() ? RoundSpec{.name = "copy"} : merger_->round(round_);
  accumulators_.clear(), free_.clear(), accumulators_made_ = 0;
  sums_begin_.clear();
  size_t doubles = 0;
  if (spec_.sums > 0)
    for (uint32_t t : scope_.tensors)
      sums_begin_.push_back(doubles), doubles += spec_.sums * plan_.SumBlocks(plan_.tensors[t]);
  sums_ = std::vector<double>(doubles, 0.0);   // gives the memory of the last round's back
  quota_left_.clear();
  quotas_known_ = false;
  claims_.clear();
  if (spec_.ordered) {
    const size_t quotas = plan_.tensors[scope_.tensors.front()].models.size() * merger_->claims_per_model();
    for (size_t i = 0; i < quotas; ++i) quota_left_.push_back(merger_->Quota(i));
  }
  BeginTiles();
  if (drafting()) drafts.resize(unwritten);
}

void ScopeRun::BeginTiles() {
  next_order_ = 0;
  quotas_spent_ = false;
  remaining_ = 0, unwritten = 0;
  for (const Piece& piece : Pieces()) {
    const uint64_t tile = plan_.TileElements(plan_.tensors[scope_.tensors[piece.slot]]);
    const uint64_t its = (piece.elements.last - piece.elements.first + tile - 1) / tile;
    remaining_ += its;
    if (piece.written) unwritten += its;
  }
}

Accumulator* ScopeRun::TakeAccumulator() {
  if (spec_.accumulator_bytes == 0) return nullptr;
  std::unique_lock lock(mutex_);
  if (free_.empty() && accumulators_made_ < plan_.memory.accumulators) {
    ++accumulators_made_;
    lock.unlock();  // making one touches all its memory
    std::unique_ptr<Accumulator> made = merger_->NewAccumulator(round_);
    lock.lock();
    accumulators_.push_back(std::move(made));
    return accumulators_.back().get();
  }
  returned_.wait(lock, [&] { return cancelled_ || !free_.empty(); });
  if (free_.empty()) throw Error(ErrorCode::kInternal, "cancelled");  // not the first error, so nobody sees it
  Accumulator* accumulator = free_.back();
  free_.pop_back();
  return accumulator;
}

void ScopeRun::GiveAccumulator(Accumulator* accumulator) {
  if (accumulator == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    free_.push_back(accumulator);
  }
  returned_.notify_one();
}

BlockSums ScopeRun::SumsOf(uint32_t slot) {
  if (sums_.empty()) return {};
  return {&sums_[sums_begin_[slot]], plan_.SumBlocks(plan_.tensors[scope_.tensors[slot]])};
}

// Blocks in index order within a tensor, tensors in the scope's order.
std::vector<double> ScopeRun::TotalSums() const {
  std::vector<double> totals(spec_.sums, 0.0);
  for (size_t slot = 0; slot < sums_begin_.size(); ++slot) {
    const uint64_t blocks = plan_.SumBlocks(plan_.tensors[scope_.tensors[slot]]);
    for (size_t q = 0; q < spec_.sums; ++q) {
      double sum = 0;
      for (uint64_t b = 0; b < blocks; ++b) sum += sums_[sums_begin_[slot] + q * blocks + b];
      totals[q] += sum;
    }
  }
  return totals;
}

void ScopeRun::FinishRound() {
  // A round without tiles (an empty tensor) has no accumulator to finish with.
  if (accumulators_.empty() && spec_.accumulator_bytes > 0) accumulators_.push_back(merger_->NewAccumulator(round_));
  for (size_t i = 1; i < accumulators_.size(); ++i) accumulators_[0]->Add(accumulators_[i].get());
  try {
    merger_->Finish(round_, accumulators_.empty() ? nullptr : accumulators_[0].get(), TotalSums());
  } catch (const NoMerge& none) {
    throw Error(ErrorCode::kIncompatible, none.what()).Tensor(plan_.tensors[scope_.tensors.front()].name);
  }
  std::lock_guard lock(mutex_);
  ++round_;
  BeginRound();
  begun_.notify_all();
}

bool ScopeRun::FinishDraft() {
  std::vector<const OpenElements*> open;
  for (const DraftedTile& tile : drafts) open.push_back(&tile.open);
  const bool settled = !draft_failed_ && merger_->FinishDraft(open);
  {
    std::lock_guard lock(mutex_);
    outcome_ = settled ? Outcome::kSettled : Outcome::kAnew;
  }
  begun_.notify_all();
  return settled;
}

bool ScopeRun::WaitForDraft() {
  std::unique_lock lock(mutex_);
  begun_.wait(lock, [&] { return cancelled_ || outcome_ != Outcome::kNone; });
  return outcome_ == Outcome::kSettled;
}

void ScopeRun::AddClaims(const TileWork& work) {
  for (size_t q = 0; q < work.claims.size(); ++q) claims_[work.shared * work.claims.size() + q] += work.claims[q];
}

void ScopeRun::Grant(TileWork* work) {
  bool spent = true;
  if (work->begins && quotas_known_)
    std::copy_n(&claims_[work->shared * quota_left_.size()], quota_left_.size(), quota_left_.begin());
  for (size_t m = 0; m < quota_left_.size(); ++m) {
    if (quota_left_[m] == Merger::kNoQuota) continue;
    work->claims[m] = std::min(work->claims[m], quota_left_[m]);
    quota_left_[m] -= work->claims[m];
    spent &= quota_left_[m] == 0;
  }
  if (spent) quotas_spent_ = true;
}

bool ScopeRun::WaitForRound(uint32_t r) {
  std::unique_lock lock(mutex_);
  begun_.wait(lock, [&] { return cancelled_ || round_ >= r; });
  return !cancelled_;
}

bool ScopeRun::WaitUntilItWaits() {
  std::unique_lock lock(mutex_);
  begun_.wait(lock, [&] { return cancelled_ || waits(); });
  return !cancelled_;
}

void ScopeRun::Cancel() {
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  begun_.notify_all();
  returned_.notify_all();
}

}  // namespace braid
