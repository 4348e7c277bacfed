// arcee_fusion: of one fine-tune, the changes that matter most. methods.md, row of that name.
//
// The importance of an element is |d| times its row's Kullback-Leibler divergence of softmax(x) from softmax(base).
// Kept are the elements from median + 1.5 (q3 - q1) of all importances on: order statistics, found exactly by two
// histograms. Tiles are whole rows; a row's divergence is found with the first histogram and remembered, 4 bytes a row.
#include <array>
#include <cmath>
#include <limits>

#include "ops/delta_blocks.h"
#include "ops/elementary.h"
#include "ops/magnitude_selection.h"
#include "ops/task_vector_statistics.h"

namespace braid {
namespace {

constexpr double kLeastShare = 1e-8;   // added to either softmax
constexpr size_t kQuartiles = 3;

// lanes[0 .. 16) = the largest so far of every 16th lane; NaN is passed over.
BRAID_WIDE_VECTORS void UseLargest(const float* x, size_t n, float* lanes) {
  const size_t whole = n / kSumLanes * kSumLanes;
  for (size_t i = 0; i < whole; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  for (size_t i = whole; i < n; ++i) lanes[i - whole] = x[i] > lanes[i - whole] ? x[i] : lanes[i - whole];
}

// sums[i % 16] += exp(x[i] - largest).
BRAID_WIDE_VECTORS void AddExponentials(const float* x, size_t n, double largest, double* sums) {
  const size_t whole = n / kSumLanes * kSumLanes;
  for (size_t i = 0; i < whole; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) sums[j] += Exp(static_cast<double>(x[i + j]) - largest);
  for (size_t i = whole; i < n; ++i) sums[i - whole] += Exp(static_cast<double>(x[i]) - largest);
}

// What turns a row into its softmax: exp(x - largest) * scale.
struct Softmax {
  double largest = 0, scale = 0;
  double Of(float x) const { return Exp(static_cast<double>(x) - largest) * scale + kLeastShare; }
};

// sums[i % 16] += p log(p/q), p and q from the softmax of x and of the base.
BRAID_WIDE_VECTORS void AddDivergences(const float* x, const float* base, size_t n, Softmax of_x, Softmax of_base,
                                       double* sums) {
  const size_t whole = n / kSumLanes * kSumLanes;
  for (size_t i = 0; i < whole; i += kSumLanes) {
    for (size_t j = 0; j < kSumLanes; ++j) {
      const double p = of_x.Of(x[i + j]), q = of_base.Of(base[i + j]);
      sums[j] += p * Log(p / q);
    }
  }
  for (size_t i = whole; i < n; ++i) {
    const double p = of_x.Of(x[i]), q = of_base.Of(base[i]);
    sums[i - whole] += p * Log(p / q);
  }
}

// Sums over a row: 16 interleaved sums from its first element on.
Softmax SoftmaxOf(const EncodedLanes& source, size_t first, size_t row, float* lanes) {
  float largest[kSumLanes];
  double sums[kSumLanes] = {};
  std::fill_n(largest, kSumLanes, -std::numeric_limits<float>::infinity());
  const auto for_each_block = [&](auto visit) {
    for (size_t at = 0; at < row; at += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, row - at);
      DecodeLanesAt(source, first + at, n, lanes);
      visit(n);
    }
  };
  for_each_block([&](size_t n) { UseLargest(lanes, n, largest); });
  Softmax softmax{.largest = static_cast<double>(*std::max_element(largest, largest + kSumLanes))};
  for_each_block([&](size_t n) { AddExponentials(lanes, n, softmax.largest, sums); });
  softmax.scale = 1.0 / FoldSums(sums);
  return softmax;
}

// Of the row that begins at element `first` of the tile. Never negative, but for rounding: both add up to the same.
float DivergenceOf(const LaneTile& tile, size_t first, size_t row, Scratch& scratch) {
  const EncodedLanes &base = tile.base, &model = tile.models[0];
  const Softmax of_base = SoftmaxOf(base, first, row, scratch.base), of_x = SoftmaxOf(model, first, row, scratch.base);
  double sums[kSumLanes] = {};
  for (size_t at = 0; at < row; at += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, row - at);
    DecodeLanesAt(base, first + at, n, scratch.base);
    DecodeLanesAt(model, first + at, n, scratch.models[0]);
    AddDivergences(scratch.models[0], scratch.base, n, of_x, of_base, sums);
  }
  const double divergence = FoldSums(sums);
  return static_cast<float>(divergence < 0 ? 0.0 : divergence);
}

class RowDivergences : public Accumulator {
 public:
  explicit RowDivergences(uint64_t count) : high_halves(1, kHighBins), rows(count) {}
  Histograms high_halves;
  std::vector<float> rows;   // 0 where another worker has counted

  void Add(Accumulator* other) override {
    auto& o = static_cast<RowDivergences&>(*other);
    high_halves.Add(&o.high_halves);
    for (size_t r = 0; r < rows.size(); ++r) rows[r] += o.rows[r];
  }
};

class ArceeFusionMerger : public Merger {
 public:
  explicit ArceeFusionMerger(const TensorFacts& tensor)
      : elements_(tensor.elements), row_(std::max<uint64_t>(tensor.row, 1)) {}

  size_t statistics_rounds() const override { return 2; }
  RoundSpec round(size_t r) const override {
    switch (r) {
      case 0:
        return {.name = "divergences and high halves",
                .accumulator_bytes = Histograms::Bytes(1, kHighBins, elements_) + elements_ / row_ * sizeof(float),
                .kept_bytes = elements_ / row_ * sizeof(float)};
      case 1: return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(kQuartiles, kLowBins, elements_)};
      default: return {.name = "merge"};
    }
  }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override {
    if (r == 0) return std::make_unique<RowDivergences>(elements_ / row_);
    return std::make_unique<Histograms>(kQuartiles, kLowBins);
  }

  void Accumulate(size_t r, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                  Accumulator* accumulator, BlockSums) const override {
    if (tile.models[0].bytes == nullptr) return;
    float importance[kBlockLanes + kLanePadding];
    if (r == 0) {
      auto& found = static_cast<RowDivergences&>(*accumulator);
      found.high_halves.WillCount(tile.count);
      for (size_t first = 0; first < tile.count; first += row_)
        found.rows[(tile.first + first) / row_] = DivergenceOf(tile, first, row_, scratch);
      ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
        Importances(block, tile.first, found.rows, importance);
        CountHighHalves(importance, block.n, found.high_halves.Row(0));
      });
      return;
    }
    auto& histograms = static_cast<Histograms&>(*accumulator);
    histograms.WillCount(tile.count);
    ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
      Importances(block, tile.first, rows_, importance);
      for (size_t q = 0; q < kQuartiles; ++q) CountLowHalves(importance, block.n, bins_[q].high, histograms.Row(q));
    });
  }

  void Finish(size_t r, Accumulator* accumulator, std::span<const double>) override {
    if (r == 0) {
      auto& found = static_cast<RowDivergences&>(*accumulator);
      rows_ = std::move(found.rows);
      const std::vector<uint64_t> bins = found.high_halves.Totals(0);
      for (size_t q = 0; q < kQuartiles; ++q) bins_[q] = FindCriticalBin(bins.data(), RankOf(q));
      return;
    }
    float quartile[kQuartiles];
    for (size_t q = 0; q < kQuartiles; ++q) {
      const std::vector<uint64_t> bins = static_cast<Histograms&>(*accumulator).Totals(q);
      quartile[q] = std::bit_cast<float>(FindThreshold(bins_[q], bins.data(), RankOf(q)).key);
    }
    threshold_ = quartile[1] + 1.5f * (quartile[2] - quartile[0]);
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    float importance[kBlockLanes + kLanePadding];
    const auto lambda = static_cast<float>(c.shared[0]);
    MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
      std::fill_n(block.merged, block.n, 0.0f);
      if (block.d.empty()) return;
      Importances(block, tile.first, rows_, importance);
      const float* const d = block.d[0];
      for (size_t i = 0; i < block.n; ++i) block.merged[i] = importance[i] >= threshold_ ? d[i] : 0.0f;
    });
  }

 private:
  // sorted[trunc(q (n - 1))] as a rank from the largest down.
  uint64_t RankOf(size_t quartile) const {
    const uint64_t last = elements_ - 1, whole = last / 4 * (quartile + 1);
    return elements_ - (whole + last % 4 * (quartile + 1) / 4);
  }

  void Importances(const DeltaBlock& block, uint64_t tile_first, const std::vector<float>& rows,
                   float* importance) const {
    const uint64_t first = tile_first + block.start;
    for (size_t i = 0, end; i < block.n; i = end) {
      const uint64_t row = (first + i) / row_;
      end = static_cast<size_t>(std::min<uint64_t>(block.n, (row + 1) * row_ - first));
      const float divergence = rows[row];
      for (size_t j = i; j < end; ++j) importance[j] = std::fabs(block.d[0][j]) * divergence;
    }
  }

  uint64_t elements_, row_;
  std::vector<float> rows_;   // their divergences
  std::array<CriticalBin, kQuartiles> bins_;
  float threshold_ = 0;
};

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients&, const TensorFacts& scope, Approach) {
  return std::make_unique<ArceeFusionMerger>(scope);
}

}  // namespace

MethodInfo ArceeFusion() {
  return {.name = "arcee_fusion",
          .summary = "of one fine-tune, keep the changes that matter most",
          .source = "Arcee Fusion, mergekit 0.1.5 (no paper)",
          .base = BaseUse::kRequired,
          .most_models = 1,
          .parameters = {LambdaParameter()},
          .by_rows = AlwaysByRows,
          .make = Make};
}

}  // namespace braid
