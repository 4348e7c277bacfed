// Methods whose result is one linear combination of the sources, once their norms and inner products are known: slerp
// and its kin.
//
// One round sums the products of every two sources over the tensor (their Gram matrix). Solve turns it into one
// coefficient per source, and the merge writes sum c_i x_i. Where the tensor has a base, x_i - base stands for x_i, the
// c_i are multiplied by lambda if the method has one, and the base is added. By rows, a row's products are summed and
// its elements written while it is at hand, without a round.
//
// All of it is float64, unlike the element-wise methods: coefficients may be large and of opposite signs, and rounding
// them, each product and each sum to float32 would be off by 4 units in the last place of the largest term with two
// sources, and by more with more. Here the result is rounded once, to the output type (EncodeLanes, LaneRounding).
//
// Sums: see kReductionBlock; of rows, blocks are counted from the start of the row. NaN or infinity in a source makes
// its products, and with them the tensor (the row), NaN.
#pragma once

#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "ops/mergers_internal.h"

namespace braid {

// Inner products of those sources that take part and are there.
struct Gram {
  std::span<const size_t> models;     // their places in the recipe, ascending
  std::span<const double> products;   // of sources i and j: [i * size() + j]

  size_t size() const { return models.size(); }
  double Product(size_t i, size_t j) const { return products[i * size() + j]; }
  double Norm(size_t i) const { return std::sqrt(Product(i, i)); }
};

// x y / (|x| |y|) from the three products, cut off at -1 and 1; exact for y = x and y = -x.
double Cosine(double xx, double yy, double xy);

// What slerp multiplies two vectors with that have this cosine: sin((1-t) theta) / sin theta, sin(t theta) / sin theta.
std::pair<double, double> SphericalShares(double cosine, double t);
inline std::pair<double, double> LinearShares(double t) { return {1 - t, t}; }

// What a method multiplies task vectors by: its parameter lambda; 1 where it has none, or the tile has no base.
class LambdaOfBase {
 public:
  explicit LambdaOfBase(const MethodInfo& method) : index_(method.IndexOf("lambda")) {}
  double Of(const Coefficients& c, const LaneTile& tile) const {
    return index_ < 0 || tile.base.bytes == nullptr ? 1 : c.shared[static_cast<size_t>(index_)];
  }

 private:
  int index_;   // -1: the method has none
};

class GramMerger : public Merger {
 public:
  size_t statistics_rounds() const override { return by_rows_ || sources_.size() < 2 ? 0 : 1; }
  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t model, const Coefficients& c) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;

 protected:
  // `sources`: the models that take part, ascending. The others are not read. `alone`: the coefficient where there is
  // only one.
  GramMerger(const MethodInfo& method, std::vector<size_t> sources, bool by_rows, double alone = 1);

  // Of two sources or more. `shares`: the coefficient per source, 0 at first. Throws NoMerge.
  // Called for each row of a method by rows, which must not allocate then.
  virtual void Solve(const Gram& gram, std::span<double> shares) const = 0;

 private:
  void FindShares(const Gram& gram, std::span<double> shares) const;
  void AddProductsOf(const LaneTile& tile, size_t start, size_t count, Scratch& scratch) const;
  void MergeRow(const LaneTile& tile, size_t start, size_t count, Scratch& scratch, DType type, std::byte* out,
                double lambda, MergeCounts* counts) const;

  LambdaOfBase lambda_;
  std::vector<size_t> sources_;
  bool by_rows_;
  double alone_;
  bool solved_ = false;   // by Finish; a source alone needs none
  std::vector<size_t> models_;   // those that are there
  std::vector<double> shares_;
};

// x_i, or x_i - base, of lanes start .. start + n for the models that `wanted` names, in scratch.wide.
template <typename Wanted>
void WidenBlock(const LaneTile& tile, bool relative, size_t start, size_t n, Scratch& scratch, Wanted wanted) {
  if (relative) DecodeLanesAt(tile.base, start, n, scratch.base);
  for (size_t m = 0; m < tile.models.size(); ++m) {
    if (tile.models[m].bytes == nullptr || !wanted(m)) continue;
    DecodeLanesAt(tile.models[m], start, n, scratch.models[m]);
    WidenLanes(scratch.models[m], relative ? scratch.base : nullptr, n, scratch.wide[m]);
  }
}

// EncodeLanes rounds on to types narrower than float32.
inline LaneRounding RoundingFor(DType type) {
  return type == DType::kBF16 || type == DType::kF16 ? LaneRounding::kOdd : LaneRounding::kNearest;
}

// The models with a weight other than 0.
std::vector<size_t> ModelsWithWeight(const MethodInfo& method, const Coefficients& c);
std::vector<size_t> AllModels(const Coefficients& c);

}  // namespace braid
