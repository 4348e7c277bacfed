// A scope whose statistics several ranks take together: the parts that are counted here, what is handed to others, and
// the quotas that each piece of the scope begins with.

#include <algorithm>

#include "pipeline/scope_run.h"

namespace braid {

void ScopeRun::MakePieces() {
  const std::vector<OutputUnit>& units = share_.all_units();
  for (uint32_t slot = 0; slot < scope_.tensors.size(); ++slot) {
    const PlannedTensor& tensor = plan_.tensors[scope_.tensors[slot]];
    const UnitRun run = UnitsOf(plan_, units, scope_.tensors[slot]);
    for (uint32_t u = run.first; u < run.last; ++u) {
      const ElementRange blocks = BlocksIn(plan_, tensor, units[u]);
      if (blocks.first < blocks.last) pieces_.push_back({slot, blocks, u});
    }
    shared_units_.first = slot == 0 ? run.first : std::min(shared_units_.first, run.first);
    shared_units_.last = std::max(shared_units_.last, run.last);
  }
}

uint64_t ScopeRun::SharingBytes(const Plan& plan, const PlannedScope& scope, const Merger& merger) {
  const size_t quotas = plan.tensors[scope.tensors.front()].models.size() * merger.claims_per_model();
  return MostPieces(plan, scope) * (sizeof(SharedPiece) + 2 * sizeof(Piece) + quotas * sizeof(uint64_t));
}

size_t ScopeRun::PieceAt(uint32_t slot, uint64_t element) const {
  const auto at = std::partition_point(pieces_.begin(), pieces_.end(), [&](const SharedPiece& piece) {
    return piece.slot < slot || (piece.slot == slot && piece.elements.last <= element);
  });
  return static_cast<size_t>(at - pieces_.begin());
}

bool ScopeRun::StatisticsTravel() const {
  if (merging() || spec_.sample || spec_.draft) return false;
  return spec_.accumulator_bytes == 0 || merger_->NewAccumulator(round_)->Travels();
}

void ScopeRun::BeginPart(UnitRun part, bool claims) {
  std::lock_guard lock(mutex_);
  part_ = part, counting_claims_ = claims, part_done_ = false;
  if (claims) claims_.resize(pieces_.size() * quota_left_.size());
  BeginTiles();
}

void ScopeRun::PartDone() {
  {
    std::lock_guard lock(mutex_);
    part_done_ = true;
  }
  begun_.notify_all();
}

bool ScopeRun::WaitForPart() {
  std::unique_lock lock(mutex_);
  begun_.wait(lock, [&] { return cancelled_ || part_done_; });
  return !cancelled_;
}

template <typename Visit>
void ScopeRun::ForEachPiece(UnitRun part, Visit visit) const {
  for (size_t i = 0; i < pieces_.size(); ++i)
    if (pieces_[i].unit >= part.first && pieces_[i].unit < part.last) visit(i);
}

// Of each quantity, the sums of a piece's blocks: visit(data, how many).
template <typename Visit>
void ScopeRun::ForEachSums(const SharedPiece& piece, Visit visit) {
  const PlannedTensor& tensor = plan_.tensors[scope_.tensors[piece.slot]];
  const uint64_t block = BlockOf(plan_, tensor), first = piece.elements.first / block;
  const uint64_t last = (piece.elements.last + block - 1) / block, stride = plan_.SumBlocks(tensor);
  for (size_t q = 0; q < spec_.sums; ++q) visit(&sums_[sums_begin_[piece.slot] + q * stride + first], last - first);
}

void ScopeRun::SavePart(UnitRun part, const Accumulator::Put& put) {
  if (counting_claims_) {
    const size_t quotas = quota_left_.size();
    return ForEachPiece(part, [&](size_t i) { put(&claims_[i * quotas], quotas * sizeof(uint64_t)); });
  }
  if (spec_.accumulator_bytes > 0) Folded()->Save(put);
  ForEachPiece(part, [&](size_t i) {
    ForEachSums(pieces_[i], [&](const double* sums, uint64_t n) { put(sums, n * sizeof(double)); });
  });
}

void ScopeRun::LoadPart(UnitRun part, const Accumulator::Get& get) {
  std::vector<double> more;
  if (counting_claims_) {
    const size_t quotas = quota_left_.size();
    claims_.resize(pieces_.size() * quotas);
    std::vector<uint64_t> theirs(quotas);
    return ForEachPiece(part, [&](size_t i) {
      get(theirs.data(), quotas * sizeof(uint64_t));
      for (size_t q = 0; q < quotas; ++q) claims_[i * quotas + q] += theirs[q];
    });
  }
  if (spec_.accumulator_bytes > 0) Folded()->Load(get);
  ForEachPiece(part, [&](size_t i) {
    ForEachSums(pieces_[i], [&](double* sums, uint64_t n) {
      more.resize(n);
      get(more.data(), n * sizeof(double));
      for (uint64_t b = 0; b < n; ++b) sums[b] += more[b];
    });
  });
}

void ScopeRun::ClearPart() {
  if (counting_claims_) return std::fill(claims_.begin(), claims_.end(), 0);
  accumulators_.clear(), free_.clear(), accumulators_made_ = 0;
  std::fill(sums_.begin(), sums_.end(), 0.0);
}

// All that was counted here, in one accumulator.
Accumulator* ScopeRun::Folded() {
  std::lock_guard lock(mutex_);
  if (accumulators_.empty()) accumulators_.push_back(merger_->NewAccumulator(round_)), accumulators_made_ = 1;
  for (size_t i = 1; i < accumulators_.size(); ++i) accumulators_[0]->Add(accumulators_[i].get());
  accumulators_.resize(1), accumulators_made_ = 1;
  free_ = {accumulators_[0].get()};
  return accumulators_[0].get();
}

// The statistics are complete; or the claims, from which follows what is left of each quota where a piece begins.
void ScopeRun::EndParts() {
  std::lock_guard lock(mutex_);
  if (counting_claims_) {
    const size_t quotas = quota_left_.size();
    claims_.resize(pieces_.size() * quotas);
    for (size_t q = 0; q < quotas; ++q) {
      uint64_t left = merger_->Quota(q);
      for (size_t i = 0; i < pieces_.size(); ++i) {
        const uint64_t claims = std::exchange(claims_[i * quotas + q], left);
        if (left != Merger::kNoQuota) left -= std::min(left, claims);
      }
    }
    quotas_known_ = true;
  }
  part_.reset();
  counting_claims_ = false;
  BeginTiles();
}

}  // namespace braid
