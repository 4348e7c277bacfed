// ties and task_arithmetic: methods.md, "GTA" and the rows of that name; mergekit calls the family generalized
// task arithmetic. Task vectors d = x - base are trimmed to their largest magnitudes, weighted, and either added
// up or, with an election of signs, merged where they agree.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "ops/bracket.h"
#include "ops/magnitude_selection.h"
#include "ops/mergers_internal.h"

namespace braid {
namespace {

constexpr double kLeastNorm = 1e-7;         // below it, rescale does nothing (mergekit sparsify.py)
constexpr float kLeastWeightSum = 1e-8f;    // below it, normalize does nothing (without an election)

enum class Step {
  kSample,      // a few thousand keys bracket the thresholds
  kCandidates,  // one pass collects what is inside; a miss adds the two passes below
  kHighHalves, kLowHalves,
  kSigns,
  kMerge,
};

constexpr uint64_t kLeastSampled = 1 << 18;   // elements; below it two passes cost less than a sample
constexpr uint64_t kSampleSpots = 256, kSpotLanes = 128;

// One histogram per model that needs selection. Workers count in 32 bits, half the memory of 64 and all that a tensor
// of fewer than 2^31 elements needs; with more, counts move to a second table of 64 bits before they could overflow.
class Histograms : public Accumulator {
 public:
  Histograms(size_t models, size_t bins) : bins_(bins), small_(models * bins) {}

  uint32_t* Row(size_t slot) { return &small_[slot * bins_]; }
  std::vector<uint64_t> Totals(size_t slot) const {
    std::vector<uint64_t> totals(small_.begin() + static_cast<ptrdiff_t>(slot * bins_),
                                 small_.begin() + static_cast<ptrdiff_t>((slot + 1) * bins_));
    if (!large_.empty())
      for (size_t i = 0; i < bins_; ++i) totals[i] += large_[slot * bins_ + i];
    return totals;
  }

  void Add(Accumulator* other) override {
    const auto& o = static_cast<const Histograms&>(*other);
    WillCount(o.counted_);
    for (size_t i = 0; i < small_.size(); ++i) small_[i] += o.small_[i];
    if (!o.large_.empty()) Widen();
    for (size_t i = 0; i < o.large_.size(); ++i) large_[i] += o.large_[i];
  }
  // Makes sure that so many more counts fit.
  void WillCount(uint64_t elements) {
    counted_ += elements;
    if (counted_ < kNarrow) return;
    Widen();
    for (size_t i = 0; i < small_.size(); ++i) large_[i] += std::exchange(small_[i], 0);
    counted_ = elements;
  }
  static size_t Bytes(size_t models, size_t bins, uint64_t elements) {
    return models * bins * (elements < kNarrow ? sizeof(uint32_t) : sizeof(uint32_t) + sizeof(uint64_t));
  }

 private:
  static constexpr uint64_t kNarrow = uint64_t{1} << 31;
  void Widen() { large_.resize(small_.size()); }

  size_t bins_;
  std::vector<uint32_t> small_;
  std::vector<uint64_t> large_;
  uint64_t counted_ = 0;   // at most this much in any entry of small_
};

class Sample : public Accumulator {
 public:
  explicit Sample(size_t models) : keys(models) {}
  std::vector<std::vector<uint32_t>> keys;   // per slot
  void Add(Accumulator* other) override {
    auto& o = static_cast<Sample&>(*other);
    for (size_t s = 0; s < keys.size(); ++s) keys[s].insert(keys[s].end(), o.keys[s].begin(), o.keys[s].end());
  }
};

class CandidateSet : public Accumulator {
 public:
  CandidateSet(size_t models, CandidatePool* pool) {
    for (size_t s = 0; s < models; ++s) slots.emplace_back(pool);
  }
  std::vector<Candidates> slots;
  void Add(Accumulator* other) override {
    for (size_t s = 0; s < slots.size(); ++s) slots[s].TakeOver(&static_cast<CandidateSet&>(*other).slots[s]);
  }
};

class SignSum : public Accumulator {
 public:
  VoteCounts votes;
  void Add(Accumulator* other) override { votes.sign_sum += static_cast<SignSum&>(*other).votes.sign_sum; }
};

// How one model's task vector is trimmed, and what is known of it so far.
struct Trim {
  uint64_t keep = 0;          // entries that stay
  int slot = -1;              // row of the histograms; -1: nothing to select (all stay, or none)
  CriticalBin bin;
  uint32_t key = 0;           // the threshold: larger keys stay, smaller ones go
  bool equals_stay = true;    // all entries equal to the threshold stay
  uint64_t quota = Merger::kNoQuota;  // otherwise only so many of them, by index
  std::optional<uint64_t> cut;        // or, when it is known already, those below this index
  Bracket bracket = {0, kNanKey};  // all keys
  double norm = 0, kept_norm = 0;
  float factor = 1;           // rescale
};

// d = x - base for lanes start .. start + n of the tile, in the scratch lanes of model m.
const float* TaskVectorAt(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch) {
  const EncodedLanes& source = tile.models[m];
  DecodeLanesAt(tile.base, start, n, scratch.base);
  DecodeTaskVector(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), scratch.base, n,
                   scratch.models[m]);
  return scratch.models[m];
}

class TaskVectorMerger : public Merger {
 public:
  TaskVectorMerger(const MethodInfo& method, const Coefficients& c, uint64_t elements, CandidatePool* pool);

  size_t statistics_rounds() const override { return steps_.size() - 1; }
  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t model, const Coefficients& c) const override;
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  uint64_t Quota(size_t model) const override { return trims_[model].quota; }
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;
  uint64_t entries() const override { return elements_ * active_; }
  uint64_t kept() const override;

 private:
  double Shared(const Coefficients& c, int index, double otherwise) const {
    return index < 0 ? otherwise : c.shared[static_cast<size_t>(index)];
  }
  double WeightOf(const Coefficients& c, size_t m) const { return c.model[m][static_cast<size_t>(weight_)]; }

  void TakeSample(const LaneTile& tile, Scratch& scratch, Sample& sample) const;
  void CollectCandidates(const LaneTile& tile, Scratch& scratch, CandidateSet& set) const;
  void FinishSample(Sample& sample);
  void FinishCandidates(const CandidateSet& set);
  void CountHalves(bool low, const LaneTile& tile, Scratch& scratch, Histograms& histograms, BlockSums sums) const;
  void FinishHigh(const Histograms& histograms, std::span<const double> sums);
  void FinishLow(const Histograms& histograms, std::span<const double> sums);
  void DecodeBlock(const LaneTile& tile, size_t start, size_t n, Scratch& scratch) const;
  TaskVectorBlock BlockFor(const Coefficients& c, const LaneTile& tile, Scratch& scratch) const;
  void FindCuts(const LaneTile& tile, const uint64_t* grants, Scratch& scratch) const;
  template <typename Visit>
  void ForEachSegment(const LaneTile& tile, size_t start, size_t n, TaskVectorBlock& block, Scratch& scratch,
                      Visit visit) const;

  int weight_, density_, lambda_, normalize_, rescale_param_;
  bool elect_, rescale_, keep_equals_, by_count_, weighted_vote_;
  bool zero_elects_minus_ = false;
  bool ordered_possible_ = false;   // some model selects, and equals are handed out by index
  CandidatePool* pool_;                     // null: no sampling
  mutable std::atomic<bool> missed_{false}; // the candidates are not complete
  uint64_t elements_;
  uint64_t active_ = 0;             // models with a weight
  size_t slots_ = 0;
  std::vector<Trim> trims_;
  std::vector<Step> steps_;
};

TaskVectorMerger::TaskVectorMerger(const MethodInfo& method, const Coefficients& c, uint64_t elements, CandidatePool* pool)
    : weight_(method.IndexOf("weight")), density_(method.IndexOf("density")), lambda_(method.IndexOf("lambda")),
      normalize_(method.IndexOf("normalize")), rescale_param_(method.IndexOf("rescale")),
      elect_(method.name == "ties"), rescale_(Shared(c, rescale_param_, 0) != 0),
      keep_equals_(Shared(c, method.IndexOf("ties_at_threshold"), 0) != 0),
      by_count_(Shared(c, method.IndexOf("elect"), 0) != 0),
      weighted_vote_(Shared(c, method.IndexOf("elect_weighted"), 1) != 0), pool_(pool), elements_(elements),
      trims_(c.model.size()) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (WeightOf(c, m) == 0) continue;  // takes no part anywhere in this scope
    ++active_;
    const double density = density_ < 0 ? 1.0 : c.model[m][static_cast<size_t>(density_)];
    trim.keep = KeptCount(density, elements);
    // The paper's code keeps the entries >= the (n - int(density n))-th smallest: one more, and all equals.
    if (keep_equals_ && trim.keep > 0 && density < 1)
      trim.keep = std::min(elements, static_cast<uint64_t>(density * static_cast<double>(elements)) + 1);
    if (trim.keep == 0) trim.key = kNanKey, trim.equals_stay = false;
    else if (trim.keep < elements) trim.slot = static_cast<int>(slots_++);
  }
  ordered_possible_ = slots_ > 0 && !keep_equals_;
  if (slots_ > 0) steps_ = {Step::kHighHalves, Step::kLowHalves};
  // rescale needs sums over all entries, which the candidates' pass does not take; indices are 32 bits wide.
  if (slots_ > 0 && pool != nullptr && !rescale_ && elements >= kLeastSampled && elements < UINT32_MAX)
    steps_ = {Step::kSample, Step::kCandidates};
  // Of a small tensor all keys are candidates: clearing and searching histograms would cost more than counting.
  if (slots_ > 0 && pool != nullptr && !rescale_ && elements <= kFewKeys) steps_ = {Step::kCandidates};
  if (elect_ && Shared(c, method.IndexOf("zero_sign"), 0) != 0) steps_.push_back(Step::kSigns);
  steps_.push_back(Step::kMerge);
}

RoundSpec TaskVectorMerger::round(size_t r) const {
  const size_t sums = rescale_ ? trims_.size() : 0;
  switch (steps_[r]) {
    case Step::kSample:
      return {.name = "sample", .accumulator_bytes = slots_ * kSampleSpots * kSpotLanes * sizeof(uint32_t)};
    case Step::kCandidates:
      return {.name = "candidates", .accumulator_bytes = slots_ * sizeof(Candidates)};
    case Step::kHighHalves:
      return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(slots_, kHighBins, elements_), .sums = sums};
    case Step::kLowHalves:
      return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(slots_, kLowBins, elements_), .sums = sums};
    case Step::kSigns:
      return {.name = "signs", .accumulator_bytes = sizeof(SignSum), .ordered = ordered_possible_};
    case Step::kMerge: break;
  }
  return {.name = "merge", .ordered = ordered_possible_};
}

bool TaskVectorMerger::Reads(size_t r, size_t model, const Coefficients& c) const {
  const bool selects = trims_[model].slot >= 0;
  if (steps_[r] < Step::kSigns) return selects;
  // With weight 0 in this tensor only (model scope), its entries still use up quota.
  return WeightOf(c, model) != 0 || (selects && ordered_possible_);
}

std::unique_ptr<Accumulator> TaskVectorMerger::NewAccumulator(size_t r) const {
  switch (steps_[r]) {
    case Step::kSample: return std::make_unique<Sample>(slots_);
    case Step::kCandidates: return std::make_unique<CandidateSet>(slots_, pool_);
    case Step::kHighHalves: return std::make_unique<Histograms>(slots_, kHighBins);
    case Step::kLowHalves: return std::make_unique<Histograms>(slots_, kLowBins);
    case Step::kSigns: return std::make_unique<SignSum>();
    case Step::kMerge: break;
  }
  return nullptr;
}

void TaskVectorMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                                  Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  if (steps_[r] == Step::kSample) return TakeSample(tile, scratch, static_cast<Sample&>(*accumulator));
  if (steps_[r] == Step::kCandidates) return CollectCandidates(tile, scratch, static_cast<CandidateSet&>(*accumulator));
  if (steps_[r] != Step::kSigns)
    return CountHalves(steps_[r] == Step::kLowHalves, tile, scratch, static_cast<Histograms&>(*accumulator), sums);
  VoteCounts& votes = static_cast<SignSum&>(*accumulator).votes;
  TaskVectorBlock block = BlockFor(c, tile, scratch);
  FindCuts(tile, grants, scratch);
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    DecodeBlock(tile, start, n, scratch);
    ForEachSegment(tile, start, n, block, scratch,
                   [&](size_t, size_t length) { CountElectedSigns(block, length, &votes); });
  }
}

// kSampleSpots runs of kSpotLanes lanes, evenly over the tensor.
void TaskVectorMerger::TakeSample(const LaneTile& tile, Scratch& scratch, Sample& sample) const {
  const uint64_t stride = elements_ / kSampleSpots;
  for (uint64_t at = (tile.first + stride - 1) / stride * stride; at + kSpotLanes <= tile.first + tile.count; at += stride)
    for (size_t m = 0; m < trims_.size(); ++m) {
      if (tile.models[m].bytes == nullptr || trims_[m].slot < 0) continue;
      std::vector<uint32_t>& keys = sample.keys[static_cast<size_t>(trims_[m].slot)];
      keys.resize(keys.size() + kSpotLanes);
      StoreKeys(TaskVectorAt(tile, m, at - tile.first, kSpotLanes, scratch), kSpotLanes, &keys[keys.size() - kSpotLanes]);
    }
}

void TaskVectorMerger::FinishSample(Sample& sample) {
  for (Trim& trim : trims_) {
    if (trim.slot < 0) continue;
    const auto bracket = BracketOf(&sample.keys[static_cast<size_t>(trim.slot)], trim.keep, elements_);
    if (bracket) trim.bracket = *bracket;
    else missed_ = true;
  }
}

void TaskVectorMerger::CollectCandidates(const LaneTile& tile, Scratch& scratch, CandidateSet& set) const {
  for (size_t start = 0; start < tile.count && !missed_.load(std::memory_order_relaxed); start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    DecodeLanesAt(tile.base, start, n, scratch.base);
    for (size_t m = 0; m < trims_.size(); ++m) {
      const EncodedLanes& source = tile.models[m];
      const Trim& trim = trims_[m];
      if (source.bytes == nullptr || trim.slot < 0) continue;
      Candidates& candidates = set.slots[static_cast<size_t>(trim.slot)];
      CandidateChunk* chunk = candidates.RoomFor(n);
      if (chunk == nullptr) {
        missed_ = true;
        return;
      }
      chunk->count += CollectKeys(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)),
                                  scratch.base, n, trim.bracket.low, trim.bracket.high,
                                  static_cast<uint32_t>(tile.first + start), chunk->keys + chunk->count,
                                  chunk->indices + chunk->count, &candidates.above);
    }
  }
}

void TaskVectorMerger::FinishCandidates(const CandidateSet& set) {
  std::vector<Trim> trims = trims_;
  bool found = !missed_;
  for (size_t m = 0; found && m < trims.size(); ++m) {
    Trim& trim = trims[m];
    if (trim.slot < 0) continue;
    const Candidates& candidates = set.slots[static_cast<size_t>(trim.slot)];
    const std::optional<Threshold> threshold = candidates.Select(trim.keep, trim.bracket);
    found = threshold.has_value();
    if (!found) break;
    const uint64_t equals_kept = keep_equals_ ? threshold->equal : trim.keep - threshold->above;
    trim.key = threshold->key;
    trim.keep = threshold->above + equals_kept;
    trim.equals_stay = equals_kept == threshold->equal || threshold->key == 0;
    if (!trim.equals_stay) trim.cut = candidates.CutAfter(threshold->key, equals_kept);
  }
  if (found) {
    trims_ = std::move(trims);
    ordered_possible_ = false;  // who stays is known: no quota is left to hand out
  } else {
    const auto here = std::find(steps_.begin(), steps_.end(), Step::kCandidates);
    steps_.insert(here + 1, {Step::kHighHalves, Step::kLowHalves});
  }
}

// One model after the other within a reduction block: its histogram (128 or 256 KiB) then stays in L2.
void TaskVectorMerger::CountHalves(bool low, const LaneTile& tile, Scratch& scratch, Histograms& histograms,
                                   BlockSums sums) const {
  histograms.WillCount(tile.count);
  for (size_t block = 0; block < tile.count; block += kReductionBlock) {
    const size_t block_end = std::min(tile.count, block + kReductionBlock);
    for (size_t m = 0; m < trims_.size(); ++m) {
      const Trim& trim = trims_[m];
      if (tile.models[m].bytes == nullptr || trim.slot < 0) continue;
      uint32_t* bins = histograms.Row(static_cast<size_t>(trim.slot));
      double partial[kSumLanes] = {};
      for (size_t start = block; start < block_end; start += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, block_end - start);
        const float* d = TaskVectorAt(tile, m, start, n, scratch);
        if (low) CountLowHalves(d, n, trim.bin.high, bins);
        else CountHighHalves(d, n, bins);
        if (sums.data != nullptr) AddMagnitudes(d, n, low ? static_cast<int32_t>(trim.bin.high) : -1, partial);
      }
      if (sums.data != nullptr) sums.data[m * sums.stride + (tile.first + block) / kReductionBlock] = FoldSums(partial);
    }
  }
}

void TaskVectorMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  switch (steps_[r]) {
    case Step::kSample: return FinishSample(static_cast<Sample&>(*accumulator));
    case Step::kCandidates: return FinishCandidates(static_cast<const CandidateSet&>(*accumulator));
    case Step::kHighHalves: return FinishHigh(static_cast<const Histograms&>(*accumulator), sums);
    case Step::kLowHalves: return FinishLow(static_cast<const Histograms&>(*accumulator), sums);
    // The paper's code selects the negative entries when even the majority is a draw.
    case Step::kSigns: zero_elects_minus_ = static_cast<const SignSum&>(*accumulator).votes.sign_sum <= 0; return;
    case Step::kMerge: return;
  }
}

void TaskVectorMerger::FinishHigh(const Histograms& histograms, std::span<const double> sums) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.slot < 0) continue;
    trim.bin = FindCriticalBin(histograms.Totals(static_cast<size_t>(trim.slot)).data(), trim.keep);
    if (rescale_) trim.norm = sums[m];
  }
}

void TaskVectorMerger::FinishLow(const Histograms& histograms, std::span<const double> sums) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.slot < 0) continue;
    const std::vector<uint64_t> bins = histograms.Totals(static_cast<size_t>(trim.slot));
    const Threshold threshold = FindThreshold(trim.bin, bins.data(), trim.keep);
    // All zeros stay with a threshold of 0, also those of tensors that the model lacks, which nobody counted.
    const uint64_t equals = threshold.key == 0 ? elements_ - threshold.above : threshold.equal;
    const uint64_t equals_kept = keep_equals_ ? equals : trim.keep - threshold.above;
    trim.key = threshold.key;
    trim.keep = threshold.above + equals_kept;
    trim.equals_stay = equals_kept == equals || threshold.key == 0;  // a kept zero adds nothing
    trim.quota = trim.equals_stay ? kNoQuota : equals_kept;
    if (!rescale_) continue;
    // Entries above the critical bin were summed in place; those within it are known by their counts.
    const auto magnitude = [&](uint32_t low) {
      return static_cast<double>(std::bit_cast<float>(trim.bin.high << 16 | low));
    };
    trim.kept_norm = sums[m];
    const uint32_t threshold_low = threshold.key & 0xffff;
    for (uint32_t low = kLowBins - 1; low > threshold_low; --low)
      if (bins[low] != 0) trim.kept_norm += static_cast<double>(bins[low]) * magnitude(low);
    trim.kept_norm += static_cast<double>(equals_kept) * magnitude(threshold_low);
    // An infinite entry (norm infinite, their quotient NaN) must not spoil the others, nor a NaN.
    const bool finite = std::isfinite(trim.norm) && std::isfinite(trim.kept_norm);
    if (finite && trim.norm >= kLeastNorm && trim.kept_norm >= kLeastNorm)
      trim.factor = static_cast<float>(trim.norm / trim.kept_norm);
  }
}

void TaskVectorMerger::CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch,
                                   uint64_t* claims) const {
  for (size_t m = 0; m < trims_.size(); ++m) {
    if (tile.models[m].bytes == nullptr || trims_[m].quota == kNoQuota) continue;
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      claims[m] += CountKey(TaskVectorAt(tile, m, start, n, scratch), n, trims_[m].key);
    }
  }
}

// cuts[m]: the index within the tile up to which model m's entries equal to the threshold stay.
void TaskVectorMerger::FindCuts(const LaneTile& tile, const uint64_t* grants, Scratch& scratch) const {
  scratch.cuts.assign(trims_.size(), 0);
  for (size_t m = 0; m < trims_.size(); ++m) {
    const Trim& trim = trims_[m];
    uint64_t& cut = scratch.cuts[m];
    if (trim.equals_stay) cut = tile.count;
    else if (trim.cut) cut = std::min<uint64_t>(*trim.cut - std::min(*trim.cut, tile.first), tile.count);
    if (trim.quota == kNoQuota || tile.models[m].bytes == nullptr || grants[m] == 0) continue;
    uint64_t left = grants[m];
    for (size_t start = 0; left > 0 && start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      const float* d = TaskVectorAt(tile, m, start, n, scratch);
      const uint64_t here = CountKey(d, n, trim.key);
      if (here < left) {
        left -= here;
        continue;
      }
      for (size_t i = 0; left > 0; ++i)
        if (CountKey(d + i, 1, trim.key) != 0 && --left == 0) cut = start + i + 1;
    }
  }
}

void TaskVectorMerger::DecodeBlock(const LaneTile& tile, size_t start, size_t n, Scratch& scratch) const {
  DecodeLanesAt(tile.base, start, n, scratch.base);
  for (size_t m : scratch.voters) DecodeLanesAt(tile.models[m], start, n, scratch.models[m]);
}

TaskVectorBlock TaskVectorMerger::BlockFor(const Coefficients& c, const LaneTile& tile, Scratch& scratch) const {
  scratch.weights.clear();
  for (size_t m = 0; m < trims_.size(); ++m) scratch.weights.push_back(static_cast<float>(WeightOf(c, m)));
  const float sum = SumOfWeights(scratch.weights);
  scratch.weights.clear();
  scratch.factors.clear();
  scratch.voters.clear();
  for (size_t m = 0; m < trims_.size(); ++m) {
    if (tile.models[m].bytes == nullptr || WeightOf(c, m) == 0) continue;
    scratch.voters.push_back(m);
    scratch.weights.push_back(static_cast<float>(WeightOf(c, m)));
    scratch.factors.push_back(trims_[m].factor);
  }
  scratch.sources.resize(scratch.weights.size());
  scratch.min_keys.resize(scratch.weights.size());
  return {.base = scratch.base,
          .models = scratch.sources.data(),
          .num_models = scratch.weights.size(),
          .weight = scratch.weights.data(),
          .factor = rescale_ ? scratch.factors.data() : nullptr,
          .min_key = scratch.min_keys.data(),
          .elect = elect_,
          .elect_by_count = by_count_,
          .elect_weighted = weighted_vote_,
          .zero_elects_minus = zero_elects_minus_,
          .divide = Shared(c, normalize_, 0) != 0,
          .divisor = std::fabs(sum) < kLeastWeightSum ? 1.0f : sum,
          .lambda = static_cast<float>(Shared(c, lambda_, 1))};
}

// Splits a block where a model's cut lies in it, so that within a segment each model has one least key. The block's
// sources are the decoded lanes, or what is encoded in the tile, as its type says.
template <typename Visit>
void TaskVectorMerger::ForEachSegment(const LaneTile& tile, size_t start, size_t n, TaskVectorBlock& block,
                                      Scratch& scratch, Visit visit) const {
  const bool encoded = block.type != DType::kF32;
  const auto at = [&](const EncodedLanes& source, const float* lanes, size_t i) -> const void* {
    if (!encoded) return lanes + i;
    return source.bytes + (start + i) * static_cast<size_t>(LaneBytes(source.type));
  };
  for (size_t i = 0, end; i < n; i = end) {
    end = n;
    for (size_t v = 0; v < scratch.voters.size(); ++v) {
      const size_t m = scratch.voters[v];
      const uint64_t cut = scratch.cuts[m];
      if (cut > start + i && cut < start + end) end = cut - start;
      scratch.min_keys[v] = trims_[m].key + (start + i < cut ? 0 : 1);
      scratch.sources[v] = at(tile.models[m], scratch.models[m], i);
    }
    block.base = at(tile.base, scratch.base, i);
    visit(i, end - i);
  }
}

void TaskVectorMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                             DType type, std::byte* out, MergeCounts* counts) const {
  TaskVectorBlock block = BlockFor(c, tile, scratch);
  FindCuts(tile, grants, scratch);
  // Decoding within the kernel saves a store and a load per lane and source: 0.86 s of CPU
  // instead of 1.2 s in the merge round of 1.24 billion parameters (base + 3, EPYC).
  const auto same_type = [&](size_t m) { return tile.models[m].type == tile.base.type; };
  if (MergesEncoded(block, tile.base.type) && std::all_of(scratch.voters.begin(), scratch.voters.end(), same_type))
    block.type = tile.base.type;
  VoteCounts votes;
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    if (block.type == DType::kF32) DecodeBlock(tile, start, n, scratch);
    ForEachSegment(tile, start, n, block, scratch, [&](size_t i, size_t length) {
      MergeTaskVectors(block, length, scratch.room, scratch.out + i, &votes);
    });
    EncodeLanes(type, scratch.out, n, out + start * LaneBytes(type), &counts->non_finite);
  }
  counts->conflicts += votes.conflicts;
}

uint64_t TaskVectorMerger::kept() const {
  uint64_t sum = 0;
  for (const Trim& trim : trims_) sum += trim.keep;
  return sum;
}

}  // namespace

std::unique_ptr<Merger> NewTaskVectorMerger(const MethodInfo& method, const Coefficients& c, uint64_t elements,
                                            CandidatePool* pool) {
  return std::make_unique<TaskVectorMerger>(method, c, elements, pool);
}

}  // namespace braid
