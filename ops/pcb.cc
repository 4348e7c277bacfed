// pcb: parameter competition balancing. methods.md, row of that name and part 2, 8.1: the formula of the authors' code.
//
// Per model i of N, over the n elements of the scope: a = |d_i|, clamped to its order statistics
// lo = sorted[int(0.0001 n)] and hi = sorted[int(0.9999 n - 1)]; score = exp(N ((a - lo)/(hi - lo))^2) tanh(d_i sum_j d_j);
// of the scores t = sorted[int((1 - ratio) n)]; c_i = (max(score, t) - t)/(largest score - t).
// Merged: sum sign(d_i) a_i c_i / max(sum c_i, 1e-12).
//
// Rounds: two histograms of magnitudes, two of scores, the merge. A model that lacks a tensor of the scope has zeros
// there.
#include <array>
#include <bit>
#include <cmath>

#include "ops/delta_blocks.h"
#include "ops/elementary.h"
#include "ops/magnitude_selection.h"
#include "ops/task_vector_statistics.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

enum Parameter : size_t { kLambda, kRatio, kScope };

constexpr double kOutliers = 0.0001;       // share of the magnitudes beyond lo, and beyond hi
constexpr float kLeastDivisor = 1e-12f;
constexpr size_t kMostModels = 80;         // e^80 is still a float32
constexpr size_t kEnds = 2;                // order statistics of magnitudes, and of scores: the lower and the upper one

// Scores as integers that order as they do; +0 and -0 are one.
constexpr size_t kScoreHighBins = 0x10000;
constexpr uint32_t kZeroKey = 0x80000000;
uint32_t KeyOf(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | kZeroKey);
}
float ScoreOf(uint32_t key) { return std::bit_cast<float>(key >= kZeroKey ? key ^ kZeroKey : ~key); }

// What is known of one model.
struct Standing {
  std::array<CriticalBin, kEnds> magnitude_bins, score_bins;
  std::array<float, kEnds> magnitude = {}, score = {};
};

float Clamped(float magnitude, const std::array<float, kEnds>& ends) {
  const float raised = magnitude < ends[0] ? ends[0] : magnitude;
  return raised > ends[1] ? ends[1] : raised;
}

// What is no number (where infinities meet) counts as 0.
BRAID_WIDE_VECTORS void Scores(const float* d, const float* sum, size_t n, const std::array<float, kEnds>& ends,
                               float models, float* scores) {
  const float range = ends[1] - ends[0], scale = range > 0 ? range : 1.0f;
  for (size_t i = 0; i < n; ++i) {
    const float place = (Clamped(std::fabs(d[i]), ends) - ends[0]) / scale;
    const float square = place * place, exponent = models * square, product = d[i] * sum[i];
    const float within = static_cast<float>(Exp(static_cast<double>(exponent)));
    const float score = within * static_cast<float>(Tanh(static_cast<double>(product)));
    scores[i] = score == score ? score : 0.0f;
  }
}

void SumUp(const DeltaBlock& block, float* sum) {
  std::fill_n(sum, block.n, 0.0f);
  for (const float* d : block.d)
    for (size_t i = 0; i < block.n; ++i) sum[i] += d[i];
}

// merged += sign(d) a c, divisor += c. Where the largest score is the threshold itself, all that reach it count fully.
void AddBalanced(const float* d, const float* scores, size_t n, const Standing& model, float* merged, float* divisor) {
  const float t = model.score[0], range = model.score[1] - t, scale = range > 0 ? range : 1.0f;
  const float reached = range > 0 ? 0.0f : 1.0f;
  for (size_t i = 0; i < n; ++i) {
    const float share = ((scores[i] < t ? t : scores[i]) - t) / scale;
    const float c = scores[i] >= t ? std::max(share, reached) : 0.0f;
    const float magnitude = Clamped(std::fabs(d[i]), model.magnitude);
    const float clamped = d[i] == 0 ? 0.0f : std::copysign(magnitude, d[i]);
    merged[i] += clamped * c;
    divisor[i] += c;
  }
}

class PcbMerger : public Merger {
 public:
  PcbMerger(const Coefficients& c, uint64_t elements)
      : ratio_(c.shared[kRatio]), elements_(elements), models_(c.model.size()), counted_(c.model.size()) {}

  size_t statistics_rounds() const override { return kMerge; }
  RoundSpec round(size_t r) const override {
    if (r == kMerge) return {.name = "merge"};
    static constexpr std::string_view kNames[] = {"magnitudes, high halves", "magnitudes, low halves",
                                                  "scores, high halves", "scores, low halves"};
    return {.name = kNames[r],
            .accumulator_bytes = Histograms::Bytes(SlotsOf(r), BinsOf(r), elements_),
            .sums = r == kMagnitudesHigh ? models_.size() : 0};
  }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override {
    return std::make_unique<Histograms>(SlotsOf(r), BinsOf(r));
  }

  void Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;

 private:
  enum Round : size_t { kMagnitudesHigh, kMagnitudesLow, kScoresHigh, kScoresLow, kMerge };
  static bool IsHigh(size_t r) { return r == kMagnitudesHigh || r == kScoresHigh; }
  size_t SlotsOf(size_t r) const { return models_.size() * (IsHigh(r) ? 1 : kEnds); }
  static size_t BinsOf(size_t r) {
    return r == kMagnitudesHigh ? kHighBins : r == kScoresHigh ? kScoreHighBins : kLowBins;
  }
  float ModelCount() const { return static_cast<float>(models_.size()); }

  // Ranks from the largest down.
  uint64_t MagnitudeRank(size_t end) const {
    const auto n = static_cast<double>(elements_);
    return elements_ - static_cast<uint64_t>(end == 0 ? n * kOutliers : std::max(0.0, n * (1 - kOutliers) - 1));
  }
  uint64_t ScoreRank(size_t end) const {
    if (end == 1) return 1;
    const auto index = static_cast<uint64_t>(static_cast<double>(elements_) * (1 - ratio_));
    return elements_ - std::min(index, elements_ - 1);
  }

  double ratio_;
  uint64_t elements_;
  std::vector<Standing> models_;
  std::vector<uint64_t> counted_;   // entries of each model that there are to count
};

void PcbMerger::Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                           Accumulator* accumulator, BlockSums sums) const {
  auto& histograms = static_cast<Histograms&>(*accumulator);
  histograms.WillCount(tile.count);
  float sum[kBlockLanes], scores[kBlockLanes];
  ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
    SumUp(block, sum);
    for (size_t v = 0; v < block.d.size(); ++v) {
      const size_t m = block.models[v];
      const Standing& model = models_[m];
      const float* const d = block.d[v];
      if (r == kMagnitudesHigh) {
        CountHighHalves(d, block.n, histograms.Row(m));
        sums.data[m * sums.stride + (tile.first + block.start) / kReductionBlock] += static_cast<double>(block.n);
      } else if (r == kMagnitudesLow) {
        for (size_t e = 0; e < kEnds; ++e)
          CountLowHalves(d, block.n, model.magnitude_bins[e].high, histograms.Row(m * kEnds + e));
      } else {
        Scores(d, sum, block.n, model.magnitude, ModelCount(), scores);
        for (size_t i = 0; i < block.n; ++i) {
          const uint32_t key = KeyOf(scores[i]);
          if (r == kScoresHigh) ++histograms.Row(m)[key >> 16];
          for (size_t e = 0; r == kScoresLow && e < kEnds; ++e)
            if (key >> 16 == model.score_bins[e].high) ++histograms.Row(m * kEnds + e)[key & 0xffff];
        }
      }
    }
  });
}

void PcbMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  const auto& histograms = static_cast<const Histograms&>(*accumulator);
  for (size_t m = 0; m < models_.size(); ++m) {
    Standing& model = models_[m];
    if (r == kMagnitudesHigh) counted_[m] = static_cast<uint64_t>(sums[m]);
    // Zeros that nobody counted. Among magnitudes they rank last by themselves.
    const uint64_t zeros = elements_ - counted_[m];
    if (IsHigh(r)) {
      std::vector<uint64_t> bins = histograms.Totals(m);
      if (r == kScoresHigh) bins[kZeroKey >> 16] += zeros;
      const std::vector<BinCount> filled = FilledBins(bins.data(), bins.size());
      for (size_t e = 0; e < kEnds; ++e) {
        if (r == kMagnitudesHigh) model.magnitude_bins[e] = FindCriticalBin(filled, MagnitudeRank(e));
        else model.score_bins[e] = FindCriticalBin(filled, ScoreRank(e));
      }
      continue;
    }
    for (size_t e = 0; e < kEnds; ++e) {
      std::vector<uint64_t> bins = histograms.Totals(m * kEnds + e);
      if (r == kMagnitudesLow) {
        const Threshold found = FindThreshold(model.magnitude_bins[e], bins.data(), MagnitudeRank(e));
        model.magnitude[e] = std::bit_cast<float>(found.key);
      } else {
        if (model.score_bins[e].high == kZeroKey >> 16) bins[kZeroKey & 0xffff] += zeros;
        model.score[e] = ScoreOf(FindThreshold(model.score_bins[e], bins.data(), ScoreRank(e)).key);
      }
    }
  }
}

void PcbMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
                      std::byte* out, MergeCounts* counts) const {
  float sum[kBlockLanes], scores[kBlockLanes], divisor[kBlockLanes];
  const auto lambda = static_cast<float>(c.shared[kLambda]);
  MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
    SumUp(block, sum);
    std::fill_n(block.merged, block.n, 0.0f);
    std::fill_n(divisor, block.n, 0.0f);
    for (size_t v = 0; v < block.d.size(); ++v) {
      const Standing& model = models_[block.models[v]];
      Scores(block.d[v], sum, block.n, model.magnitude, ModelCount(), scores);
      AddBalanced(block.d[v], scores, block.n, model, block.merged, divisor);
    }
    for (size_t i = 0; i < block.n; ++i) block.merged[i] /= std::max(divisor[i], kLeastDivisor);
  });
}

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients& c, const TensorFacts& scope, Approach) {
  return std::make_unique<PcbMerger>(c, scope.elements);
}

}  // namespace

MethodInfo Pcb() {
  return {.name = "pcb",
          .summary = "weigh each entry by how large it is in its model and how well the models agree on it",
          .source = "Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, arXiv 2410.02396",
          .base = BaseUse::kRequired,
          .most_models = kMostModels,
          .parameters = {LambdaParameter(),
                         {.name = "ratio", .scope = ParameterScope::kRecipe, .default_value = 0.1, .min = 1e-9,
                          .max = 1, .help = "share of each model's entries that keep a weight, by score"},
                         {.name = "scope", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe,
                          .default_value = 1, .choices = {"tensor", "model"},
                          .help = "order statistics per tensor, or over the whole task vector (the paper)"}},
          .make = Make};
}

}  // namespace braid
