// Generalized task arithmetic with entries taken out of the task vectors: methods.md, "GTA". What dare, breadcrumbs and
// della share: how their task vectors are rescaled and merged. Which entries stay is for each of them to say.
//
// Lanes go through a method's Keep into scratch and from there, as task vectors of a base of zeros, through the kernels
// of ties and task_arithmetic; so the steps are those of mergekit: d x factor, x weight, sum, / divisor, x lambda, +
// base.
#pragma once

#include <vector>

#include "ops/task_vector_rule.h"

namespace braid {

// Lanes of a tile that are prepared together: all of them, or whole rows, about a block of them or one.
struct LaneUnit {
  size_t start = 0, count = 0;
};

class SparseMerger : public Merger {
 public:
  // `by_rows`: tiles and units are whole rows, of which `scope` says how long they are.
  SparseMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope, bool by_rows);

  size_t statistics_rounds() const override { return selection_rounds_ + (norms_ ? 1 : 0); }
  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t model, const Coefficients& c) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;
  uint64_t DecisionBytes() const override;
  void KeepDecisions() override;

 protected:
  // Before Keep is called for the lanes of a unit: what it needs to know of all of them, for the models that are in the
  // tile and sparse(). May use scratch.base and the lanes of models.
  virtual void Prepare(const LaneTile&, const uint64_t* /*grants*/, const LaneUnit&, Scratch&) const {}
  // Sets those of d to 0 that go: of a model that is sparse(), lanes start .. start + n of the tile, in this unit.
  // Lanes behind them are padding.
  virtual void Keep(const LaneTile& tile, size_t model, const LaneUnit& unit, size_t start, size_t n, Scratch& scratch,
                    float* d) const = 0;
  // Of the rounds that call Keep.
  virtual bool ordered() const { return false; }
  virtual size_t scratch_bytes() const { return 0; }

  size_t models() const { return parts_.size(); }
  // Whether the model takes part, and whether entries of it may go.
  bool active(size_t m) const { return parts_[m].active; }
  bool sparse(size_t m) const { return parts_[m].active && parts_[m].density < 1; }
  double density(size_t m) const { return parts_[m].density; }
  // Rescaling by a known factor instead of norms, or not at all (1).
  void UseFactor(size_t m, double factor) { parts_[m].factor = static_cast<float>(factor); }
  bool rescale() const { return rescale_; }

  // A block whose lanes are task vectors, those of scratch.models; no tile: of all models with a weight.
  TaskVectorBlock BlockOf(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const;
  // Merges n lanes of it to elements of `type`; the base's are in scratch.base.
  void MergeLanes(const TaskVectorBlock& block, size_t n, Scratch& scratch, DType type, std::byte* out,
                  VoteCounts* votes, NonFinite* non_finite) const;

  size_t selection_rounds_ = 0;   // a method's own, before the norms
  bool norms_ = false;            // l1 norms are to be found out

  // The lanes of unit after unit.
  template <typename Visit>
  void ForEachUnit(const LaneTile& tile, Visit visit) const {
    const size_t size = by_rows_ ? UnitLanes() : tile.count;
    for (size_t at = 0; at < tile.count; at += size) visit(LaneUnit{at, std::min(size, tile.count - at)});
  }
  // Of a method by rows, at most.
  size_t UnitLanes() const { return std::max<size_t>(kBlockLanes / row_, 1) * row_; }
  size_t row() const { return row_; }

 private:
  struct Part {
    double density = 1;
    bool active = false;   // has a weight
    float factor = 1;
    size_t slot = 0;       // among the models that are sparse
  };

  uint64_t WordsPerModel() const { return (elements_ + 63) / 64; }
  uint64_t* DecisionsAt(size_t m, uint64_t element) const {
    return &decisions_[parts_[m].slot * WordsPerModel() + element / 64];
  }
  void SumNorms(const LaneTile& tile, size_t model, const LaneUnit& unit, Scratch& scratch, BlockSums sums) const;

  TaskVectorRule rule_;
  std::vector<Part> parts_;
  uint64_t elements_;
  size_t row_, sparse_models_ = 0;
  bool by_rows_, rescale_;
  // A bit per entry of a model that is sparse, set where it stays; tiles begin with words of their own. Null: not kept.
  std::unique_ptr<uint64_t[]> decisions_;
};

}  // namespace braid
