// breadcrumbs and breadcrumbs_ties: methods.md, rows of that name. Of the entries by magnitude, the largest are dropped
// as outliers, the next ones stay, and the rest goes.
#pragma once

#include <vector>

#include "ops/magnitude_selection.h"
#include "ops/row_ranks.h"
#include "ops/sparse_merger.h"

namespace braid {

class Histograms;
class InsideCounts;
class SampleKeys;

// Which of n entries stay, by their place in the order: larger magnitudes first, equal ones by their index.
struct KeptPlaces {
  uint64_t first = 0, end = 0;
};
KeptPlaces KeptPlacesOf(double density, double gamma, uint64_t n);

// Over whole tensors: both ends are order statistics, found exactly by two histograms each, or by a sample and one look
// at the entries near them; or merged before they are known (breadcrumbs_draft.cc).
class BreadcrumbsMerger : public SparseMerger {
 public:
  BreadcrumbsMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope,
                    Approach approach);

  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t model, const Coefficients& c) const override;
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  bool Draft(const Coefficients& c, const LaneTile& tile, Scratch& scratch, DType type, std::byte* out,
             OpenElements* open, MergeCounts* counts) const override;
  bool FinishDraft(std::span<const OpenElements* const> tiles) override;
  void Settle(const Coefficients& c, const OpenElements& open, uint64_t first, Scratch& scratch, DType type,
              std::byte* out, MergeCounts* counts) const override;
  size_t claims_per_model() const override { return kEnds; }
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  uint64_t Quota(size_t claim) const override { return trails_[claim / kEnds].ends[claim % kEnds].quota; }
  uint64_t entries() const override;
  uint64_t kept() const override;

 private:
  enum class Step { kSample, kInside, kHighHalves, kLowHalves, kDraft };
  static constexpr size_t kEnds = 2;   // where outliers end; where the entries that stay end

  // The end of the first `place` entries.
  struct End {
    uint64_t place = 0;
    bool sought = false;
    size_t slot = 0;             // among the ends that are sought
    Bracket bracket{.sure = {kNanKey, 0}, .open = {0, 0}};   // all that is not zero is open
    CriticalBin bin;
    Cut cut;
    uint64_t quota = kNoQuota;   // of those equal to cut.key only so many are among them, by index
  };
  struct Trail {
    uint64_t kept = 0;
    End ends[kEnds];
    size_t slot = 0;             // among the models that have an end to be found
    bool sought() const { return ends[0].sought || ends[1].sought; }
    bool same_bin() const { return ends[0].sought && ends[1].sought && ends[0].bin.high == ends[1].bin.high; }
  };

  void Prepare(const LaneTile& tile, const uint64_t* grants, const LaneUnit& unit, Scratch& scratch) const override;
  void Keep(const LaneTile& tile, size_t m, const LaneUnit& unit, size_t start, size_t n, Scratch& scratch,
            float* d) const override;
  bool ordered() const override;
  void TakeSample(const LaneTile& tile, Scratch& scratch, SampleKeys& sample) const;
  template <typename Visit>
  void ForEachSought(const LaneTile& tile, Scratch& scratch, Visit visit) const;
  void FinishSample(const SampleKeys& sample);
  void FinishInside(const InsideCounts& counts);
  void FinishHigh(const Histograms& histograms);
  void FinishLow(const Histograms& histograms);
  static void UseThreshold(const Threshold& threshold, End* end);
  void SetSteps(std::vector<Step> steps);
  bool drafts() const { return steps_.back() == Step::kDraft; }
  double OpenShare() const;
  void FindOpenElements(const TaskVectorBlock& block, size_t n, uint64_t index, Scratch& scratch, uint64_t* words,
                        OpenElements* open) const;
  bool PutAside(const LaneTile& tile, uint64_t index, const uint32_t* places, size_t count, const Scratch& scratch,
                OpenElements* open) const;
  uint64_t CutIndex(const LaneTile& tile, size_t m, uint32_t key, uint64_t granted, Scratch& scratch) const;

  uint64_t elements_;
  std::vector<Trail> trails_;
  size_t sought_models_ = 0, sought_ends_ = 0;
  std::vector<Step> steps_;      // of the selection
};

// Over each row by itself (scope = "row").
class BreadcrumbsRowMerger : public SparseMerger {
 public:
  BreadcrumbsRowMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope);
  uint64_t entries() const override { return entries_; }
  uint64_t kept() const override { return kept_; }

 private:
  void Prepare(const LaneTile& tile, const uint64_t* grants, const LaneUnit& unit, Scratch& scratch) const override;
  void Keep(const LaneTile& tile, size_t m, const LaneUnit& unit, size_t start, size_t n, Scratch& scratch,
            float* d) const override;
  size_t scratch_bytes() const override { return ranks_.WorkspaceBytes(); }

  RowRanks ranks_;
  std::vector<KeptPlaces> places_;   // per model
  uint64_t entries_ = 0, kept_ = 0;
};

}  // namespace braid
