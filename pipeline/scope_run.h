// A scope in progress: its merger, the state of its current round, and the tiles that are on their way.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "io/error.h"
#include "ops/merger.h"
#include "pipeline/plan.h"
#include "pipeline/share.h"
#include "pipeline/source_files.h"

namespace braid {

class ScopeRun;

struct OutputTile;

// What a merger says of its elements, as an Error that names their tensor.
template <typename Body>
void NamingTensor(const std::string& name, Body body) {
  try {
    body();
  } catch (const NoMerge& none) {
    throw Error(ErrorCode::kIncompatible, none.what()).Tensor(name);
  }
}

// A tile whose thresholds are not known yet.
struct DraftedTile {
  OutputTile* output = nullptr;
  OpenElements open;
  MergeCounts counts;
};

// What a round reads of a tensor.
struct Piece {
  uint32_t slot = 0;        // index into PlannedScope::tensors
  ElementRange elements;
  // Where its first tile takes its quotas from, of a scope that ranks share; otherwise none.
  static constexpr size_t kNone = SIZE_MAX;
  size_t shared = kNone;
  bool written = false;     // its tiles come out of this round, or stay until they do; otherwise they are only counted
};

// One range of one output tensor on its way through the graph. Objects are recycled.
struct TileWork {
  ScopeRun* scope = nullptr;
  uint32_t tensor = 0;       // index into Plan::tensors
  uint32_t slot = 0;         // index into PlannedScope::tensors
  uint64_t first = 0;        // elements
  uint64_t count = 0;
  uint64_t cost = 0;         // bytes taken from the budget
  uint64_t order = 0;        // place among the scope's tiles of this round
  bool written = false;
  size_t shared = Piece::kNone;   // of the scope's shared pieces, the one that it is in
  bool begins = false;       // that piece's quotas begin with it
  uint64_t written_order = 0;  // place among those that are written
  std::vector<SourceWindow> windows;  // the base's, if any, then one per model; empty: takes no part
  std::vector<uint64_t> claims;  // per threshold: entries equal to it, then how many of them count as above it
};

// Retired once its last tile is written, perhaps while the thread that let that tile go is still inside one of its
// functions: whoever passes tiles on holds a reference of its own.
class ScopeRun : public std::enable_shared_from_this<ScopeRun> {
 public:
  // `anew`: a draft did not come out; the scope is streamed, its thresholds found by histograms. So is a scope that is
  // merged in part. `shared`: several ranks take its statistics together. `found`: as Plan::MakeMerger wants it.
  ScopeRun(const Plan& plan, const Share& share, const PlannedScope& scope, bool anew, bool shared,
           const std::vector<ChainFinding>& found);

  const PlannedScope& scope() const { return scope_; }
  bool resident() const { return resident_; }
  bool is_copy() const { return merger_ == nullptr; }
  Merger* merger() const { return merger_.get(); }
  uint32_t round() const { return round_; }
  bool merging() const { return is_copy() || round_ == merger_->statistics_rounds(); }
  bool drafting() const { return spec_.draft; }
  bool drafts_tiles() const { return drafts_tiles_; }   // in this round, or in the one after it
  const RoundSpec& spec() const { return spec_; }

  // Measured, and waiting until all others are: its merge begins when somebody reads it. Or a front: it has none.
  bool waits() const { return (plan_.measured || plan_.IsFront(scope_)) && !is_copy() && merging(); }

  // Whether the current round reads anything of a tensor.
  bool ReadsTensor(uint32_t tensor) const;
  bool ReadsModel(uint32_t tensor, size_t model) const;

  // What the current round reads, in order. Any thread.
  std::vector<Piece> Pieces() const;

  // --- statistics that several ranks take together (exchange.h), part by part; the I/O thread's
  bool shared() const { return shared_; }
  UnitRun shared_units() const { return shared_units_; }
  // What this takes of the budget, at most, of a scope that has statistics.
  static uint64_t SharingBytes(const Plan& plan, const PlannedScope& scope, const Merger& merger);
  bool StatisticsTravel() const;             // of this round
  // The round's tiles are those of the part; of an ordered round, to be counted.
  void BeginPart(UnitRun part, bool claims);
  bool counts_claims() const { return counting_claims_; }
  bool in_part() const { return part_.has_value(); }
  void PartDone();                           // by whoever counts its last tile
  bool WaitForPart();                        // false: cancelled
  void SavePart(UnitRun part, const Accumulator::Put& put);
  void LoadPart(UnitRun part, const Accumulator::Get& get);
  void ClearPart();
  void EndParts();                           // all ranks' are there

  // An accumulator to count into; waits for one when all are in use. Give it back. Any thread.
  Accumulator* TakeAccumulator();
  void GiveAccumulator(Accumulator* accumulator);
  BlockSums SumsOf(uint32_t slot);

  // Counts a tile of a round before the merge as done; true for the last one, whose caller then calls FinishRound, or
  // FinishDraft.
  bool TileDone() { return remaining_.fetch_sub(1) == 1; }
  void FinishRound();
  bool FinishDraft();  // false: it has to start anew
  void DraftFailed() { draft_failed_ = true; }
  // Of a draft that came out, each tile once, in order, whichever thread asks first.
  OutputTile* NextDraft() { return drafts[next_draft_++].output; }
  // Once FinishDraft is done.
  bool failed_draft() const { return outcome_ == Outcome::kAnew; }
  // The I/O thread waits here for the outcome of a draft; false: start anew (or cancelled).
  bool WaitForDraft();
  bool DraftSettled() {
    std::lock_guard lock(mutex_);
    return outcome_ == Outcome::kSettled;
  }
  bool DraftStartsAnew() {
    std::lock_guard lock(mutex_);
    return outcome_ == Outcome::kAnew;
  }

  // Passes tiles on in order: takes one that is ready, calls `emit` for every tile whose turn it is, after handing
  // out its share of the quotas. Serial.
  template <typename Emit>
  void InOrder(TileWork* work, Emit emit) {
    waiting_[work->order] = work;
    while (!waiting_.empty() && waiting_.begin()->first == next_order_) {
      TileWork* const next = waiting_.begin()->second;
      waiting_.erase(waiting_.begin());
      ++next_order_;
      if (counting_claims_) AddClaims(*next);
      else Grant(next);
      emit(next);  // last: this may end the round, and another thread begins the next one
    }
  }

  // Whether every quota is spent, so that claims need no counting any more. Any thread.
  bool QuotasSpent() const { return quotas_spent_.load(std::memory_order_relaxed); }

  // The I/O thread waits here until round r begins; false when cancelled.
  bool WaitForRound(uint32_t r);
  // ... and here until the scope waits.
  bool WaitUntilItWaits();
  void Cancel();

  std::vector<TileWork*> tiles;      // of a resident scope, in order
  std::vector<DraftedTile> drafts;   // in order
  uint64_t taken = 0;                // bytes from the budget for statistics
  uint64_t unwritten = 0;            // tiles of the merge still to be written; the writer thread's

 private:
  // Of one tensor's blocks, those in one unit.
  struct SharedPiece {
    uint32_t slot = 0;
    ElementRange elements;
    uint32_t unit = 0;
  };

  void BeginRound();
  void BeginTiles();
  void MakePieces();
  size_t PieceAt(uint32_t slot, uint64_t element) const;
  template <typename Visit>
  void ForEachPiece(UnitRun part, Visit visit) const;
  template <typename Visit>
  void ForEachSums(const SharedPiece& piece, Visit visit);
  Accumulator* Folded();
  void AddClaims(const TileWork& work);
  void Grant(TileWork* work);
  std::vector<double> TotalSums() const;

  const Plan& plan_;
  const Share& share_;
  const PlannedScope& scope_;
  bool resident_, drafts_tiles_, shared_;
  std::unique_ptr<Merger> merger_;
  std::atomic<bool> draft_failed_{false};
  std::atomic<size_t> next_draft_{0};
  enum class Outcome { kNone, kSettled, kAnew } outcome_ = Outcome::kNone;   // of a draft
  uint32_t round_ = 0;
  RoundSpec spec_;
  std::atomic<uint64_t> remaining_{0};

  std::mutex mutex_;
  std::condition_variable begun_, returned_;  // a round, or the outcome of a draft; an accumulator
  bool cancelled_ = false;
  uint32_t accumulators_made_ = 0;
  std::vector<std::unique_ptr<Accumulator>> accumulators_;
  std::vector<Accumulator*> free_;

  std::vector<double> sums_;
  std::vector<size_t> sums_begin_;   // per slot

  std::map<uint64_t, TileWork*> waiting_;
  uint64_t next_order_ = 0;
  std::vector<uint64_t> quota_left_;
  std::atomic<bool> quotas_spent_{false};

  std::vector<SharedPiece> pieces_;  // in the order of the scope
  UnitRun shared_units_;
  std::optional<UnitRun> part_;
  bool counting_claims_ = false, part_done_ = false;
  bool quotas_known_ = false;        // of this round
  std::vector<uint64_t> claims_;     // per piece and quota; when they are known, what is left where the piece begins
};

}  // namespace braid
