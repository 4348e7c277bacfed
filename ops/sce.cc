// sce: select the elements that vary most across models, weigh models by the energy of what was selected, erase the
// minority of signs. methods.md, row of that name.
//
// Rounds: the threshold of the variances (unless all are kept) by two histograms, or by a sample and one look at what
// lies near it; sums of squares of the selected entries for the weights; the merge. Elements equal to the threshold are
// kept by index: they are handed out for the sums, and the merge knows where that ended.
#include <cmath>
#include <utility>

#include "ops/delta_blocks.h"
#include "ops/magnitude_selection.h"
#include "ops/sce_kernels.h"
#include "ops/task_vector_statistics.h"

namespace braid {
namespace {

constexpr double kLeastEnergy = 1e-6;    // of all weights together; below it they are equal

enum Parameter : size_t { kLambda, kSelect, kInt8Mask };

bool EndsReductionBlock(const DeltaBlock& block, const LaneTile& tile) {
  const size_t end = block.start + block.n;
  return end % kReductionBlock == 0 || end == tile.count;
}

// The index behind the last element that was granted.
class GrantedEnd : public Accumulator {
 public:
  uint64_t index = 0;
  void Add(Accumulator* other) override { index = std::max(index, static_cast<GrantedEnd&>(*other).index); }
};

class SceMerger : public Merger {
 public:
  SceMerger(const Coefficients& c, uint64_t elements, Approach approach)
      : share_(c.shared[kSelect]), elements_(elements), kept_(share_ > 0 ? elements : 0), weights_(c.model.size()) {
    if (selects()) steps_ = {Step::kHighHalves, Step::kLowHalves};
    if (selects() && approach == Approach::kSampled) steps_ = {Step::kSample, Step::kInside};
    if (share_ > 0) steps_.push_back(Step::kEnergy);
    steps_.push_back(Step::kMerge);
  }

  size_t statistics_rounds() const override { return steps_.size() - 1; }
  RoundSpec round(size_t r) const override;
  // Also when no variance is above zero: what a NaN does must not depend on how often a tile is read.
  bool Reads(size_t, size_t, const Coefficients&) const override { return share_ > 0; }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  // Elements are selected for all models at once.
  uint64_t Quota(size_t model) const override { return model == 0 ? quota_ : kNoQuota; }
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;

  uint64_t entries() const override { return elements_; }
  uint64_t kept() const override { return kept_; }

 private:
  enum class Step { kSample, kInside, kHighHalves, kLowHalves, kEnergy, kMerge };
  bool selects() const { return share_ > 0 && share_ < 1; }
  bool hands_out() const { return quota_ != kNoQuota; }

  // Many variances differ, so that wide brackets need many bins; a large tensor can afford them.
  size_t MostBins() const { return elements_ < uint64_t{1} << 24 ? InsideBins::kBins : 4 * InsideBins::kBins; }

  void CountVariances(Step step, const LaneTile& tile, Scratch& scratch, Accumulator& accumulator,
                      BlockSums sums) const;
  void FinishSample(const PlaceSample& sample);
  void FinishInside(const InsideBins& inside);
  void UseThreshold(const Threshold& threshold);
  uint64_t EndOfGranted(const float* variances, size_t n, uint64_t first, uint64_t* left) const;
  static void Select(const DeltaBlock& block, const float* variances, const Cut& cut, uint64_t first);
  void AddEnergy(const LaneTile& tile, const uint64_t* grants, Scratch& scratch, GrantedEnd* granted,
                 BlockSums sums) const;
  void FinishEnergy(std::span<const double> sums);

  double share_;
  uint64_t elements_, kept_;
  std::vector<Step> steps_;
  Bracket bracket_;
  CriticalBin bin_;
  Cut cut_{.key = kNanKey, .index = 0};   // where the elements that are selected end, by their variances
  uint64_t quota_ = kNoQuota;             // or: of those equal to cut_.key only so many are, by index
  bool uniform_ = true;
  std::vector<float> weights_;
};

RoundSpec SceMerger::round(size_t r) const {
  switch (steps_[r]) {
    case Step::kSample: return {.name = "sample", .accumulator_bytes = kSampleLanes * sizeof(uint64_t), .sample = true};
    case Step::kInside: return {.name = "inside", .accumulator_bytes = InsideBins::Bytes(MostBins()), .sums = 1};
    case Step::kHighHalves:
      return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(1, kHighBins, elements_), .sums = 1};
    case Step::kLowHalves:
      return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(1, kLowBins, elements_)};
    case Step::kEnergy:
      return {.name = "energy", .accumulator_bytes = hands_out() ? sizeof(GrantedEnd) : 0, .sums = weights_.size(),
              .ordered = hands_out()};
    case Step::kMerge: break;
  }
  return {.name = "merge"};
}

std::unique_ptr<Accumulator> SceMerger::NewAccumulator(size_t r) const {
  switch (steps_[r]) {
    case Step::kSample: return std::make_unique<SampleKeys>(1);
    case Step::kInside: {
      auto counts = std::make_unique<InsideCounts>();
      counts->slots.emplace_back(bracket_, MostBins());
      return counts;
    }
    case Step::kHighHalves: return std::make_unique<Histograms>(1, kHighBins);
    case Step::kLowHalves: return std::make_unique<Histograms>(1, kLowBins);
    case Step::kEnergy:
      if (hands_out()) return std::make_unique<GrantedEnd>();
      return nullptr;
    case Step::kMerge: break;
  }
  return nullptr;
}

void SceMerger::Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t* grants,
                           Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  if (steps_[r] == Step::kEnergy) return AddEnergy(tile, grants, scratch, static_cast<GrantedEnd*>(accumulator), sums);
  CountVariances(steps_[r], tile, scratch, *accumulator, sums);
}

// A sample's tile is one run of it.
void SceMerger::CountVariances(Step step, const LaneTile& tile, Scratch& scratch, Accumulator& accumulator,
                               BlockSums sums) const {
  if (step == Step::kHighHalves || step == Step::kLowHalves)
    static_cast<Histograms&>(accumulator).WillCount(tile.count);
  float variances[kBlockLanes + kLanePadding];
  uint64_t above_zero = 0;
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    Variances(block.d.data(), block.d.size(), block.n, variances);
    switch (step) {
      case Step::kSample: return AddRun(variances, block.n, 0, false, &static_cast<SampleKeys&>(accumulator).slots[0]);
      case Step::kInside: static_cast<InsideCounts&>(accumulator).slots[0].Count(variances, block.n); break;
      case Step::kHighHalves: CountHighHalves(variances, block.n, static_cast<Histograms&>(accumulator).Row(0)); break;
      default: return CountLowHalves(variances, block.n, bin_.high, static_cast<Histograms&>(accumulator).Row(0));
    }
    above_zero += block.n - CountKey(variances, block.n, 0);
    if (EndsReductionBlock(block, tile))
      sums.data[(tile.first + block.start) / kReductionBlock] = static_cast<double>(std::exchange(above_zero, 0));
  });
}

void SceMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  const Step step = steps_[r];
  if (step == Step::kInside || step == Step::kHighHalves)
    kept_ = static_cast<uint64_t>(share_ * sums[0]);   // of the variances that are not zero
  switch (step) {
    case Step::kSample: return FinishSample(static_cast<SampleKeys&>(*accumulator).slots[0]);
    case Step::kInside: return FinishInside(static_cast<InsideCounts&>(*accumulator).slots[0]);
    case Step::kHighHalves:
      if (kept_ > 0) bin_ = FindCriticalBin(static_cast<Histograms&>(*accumulator).Totals(0).data(), kept_);
      return;
    case Step::kLowHalves:
      if (kept_ > 0) UseThreshold(FindThreshold(bin_, static_cast<Histograms&>(*accumulator).Totals(0).data(), kept_));
      return;
    case Step::kEnergy:
      if (hands_out()) cut_.index = static_cast<GrantedEnd&>(*accumulator).index, quota_ = kNoQuota;
      return FinishEnergy(sums);
    case Step::kMerge: return;
  }
}

// The share is of the variances that are not zero, in the sample, too.
void SceMerger::FinishSample(const PlaceSample& sample) {
  const auto is_zero = [](uint64_t place) { return KeyAt(place) == 0; };
  const auto zeros = std::count_if(sample.places.begin(), sample.places.end(), is_zero);
  const uint64_t size = sample.places.size(), above_zero = size - static_cast<uint64_t>(zeros);
  const auto kept = static_cast<uint64_t>(share_ * static_cast<double>(above_zero));
  if (const auto bracket = BracketOf(sample, kept, size, false)) bracket_ = *bracket;
  else steps_ = {Step::kSample, Step::kHighHalves, Step::kLowHalves, Step::kEnergy, Step::kMerge};
}

void SceMerger::FinishInside(const InsideBins& inside) {
  if (kept_ == 0) return;
  const InsideBins::Found found = inside.Find(kept_);
  if (found.threshold) return UseThreshold(*found.threshold);
  steps_ = {Step::kSample, Step::kInside};
  if (found.narrower) bracket_ = *found.narrower, steps_.push_back(Step::kInside);
  else steps_.insert(steps_.end(), {Step::kHighHalves, Step::kLowHalves});
  steps_.insert(steps_.end(), {Step::kEnergy, Step::kMerge});
}

void SceMerger::UseThreshold(const Threshold& threshold) {
  cut_ = {.key = threshold.key, .index = UINT64_MAX};
  if (threshold.above + threshold.equal > kept_) quota_ = kept_ - threshold.above;
}

void SceMerger::CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const {
  float variances[kBlockLanes + kLanePadding];
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    Variances(block.d.data(), block.d.size(), block.n, variances);
    claims[0] += CountKey(variances, block.n, cut_.key);
  });
}

// Where the elements of a block that equal the threshold are no longer selected, when so many are still granted; blocks
// come in order.
uint64_t SceMerger::EndOfGranted(const float* variances, size_t n, uint64_t first, uint64_t* left) const {
  if (*left == 0) return 0;
  const uint64_t equal = CountKey(variances, n, cut_.key);
  if (equal <= *left) {
    *left -= equal;
    return first + n;
  }
  for (size_t i = 0;; ++i)
    if (CountKey(variances + i, 1, cut_.key) != 0 && --*left == 0) return first + i + 1;
}

// Clears the entries of elements that are not selected.
void SceMerger::Select(const DeltaBlock& block, const float* variances, const Cut& cut, uint64_t first) {
  const size_t before = cut.index <= first ? 0 : std::min<uint64_t>(cut.index - first, block.n);
  for (float* d : block.d) {
    KeepVariances(variances, cut.key, before, d);
    KeepVariances(variances + before, cut.key + 1, block.n - before, d + before);
  }
}

void SceMerger::AddEnergy(const LaneTile& tile, const uint64_t* grants, Scratch& scratch, GrantedEnd* granted,
                          BlockSums sums) const {
  float variances[kBlockLanes + kLanePadding];
  uint64_t left = granted == nullptr ? 0 : grants[0];
  Cut cut = cut_;
  scratch.sums.assign(weights_.size() * kSumLanes, 0.0);
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    if (selects()) {
      const uint64_t first = tile.first + block.start;
      Variances(block.d.data(), block.d.size(), block.n, variances);
      if (granted != nullptr) {
        cut.index = EndOfGranted(variances, block.n, first, &left);
        granted->index = std::max(granted->index, cut.index);
      }
      Select(block, variances, cut, first);
    }
    for (size_t v = 0; v < block.d.size(); ++v)
      AddSquares(block.d[v], block.n, &scratch.sums[block.models[v] * kSumLanes]);
    if (!EndsReductionBlock(block, tile)) return;
    const size_t at = (tile.first + block.start) / kReductionBlock;
    for (size_t m = 0; m < weights_.size(); ++m)
      sums.data[m * sums.stride + at] = FoldSums(&scratch.sums[m * kSumLanes]);
    std::fill(scratch.sums.begin(), scratch.sums.end(), 0.0);
  });
}

void SceMerger::FinishEnergy(std::span<const double> sums) {
  double all = 0;
  for (size_t m = 0; m < weights_.size(); ++m) all += sums[m] / static_cast<double>(elements_);
  uniform_ = std::fabs(all) < kLeastEnergy;
  for (size_t m = 0; !uniform_ && m < weights_.size(); ++m)
    weights_[m] = static_cast<float>(sums[m] / static_cast<double>(elements_) / all);
}

void SceMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
                      std::byte* out, MergeCounts* counts) const {
  const auto lambda = static_cast<float>(c.shared[kLambda]);
  const auto is_there = [](const EncodedLanes& model) { return model.bytes != nullptr; };
  const auto there = std::count_if(tile.models.begin(), tile.models.end(), is_there);
  scratch.weights.clear();
  for (size_t m = 0; m < weights_.size(); ++m)
    if (is_there(tile.models[m])) scratch.weights.push_back(uniform_ ? 1.0f / static_cast<float>(there) : weights_[m]);
  float variances[kBlockLanes + kLanePadding];
  MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
    if (selects()) {
      Variances(block.d.data(), block.d.size(), block.n, variances);
      Select(block, variances, cut_, tile.first + block.start);
    }
    counts->conflicts += MergeAgreeing(block.d.data(), scratch.weights.data(), block.d.size(), block.n, block.merged);
  });
}

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients& c, const TensorFacts& scope, Approach approach) {
  return std::make_unique<SceMerger>(c, scope.elements, approach);
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
