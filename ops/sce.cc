// sce: select the elements that vary most across models, weigh models by the energy of what was selected, erase the
// minority of signs. methods.md, row of that name.
//
// Rounds: two histograms of the variances for the threshold (unless all are kept), sums of squares of the selected
// entries for the weights, the merge. Elements equal to the threshold are kept by index.
#include <cmath>
#include <utility>

#include "ops/delta_blocks.h"
#include "ops/magnitude_selection.h"
#include "ops/task_vector_statistics.h"

namespace braid {
namespace {

constexpr double kLeastEnergy = 1e-6;    // of all weights together; below it they are equal
constexpr float kLeastDivisor = 1e-6f;

enum Parameter : size_t { kLambda, kSelect, kInt8Mask };

// The biased variance of each element across models, in float64, rounded once.
void Variances(const DeltaBlock& block, float* variances) {
  double mean[kBlockLanes], sum[kBlockLanes];
  std::fill_n(mean, block.n, 0.0);
  std::fill_n(sum, block.n, 0.0);
  const auto models = static_cast<double>(std::max<size_t>(block.d.size(), 1));
  for (const float* d : block.d)
    for (size_t i = 0; i < block.n; ++i) mean[i] += static_cast<double>(d[i]);
  for (size_t i = 0; i < block.n; ++i) mean[i] /= models;
  for (const float* d : block.d) {
    for (size_t i = 0; i < block.n; ++i) {
      const double deviation = static_cast<double>(d[i]) - mean[i];
      sum[i] += deviation * deviation;
    }
  }
  for (size_t i = 0; i < block.n; ++i) variances[i] = static_cast<float>(sum[i] / models);
}

// sums[i % 16] += d[i]^2; blocks begin at multiples of 16.
void AddSquares(const float* d, size_t n, double* sums) {
  const size_t whole = n / kSumLanes * kSumLanes;
  for (size_t i = 0; i < whole; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) sums[j] += static_cast<double>(d[i + j]) * static_cast<double>(d[i + j]);
  for (size_t i = whole; i < n; ++i) sums[i - whole] += static_cast<double>(d[i]) * static_cast<double>(d[i]);
}

// Elects signs by the sum of entries and merges those that agree; returns at how many elements some did not.
uint64_t ElectAndMerge(const DeltaBlock& block, const float* weights) {
  float flip[kBlockLanes], divisor[kBlockLanes];   // flip: 1 where plus is elected, -1 where minus is
  uint32_t conflict[kBlockLanes];
  std::fill_n(flip, block.n, 0.0f);
  for (const float* d : block.d)
    for (size_t i = 0; i < block.n; ++i) flip[i] += d[i];
  for (size_t i = 0; i < block.n; ++i) flip[i] = flip[i] >= 0 ? 1.0f : -1.0f;
  std::fill_n(block.merged, block.n, 0.0f);
  std::fill_n(divisor, block.n, 0.0f);
  std::fill_n(conflict, block.n, 0);
  for (size_t v = 0; v < block.d.size(); ++v) {
    const float* const d = block.d[v];
    const float weight = weights[block.models[v]];
    for (size_t i = 0; i < block.n; ++i) {
      const float toward = d[i] * flip[i], weighted = d[i] * weight;
      block.merged[i] += toward > 0 ? weighted : 0.0f;
      divisor[i] += toward > 0 ? weight : 0.0f;
      conflict[i] |= toward < 0 ? 1 : 0;
    }
  }
  uint32_t conflicts = 0;
  for (size_t i = 0; i < block.n; ++i) conflicts += conflict[i];
  for (size_t i = 0; i < block.n; ++i) block.merged[i] /= std::max(divisor[i], kLeastDivisor);
  return conflicts;
}

bool EndsReductionBlock(const DeltaBlock& block, const LaneTile& tile) {
  const size_t end = block.start + block.n;
  return end % kReductionBlock == 0 || end == tile.count;
}

class SceMerger : public Merger {
 public:
  SceMerger(const Coefficients& c, uint64_t elements)
      : share_(c.shared[kSelect]), elements_(elements), kept_(share_ > 0 ? elements : 0), weights_(c.model.size()) {
    if (share_ > 0 && share_ < 1) steps_ = {Step::kHighHalves, Step::kLowHalves};
    if (share_ > 0) steps_.push_back(Step::kEnergy);
    steps_.push_back(Step::kMerge);
    if (!selects()) least_ = 0;
  }

  size_t statistics_rounds() const override { return steps_.size() - 1; }
  RoundSpec round(size_t r) const override {
    switch (steps_[r]) {
      case Step::kHighHalves:
        return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(1, kHighBins, elements_), .sums = 1};
      case Step::kLowHalves:
        return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(1, kLowBins, elements_)};
      case Step::kEnergy: return {.name = "energy", .sums = weights_.size(), .ordered = selects()};
      case Step::kMerge: break;
    }
    return {.name = "merge", .ordered = selects()};
  }
  // Also when no variance is above zero: what a NaN does must not depend on how often a tile is read.
  bool Reads(size_t, size_t, const Coefficients&) const override { return share_ > 0; }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override {
    if (steps_[r] == Step::kEnergy) return nullptr;
    return std::make_unique<Histograms>(1, steps_[r] == Step::kHighHalves ? kHighBins : kLowBins);
  }
  void Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override {
    if (steps_[r] == Step::kEnergy) return AddEnergy(tile, grants, scratch, sums);
    auto& histograms = static_cast<Histograms&>(*accumulator);
    histograms.WillCount(tile.count);
    float variances[kBlockLanes + kLanePadding];
    uint64_t above_zero = 0;
    ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
      Variances(block, variances);
      if (steps_[r] == Step::kLowHalves) return CountLowHalves(variances, block.n, bin_.high, histograms.Row(0));
      CountHighHalves(variances, block.n, histograms.Row(0));
      above_zero += block.n - CountKey(variances, block.n, 0);
      if (EndsReductionBlock(block, tile))
        sums.data[(tile.first + block.start) / kReductionBlock] = static_cast<double>(std::exchange(above_zero, 0));
    });
  }
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override {
    if (steps_[r] == Step::kEnergy) return FinishEnergy(sums);
    const std::vector<uint64_t> bins = static_cast<Histograms&>(*accumulator).Totals(0);
    if (steps_[r] == Step::kHighHalves) {
      kept_ = static_cast<uint64_t>(share_ * sums[0]);   // of the variances that are not zero
      if (kept_ > 0) bin_ = FindCriticalBin(bins.data(), kept_);
    } else if (kept_ > 0) {
      const Threshold threshold = FindThreshold(bin_, bins.data(), kept_);
      least_ = threshold.key + 1;
      if (threshold.above + threshold.equal == kept_) least_ = threshold.key;
      else equal_ = threshold.key, quota_ = kept_ - threshold.above;
    }
  }

  void CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override {
    if (quota_ == kNoQuota) return;
    float variances[kBlockLanes + kLanePadding];
    ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
      Variances(block, variances);
      claims[0] += CountKey(variances, block.n, equal_);
    });
  }
  // Elements are selected for all models at once.
  uint64_t Quota(size_t model) const override { return model == 0 ? quota_ : kNoQuota; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    uint64_t left = quota_ == kNoQuota ? 0 : grants[0];
    const auto lambda = static_cast<float>(c.shared[kLambda]);
    const auto is_there = [](const EncodedLanes& model) { return model.bytes != nullptr; };
    const auto there = std::count_if(tile.models.begin(), tile.models.end(), is_there);
    scratch.weights.assign(weights_.begin(), weights_.end());
    if (uniform_) scratch.weights.assign(weights_.size(), 1.0f / static_cast<float>(there));
    MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
      Select(block, &left);
      counts->conflicts += ElectAndMerge(block, scratch.weights.data());
    });
  }

  uint64_t entries() const override { return elements_; }
  uint64_t kept() const override { return kept_; }

 private:
  enum class Step { kHighHalves, kLowHalves, kEnergy, kMerge };
  bool selects() const { return steps_.size() > 2; }

  // Clears the entries of elements that are not selected. `left`: how many equal to the threshold are still granted;
  // blocks come in order.
  void Select(const DeltaBlock& block, uint64_t* left) const {
    if (least_ == 0 || block.d.empty()) return;
    float variances[kBlockLanes + kLanePadding];
    uint32_t keys[kBlockLanes];
    Variances(block, variances);
    StoreKeys(variances, block.n, keys);
    for (size_t i = 0; *left > 0 && i < block.n; ++i)
      if (keys[i] == equal_) keys[i] = UINT32_MAX, --*left;
    for (float* d : block.d)
      for (size_t i = 0; i < block.n; ++i) d[i] = keys[i] >= least_ ? d[i] : 0.0f;
  }

  void AddEnergy(const LaneTile& tile, const uint64_t* grants, Scratch& scratch, BlockSums sums) const {
    uint64_t left = quota_ == kNoQuota ? 0 : grants[0];
    scratch.sums.assign(weights_.size() * kSumLanes, 0.0);
    ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
      Select(block, &left);
      for (size_t v = 0; v < block.d.size(); ++v)
        AddSquares(block.d[v], block.n, &scratch.sums[block.models[v] * kSumLanes]);
      if (!EndsReductionBlock(block, tile)) return;
      const size_t at = (tile.first + block.start) / kReductionBlock;
      for (size_t m = 0; m < weights_.size(); ++m)
        sums.data[m * sums.stride + at] = FoldSums(&scratch.sums[m * kSumLanes]);
      std::fill(scratch.sums.begin(), scratch.sums.end(), 0.0);
    });
  }

  void FinishEnergy(std::span<const double> sums) {
    double all = 0;
    for (size_t m = 0; m < weights_.size(); ++m) all += sums[m] / static_cast<double>(elements_);
    uniform_ = std::fabs(all) < kLeastEnergy;
    for (size_t m = 0; !uniform_ && m < weights_.size(); ++m)
      weights_[m] = static_cast<float>(sums[m] / static_cast<double>(elements_) / all);
  }

  double share_;
  uint64_t elements_, kept_;
  std::vector<Step> steps_;
  CriticalBin bin_;
  uint32_t least_ = UINT32_MAX;    // elements whose variance has at least this key are selected,
  uint32_t equal_ = 0;             // and, with a quota, so many of those with this one, by index
  uint64_t quota_ = kNoQuota;
  bool uniform_ = true;
  std::vector<float> weights_;
};

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients& c, const TensorFacts& scope, Approach) {
  return std::make_unique<SceMerger>(c, scope.elements);
}

}  // namespace

MethodInfo Sce() {
  return {.name = "sce",
          .summary = "merge the elements that vary most, models weighted by how much they change there",
          .source = "Wan et al., FuseChat, 2024, arXiv 2408.07990 (select, calculate, erase)",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter(),
                         {.name = "select_topk", .default_value = 1, .min = 0, .max = 1,
                          .help = "share of the elements that differ between models to keep, by variance"},
                         Int8MaskParameter()},
          .make = Make};
}

}  // namespace braid
