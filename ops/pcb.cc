// pcb: parameter competition balancing. methods.md, row of that name and part 2, 8.1: the formula of the authors' code.
//
// Per model i of N, over the n elements of the scope: a = |d_i|, clamped to its order statistics
// lo = sorted[int(0.0001 n)] and hi = sorted[int(0.9999 n - 1)];
// score = exp(N ((a - lo)/(hi - lo))^2) tanh(d_i sum_j d_j); of the scores t = sorted[int((1 - ratio) n)]; c_i =
// (max(score, t) - t)/(largest score - t). Merged: sum sign(d_i) a_i c_i / max(sum c_i, 1e-12).
//
// A model that lacks a tensor of the scope has zeros there.
//
// Rounds: the ends of the magnitudes are kept as they come by (ops/extreme_keys.h); a sample says where t lies, and one
// read counts the scores around it; then the merge. Where there is no sample, or it misled, a histogram of the scores
// says where t lies. Most scores are only estimated (ops/pcb_scores.h): that they are below t, or above, is all that
// matters.
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/delta_blocks.h"
#include "ops/elementary.h"
#include "ops/extreme_keys.h"
#include "ops/magnitude_selection.h"
#include "ops/pcb_scores.h"
#include "ops/task_vector_statistics.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

enum Parameter : size_t { kLambda, kRatio, kScope };

constexpr double kOutliers = 0.0001;       // share of the magnitudes beyond lo, and beyond hi
constexpr float kLeastDivisor = 1e-12f;
constexpr size_t kEnds = 2;                // of the magnitudes: the lower and the upper one
constexpr uint32_t kScoreHighBins = 0x10000, kScoreLowBins = 0x10000;   // of their keys' halves

// The ends of the magnitudes of so few elements take less memory than two histograms of their low halves.
constexpr uint64_t kFewExtremes = uint64_t{1} << 28;

// Scores around t that are counted key by key: so many that they differ by an eighth or more. A wider bracket is of no
// use.
constexpr uint32_t kWindow = 1 << 21;
constexpr uint32_t kLeastScoreKey = 0x007fffff, kLargestScoreKey = 0xff800000;   // of the infinities

// What is known of one model.
struct Standing {
  uint64_t zeros = 0;                  // elements of tensors that it lacks
  std::array<CriticalBin, kEnds> bins; // of magnitudes
  ScoreCurve curve;
  ScoreEstimate estimate;
  uint32_t window_low = 0, window_high = 0;   // keys of scores, both inclusive
  float threshold = 0, top = 0;        // t and the largest score

  // Whether only scores above some limit matter to the merge, and which. Where t is negative zeros count, too.
  bool MergesByEstimate() const { return estimate.usable() && threshold >= 0 && top > threshold; }
  float MergeLimit() const {
    return threshold > 0 ? estimate.Below(threshold) : std::numeric_limits<float>::denorm_min();
  }
};

class Extremes : public Accumulator {
 public:
  std::vector<ExtremeKeys> models;
  void Add(Accumulator* other) override {
    auto& o = static_cast<Extremes&>(*other);
    for (size_t m = 0; m < models.size(); ++m) models[m].Add(&o.models[m]);
  }
};

// Scores within the windows, and how many are above.
class InsideScores : public Accumulator {
 public:
  struct Slot {
    uint64_t above = 0;
    uint32_t largest = 0;
  };
  InsideScores(size_t models, size_t width) : slots(models), bins(models, width) {}

  void Count(const Standing& model, size_t m, uint32_t key, uint32_t times) {
    if (key > model.window_high) slots[m].above += times;
    else if (key >= model.window_low) bins.Row(m)[key - model.window_low] += times;
    slots[m].largest = std::max(slots[m].largest, key);
  }
  void Add(Accumulator* other) override {
    auto& o = static_cast<InsideScores&>(*other);
    bins.Add(&o.bins);
    for (size_t m = 0; m < slots.size(); ++m) {
      slots[m].above += o.slots[m].above;
      slots[m].largest = std::max(slots[m].largest, o.slots[m].largest);
    }
  }

  std::vector<Slot> slots;
  Histograms bins;
};

void SumUp(const DeltaBlock& block, float* sum) {
  std::fill_n(sum, block.n + kLanePadding, 0.0f);
  for (const float* d : block.d) AddLanes(d, block.n, sum);
}

// Entries of one model in a block, and the sums of all models' there.
struct DeltaLanes {
  const float* d;
  const float* sum;
  size_t n;
};

// The lanes of a block whose scores are needed, and these.
struct OpenScores {
  size_t count = 0;
  uint32_t places[kBlockLanes];
  float d[kBlockLanes], sum[kBlockLanes], scores[kBlockLanes];

  // Of the lanes at `places`.
  void Use(const OpenLanes& lanes, const DeltaLanes& block, const ScoreCurve& curve) {
    count = lanes.count;
    for (size_t i = 0; i < count; ++i) d[i] = block.d[places[i]], sum[i] = block.sum[places[i]];
    if (lanes.small) ExactSmallScores(d, sum, count, curve, scores);
    else ExactScores(d, sum, count, curve, scores);
  }
  void UseAll(const DeltaLanes& block, const ScoreCurve& curve) {
    count = block.n;
    std::iota(places, places + count, 0u);
    std::copy_n(block.d, count, d);
    ExactScores(d, block.sum, count, curve, scores);
  }
};

// merged += sign(d) a c, divisor += c. Where the largest score is the threshold itself, all that reach it count fully.
BRAID_WIDE_VECTORS void AddBalanced(const OpenScores& open, const Standing& model, float* merged, float* divisor) {
  const float t = model.threshold, range = model.top - t, scale = range > 0 ? range : 1.0f;
  const float reached = range > 0 ? 0.0f : 1.0f;
  const ScoreCurve curve = model.curve;
  float weight[kBlockLanes], term[kBlockLanes];
  for (size_t i = 0; i < open.count; ++i) {
    const float score = open.scores[i], share = ((score < t ? t : score) - t) / scale;
    const float c = score >= t ? std::max(share, reached) : 0.0f;
    const float magnitude = ClampedMagnitude(open.d[i], curve);
    const float clamped = open.d[i] == 0 ? 0.0f : std::copysign(magnitude, open.d[i]);
    weight[i] = c, term[i] = clamped * c;
  }
  for (size_t i = 0; i < open.count; ++i) {
    merged[open.places[i]] += term[i];
    divisor[open.places[i]] += weight[i];
  }
}

BRAID_WIDE_VECTORS void Divide(const float* divisor, size_t n, float* merged) {
  for (size_t i = 0; i < n; ++i) merged[i] /= std::max(divisor[i], kLeastDivisor);
}

class PcbMerger : public Merger {
 public:
  PcbMerger(const Coefficients& c, uint64_t elements, Approach approach);

  size_t statistics_rounds() const override { return steps_.size() - 1; }
  RoundSpec round(size_t r) const override;
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;

 private:
  enum class Step { kExtremes, kMagnitudesHigh, kMagnitudesLow, kScoresHigh, kScoreSample, kScoresInside, kMerge };

  // Ranks from the largest down.
  uint64_t MagnitudeRank(size_t end) const {
    const auto n = static_cast<double>(elements_);
    return elements_ - static_cast<uint64_t>(end == 0 ? n * kOutliers : std::max(0.0, n * (1 - kOutliers) - 1));
  }
  uint64_t ThresholdRank() const {
    const auto index = static_cast<uint64_t>(static_cast<double>(elements_) * (1 - ratio_));
    return elements_ - std::min(index, elements_ - 1);
  }
  uint64_t SmallestRank() const { return elements_ - MagnitudeRank(0) + 1; }   // of lo, from the smallest up

  void CountInside(size_t m, const DeltaLanes& block, InsideScores& inside) const;
  void FinishExtremes(Extremes& extremes);
  void FinishMagnitudes(bool high, const Histograms& histograms);
  void FinishScoreSample(const SampleKeys& sample);
  bool FindWindow(const PlaceSample& sample, Standing* model) const;
  void FinishInside(size_t r, const InsideScores& inside);
  bool FindInside(const InsideScores& inside, size_t m, Standing* model) const;
  void FinishScores(const Histograms& histograms);
  void UseEnds(float low, float high, Standing* model) const;

  double ratio_;
  uint64_t elements_;
  std::vector<Standing> models_;
  std::vector<Step> steps_;
};

PcbMerger::PcbMerger(const Coefficients& c, uint64_t elements, Approach approach)
    : ratio_(c.shared[kRatio]), elements_(elements), models_(c.model.size()) {
  const bool sampled = approach == Approach::kSampled;
  if (sampled || elements <= kFewExtremes) steps_ = {Step::kExtremes};
  else steps_ = {Step::kMagnitudesHigh, Step::kMagnitudesLow};
  steps_.insert(steps_.end(), {sampled ? Step::kScoreSample : Step::kScoresHigh, Step::kScoresInside, Step::kMerge});
}

RoundSpec PcbMerger::round(size_t r) const {
  const size_t n = models_.size();
  switch (steps_[r]) {
    case Step::kExtremes:
      return {.name = "extreme magnitudes",
              .accumulator_bytes = n * ExtremeKeys::Bytes(SmallestRank(), MagnitudeRank(1))};
    case Step::kMagnitudesHigh:
      return {.name = "magnitudes, high halves", .accumulator_bytes = Histograms::Bytes(n, kHighBins, elements_)};
    case Step::kMagnitudesLow:
      return {.name = "magnitudes, low halves", .accumulator_bytes = Histograms::Bytes(n * kEnds, kLowBins, elements_)};
    case Step::kScoreSample:
      return {.name = "sample of scores", .accumulator_bytes = n * kSampleLanes * sizeof(uint64_t), .sample = true};
    case Step::kScoresHigh:
      return {.name = "scores, high halves", .accumulator_bytes = Histograms::Bytes(n, kScoreHighBins, elements_)};
    case Step::kScoresInside: {
      const size_t widest = steps_[r - 1] == Step::kScoreSample ? kWindow : kScoreLowBins;
      return {.name = "scores inside", .accumulator_bytes = Histograms::Bytes(n, widest, elements_)};
    }
    case Step::kMerge: break;
  }
  return {.name = "merge"};
}

std::unique_ptr<Accumulator> PcbMerger::NewAccumulator(size_t r) const {
  const size_t n = models_.size();
  switch (steps_[r]) {
    case Step::kExtremes: {
      auto extremes = std::make_unique<Extremes>();
      for (size_t m = 0; m < n; ++m) extremes->models.emplace_back(SmallestRank(), MagnitudeRank(1));
      return extremes;
    }
    case Step::kMagnitudesHigh: return std::make_unique<Histograms>(n, kHighBins);
    case Step::kMagnitudesLow: return std::make_unique<Histograms>(n * kEnds, kLowBins);
    case Step::kScoreSample: return std::make_unique<SampleKeys>(n);
    case Step::kScoresInside: {
      uint32_t widest = 0;
      for (const Standing& model : models_) widest = std::max(widest, model.window_high - model.window_low);
      return std::make_unique<InsideScores>(n, size_t{widest} + 1);
    }
    case Step::kScoresHigh: return std::make_unique<Histograms>(n, kScoreHighBins);
    case Step::kMerge: break;
  }
  return nullptr;
}

void PcbMerger::Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                           Accumulator* accumulator, BlockSums) const {
  const Step step = steps_[r];
  const bool histograms = step != Step::kExtremes && step != Step::kScoreSample && step != Step::kScoresInside;
  if (histograms) static_cast<Histograms&>(*accumulator).WillCount(tile.count);
  if (step == Step::kScoresInside) static_cast<InsideScores&>(*accumulator).bins.WillCount(tile.count);
  float sum[kBlockLanes + kLanePadding], scores[kBlockLanes];
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    if (step >= Step::kScoresHigh) SumUp(block, sum);
    for (size_t v = 0; v < block.d.size(); ++v) {
      const size_t m = block.models[v], n = block.n;
      const float* const d = block.d[v];
      switch (step) {
        case Step::kExtremes: static_cast<Extremes&>(*accumulator).models[m].Look(d, n); break;
        case Step::kMagnitudesHigh: CountHighHalves(d, n, static_cast<Histograms&>(*accumulator).Row(m)); break;
        case Step::kMagnitudesLow:
          for (size_t e = 0; e < kEnds; ++e)
            CountLowHalves(d, n, models_[m].bins[e].high, static_cast<Histograms&>(*accumulator).Row(m * kEnds + e));
          break;
        case Step::kScoresHigh: {
          uint32_t* const bins = static_cast<Histograms&>(*accumulator).Row(m);
          ExactScores(d, sum, n, models_[m].curve, scores);
          for (size_t i = 0; i < n; ++i) ++bins[ScoreKey(scores[i]) >> 16];
          break;
        }
        case Step::kScoreSample: {
          PlaceSample& slot = static_cast<SampleKeys&>(*accumulator).slots[m];
          ExactScores(d, sum, n, models_[m].curve, scores);
          slot.run = n;   // the tile is one run
          for (size_t i = 0; i < n; ++i) slot.places.push_back(PlaceOf(ScoreKey(scores[i]) >> 1, 0));
          break;
        }
        case Step::kScoresInside: CountInside(m, {d, sum, n}, static_cast<InsideScores&>(*accumulator)); break;
        case Step::kMerge: break;
      }
    }
  });
}

void PcbMerger::CountInside(size_t m, const DeltaLanes& block, InsideScores& inside) const {
  const Standing& model = models_[m];
  OpenScores open;
  if (model.estimate.usable()) {
    const uint32_t largest = inside.slots[m].largest;
    ScoreLimits limits;
    limits.open = model.estimate.Below(ScoreAt(model.window_low));
    limits.above = model.estimate.Above(ScoreAt(model.window_high));
    // What may be the largest is looked at.
    limits.below = largest > model.window_high ? model.estimate.Below(ScoreAt(largest)) : limits.above;
    SettledScores settled;
    const OpenLanes lanes =
        CountSettledScores(block.d, block.sum, block.n, model.estimate, limits, open.places, &settled);
    open.Use(lanes, block, model.curve);
    if (settled.zeros > 0) inside.Count(model, m, kZeroScoreKey, static_cast<uint32_t>(settled.zeros));
    inside.slots[m].above += settled.between;
  } else {
    open.UseAll(block, model.curve);
  }
  for (size_t i = 0; i < open.count; ++i) inside.Count(model, m, ScoreKey(open.scores[i]), 1);
}

void PcbMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double>) {
  switch (steps_[r]) {
    case Step::kExtremes: return FinishExtremes(static_cast<Extremes&>(*accumulator));
    case Step::kMagnitudesHigh: return FinishMagnitudes(true, static_cast<const Histograms&>(*accumulator));
    case Step::kMagnitudesLow: return FinishMagnitudes(false, static_cast<const Histograms&>(*accumulator));
    case Step::kScoreSample: return FinishScoreSample(static_cast<const SampleKeys&>(*accumulator));
    case Step::kScoresInside: return FinishInside(r, static_cast<const InsideScores&>(*accumulator));
    case Step::kScoresHigh: return FinishScores(static_cast<const Histograms&>(*accumulator));
    case Step::kMerge: return;
  }
}

void PcbMerger::UseEnds(float low, float high, Standing* model) const {
  model->curve = {.low = low, .high = high, .models = static_cast<float>(models_.size())};
  model->estimate = ScoreEstimate(model->curve);
}

void PcbMerger::FinishExtremes(Extremes& extremes) {
  for (size_t m = 0; m < models_.size(); ++m) {
    ExtremeKeys& keys = extremes.models[m];
    const uint64_t zeros = models_[m].zeros = elements_ - keys.seen(), low = SmallestRank(), high = MagnitudeRank(1);
    const uint32_t low_key = zeros >= low ? 0 : keys.Smallest(low - zeros);
    const uint32_t high_key = high > keys.seen() ? 0 : keys.Largest(high);
    UseEnds(std::bit_cast<float>(low_key), std::bit_cast<float>(high_key), &models_[m]);
  }
}

void PcbMerger::FinishMagnitudes(bool high, const Histograms& histograms) {
  for (size_t m = 0; m < models_.size(); ++m) {
    Standing& model = models_[m];
    if (high) {   // zeros that nobody counted rank last by themselves
      const std::vector<uint64_t> bins = histograms.Totals(m);
      const std::vector<BinCount> filled = FilledBins(bins.data(), bins.size());
      for (size_t e = 0; e < kEnds; ++e) model.bins[e] = FindCriticalBin(filled, MagnitudeRank(e));
      model.zeros = elements_ - std::accumulate(bins.begin(), bins.end(), uint64_t{0});
      continue;
    }
    std::array<float, kEnds> ends;
    for (size_t e = 0; e < kEnds; ++e) {
      const std::vector<uint64_t> bins = histograms.Totals(m * kEnds + e);
      ends[e] = std::bit_cast<float>(FindThreshold(model.bins[e], bins.data(), MagnitudeRank(e)).key);
    }
    UseEnds(ends[0], ends[1], &model);
  }
}

void PcbMerger::FinishScoreSample(const SampleKeys& sample) {
  bool found = true;
  for (size_t m = 0; m < models_.size(); ++m) found &= FindWindow(sample.slots[m], &models_[m]);
  if (!found) steps_.insert(std::find(steps_.begin(), steps_.end(), Step::kScoresInside), Step::kScoresHigh);
}

// Keys of the sample are half as fine as those of scores. Tensors that the model lacks are not in it.
bool PcbMerger::FindWindow(const PlaceSample& sample, Standing* model) const {
  const uint64_t seen = elements_ - model->zeros;
  const auto bracket = BracketOf(sample, std::min(ThresholdRank(), seen), seen, false);
  if (!bracket) return false;
  uint32_t low = std::max(bracket->open.key << 1, kLeastScoreKey);
  uint32_t high = bracket->sure.key == kNanKey ? kLargestScoreKey : bracket->sure.key << 1 | 1;
  if (model->zeros > 0) low = std::max(low, kZeroScoreKey), high = std::max(high, low);
  model->window_low = low, model->window_high = high;
  return low <= high && high - low < kWindow;
}

void PcbMerger::FinishInside(size_t r, const InsideScores& inside) {
  bool found = true;
  for (size_t m = 0; m < models_.size(); ++m) found &= FindInside(inside, m, &models_[m]);
  // What a histogram said is so, unless the files change meanwhile, which others notice.
  if (!found && steps_[r - 1] == Step::kScoreSample)
    steps_.insert(steps_.begin() + static_cast<ptrdiff_t>(r) + 1, {Step::kScoresHigh, Step::kScoresInside});
}

// Where t is inside the window, so is what may be the largest, or above it.
bool PcbMerger::FindInside(const InsideScores& inside, size_t m, Standing* model) const {
  const uint64_t rank = ThresholdRank();
  uint64_t above = inside.slots[m].above + (kZeroScoreKey > model->window_high ? model->zeros : 0);
  if (above >= rank) return false;
  for (uint32_t key = model->window_high; key >= model->window_low; --key) {
    above += inside.bins.At(m, key - model->window_low) + (key == kZeroScoreKey ? model->zeros : 0);
    if (above < rank) continue;
    model->threshold = ScoreAt(key);
    model->top = ScoreAt(std::max(inside.slots[m].largest, model->zeros > 0 ? kZeroScoreKey : 0));
    return true;
  }
  return false;
}

void PcbMerger::FinishScores(const Histograms& histograms) {
  for (size_t m = 0; m < models_.size(); ++m) {
    std::vector<uint64_t> bins = histograms.Totals(m);
    bins[kZeroScoreKey >> 16] += models_[m].zeros;
    const uint32_t high = FindCriticalBin(FilledBins(bins.data(), bins.size()), ThresholdRank()).high;
    models_[m].window_low = std::max(high << 16, kLeastScoreKey);
    models_[m].window_high = std::min(high << 16 | (kScoreLowBins - 1), kLargestScoreKey);
  }
}

void PcbMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
                      std::byte* out, MergeCounts* counts) const {
  float sum[kBlockLanes + kLanePadding], divisor[kBlockLanes];
  OpenScores open;
  const auto lambda = static_cast<float>(c.shared[kLambda]);
  MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
    SumUp(block, sum);
    std::fill_n(block.merged, block.n, 0.0f);
    std::fill_n(divisor, block.n, 0.0f);
    for (size_t v = 0; v < block.d.size(); ++v) {
      const Standing& model = models_[block.models[v]];
      const DeltaLanes lanes{block.d[v], sum, block.n};
      if (model.MergesByEstimate()) {
        const float limit = model.MergeLimit();
        open.Use(FindOpenScores(lanes.d, sum, lanes.n, model.estimate, limit, open.places), lanes, model.curve);
      } else {
        open.UseAll(lanes, model.curve);
      }
      AddBalanced(open, model, block.merged, divisor);
    }
    Divide(divisor, block.n, block.merged);
  });
}

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients& c, const TensorFacts& scope, Approach approach) {
  return std::make_unique<PcbMerger>(c, scope.elements, approach);
}

}  // namespace

MethodInfo Pcb() {
  return {.name = "pcb",
          .summary = "weigh each entry by how large it is in its model and how well the models agree on it",
          .source = "Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, arXiv 2410.02396",
          .base = BaseUse::kRequired,
          .most_models = kPcbMostModels,
          .parameters = {LambdaParameter(),
                         {.name = "ratio", .scope = ParameterScope::kRecipe, .default_value = 0.1, .min = 1e-9,
                          .max = 1, .help = "share of each model's entries that keep a weight, by score"},
                         {.name = "scope", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe,
                          .default_value = 1, .choices = {"tensor", "model"},
                          .help = "order statistics per tensor, or over the whole task vector (the paper)"}},
          .make = Make};
}

}  // namespace braid
