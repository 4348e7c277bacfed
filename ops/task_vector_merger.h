// ties and task_arithmetic: methods.md, "GTA" and the rows of that name; mergekit calls the family generalized
// task arithmetic. Task vectors d = x - base are trimmed to their largest magnitudes, weighted, and either added
// up or, with an election of signs, merged where they agree.
//
// task_vector_statistics.cc finds the thresholds, task_vector_draft.cc merges before they are known.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/magnitude_selection.h"
#include "ops/task_vector_rule.h"

namespace braid {

class Histograms;
class InsideCounts;
class InsideKeys;
class SampleKeys;

class TaskVectorMerger : public Merger {
 public:
  TaskVectorMerger(const MethodInfo& method, const Coefficients& c, uint64_t elements, Approach approach);

  size_t statistics_rounds() const override { return steps_.size() - 1; }
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
  ModelStatistics Statistics(size_t model) const override;
  std::vector<BinCount> TakeHighHalves(size_t model) override { return std::exchange(trims_[model].high_halves, {}); }
  void UseStatistics(std::span<const ModelStatistics> known) override;
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  uint64_t Quota(size_t model) const override { return trims_[model].quota; }
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;
  uint64_t entries() const override { return elements_ * active_; }
  uint64_t kept() const override;

 private:
  enum class Step { kSample, kNarrow, kInside, kHighHalves, kLowHalves, kDraft, kSigns, kMerge };

  // How one model's task vector is trimmed, and what is known of it so far.
  struct Trim {
    uint64_t keep = 0;          // entries that stay
    uint64_t asked = 0;         // by the density; 0: nothing to select (all stay, or none)
    int slot = -1;              // row of the statistics; -1: nothing to select, or its threshold was known
    bool found = false;         // the threshold
    bool all_zero = false;      // no entry is above zero
    bool bin_known = false;     // before the first round
    Cut cut;                    // where the entries that stay end
    uint64_t quota = kNoQuota;  // or: of those equal to cut.key only so many stay, by index
    Bracket bracket{.sure = {kNanKey, 0}, .open = {0, 0}};   // all that is not zero is open
    CriticalBin bin;
    std::vector<BinCount> high_halves;   // when they are kept
    double norm = 0, kept_norm = 0;
    float factor = 1;           // rescale
  };

  double Shared(const Coefficients& c, int index, double otherwise) const {
    return index < 0 ? otherwise : c.shared[static_cast<size_t>(index)];
  }
  double WeightOf(const Coefficients& c, size_t m) const { return rule_.WeightOf(c, m); }

  void ChooseSteps();

  // Statistics.
  void TakeSample(const LaneTile& tile, Scratch& scratch, SampleKeys& sample) const;
  void FinishSample(const SampleKeys& sample);
  void TakeInside(const LaneTile& tile, Scratch& scratch, InsideKeys& inside) const;
  void FinishNarrow(const InsideKeys& inside);
  void CountInside(const LaneTile& tile, Scratch& scratch, InsideCounts& counts) const;
  void FinishInside(const InsideCounts& counts);
  void CountHalves(bool low, const LaneTile& tile, Scratch& scratch, Histograms& histograms, BlockSums sums) const;
  void FinishHigh(const Histograms& histograms, std::span<const double> sums);
  void FinishLow(const Histograms& histograms, std::span<const double> sums);
  uint64_t UseThreshold(const Threshold& threshold, Trim* trim) const;
  void FallBackAfter(Step step);

  // Drafts.
  bool PutAside(const LaneTile& tile, size_t start, size_t n, DType from, const uint64_t* words,
                const Scratch& scratch, OpenElements* open) const;

  // Merging.
  void DecodeBlock(const LaneTile& tile, size_t start, size_t n, Scratch& scratch) const;
  TaskVectorBlock BlockFor(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const;
  void UseEncoded(const LaneTile& tile, size_t start, Scratch& scratch, TaskVectorBlock* block) const;
  void UseLanes(Scratch& scratch, TaskVectorBlock* block) const;
  DType CommonType(const LaneTile& tile, const Scratch& scratch) const;
  bool KeepsBase(const LaneTile& tile, size_t start, size_t n, DType from, DType to, const Scratch& scratch,
                 std::byte* out) const;
  void FindCuts(const LaneTile& tile, const uint64_t* grants, Scratch& scratch) const;
  template <typename Visit>
  void ForEachSegment(const LaneTile& tile, size_t start, size_t n, Scratch& scratch, Visit visit) const;

  TaskVectorRule rule_;
  int density_;
  bool rescale_, keep_equals_;
  bool signs_;                      // what a drawn vote elects is found in a round of its own
  bool zero_elects_minus_ = false;
  bool sampled_by_index_ = false;   // equal entries of the sample are told apart by their index
  bool ordered_possible_ = false;   // equals may have to be handed out by index
  bool keep_high_halves_ = false;
  Approach approach_;
  uint64_t elements_;
  uint64_t active_ = 0;             // models with a weight
  size_t slots_ = 0;
  std::vector<Trim> trims_;
  std::vector<Step> steps_;
};

// Splits a block where a model's cut lies in it, so that within a segment each model has one least key.
template <typename Visit>
void TaskVectorMerger::ForEachSegment(const LaneTile& tile, size_t start, size_t n, Scratch& scratch,
                                      Visit visit) const {
  for (size_t at = start, end; at < start + n; at = end) {
    end = start + n;
    for (size_t v = 0; v < scratch.voters.size(); ++v) {
      const Cut& cut = scratch.cuts[scratch.voters[v]];
      if (cut.index > tile.first + at && cut.index < tile.first + end) end = cut.index - tile.first;
      scratch.min_keys[v] = cut.MinKey(tile.first + at);
    }
    visit(at, end - at);
  }
}

// d = x - base for lanes start .. start + n of the tile, in the scratch lanes of model m.
const float* TaskVectorAt(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch);

// CollectKeys of these lanes, which are decoded only where no kernel takes them as they are.
size_t CollectKeysAt(const LaneTile& tile, size_t m, size_t start, size_t n, uint32_t low, uint32_t high,
                     Scratch& scratch, uint32_t* keys, uint32_t* places, uint64_t* above);

}  // namespace braid
