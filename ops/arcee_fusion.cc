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
#include "ops/wide_vectors.h"

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

// e[i] = exp(x[i] - largest).
BRAID_WIDE_VECTORS void Exponentials(const float* x, size_t n, double largest, double* e) {
  for (size_t i = 0; i < n; ++i) e[i] = Exp(static_cast<double>(x[i]) - largest);
}

// sums[i % 16] += e[i].
BRAID_WIDE_VECTORS void AddUp(const double* e, size_t n, double* sums) {
  const size_t whole = n / kSumLanes * kSumLanes;
  for (size_t i = 0; i < whole; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) sums[j] += e[i + j];
  for (size_t i = whole; i < n; ++i) sums[i - whole] += e[i];
}

// terms[i] = p log(p/q), p and q the softmax of x and of the base.
BRAID_WIDE_VECTORS void Divergences(const double* e, double scale, const double* base, double base_scale, size_t n,
                                    double* terms) {
  for (size_t i = 0; i < n; ++i) {
    const double p = e[i] * scale + kLeastShare, q = base[i] * base_scale + kLeastShare;
    terms[i] = p * Log(p / q);
  }
}

// d where it matters.
BRAID_WIDE_VECTORS void KeepImportant(const float* d, const float* importance, size_t n, float threshold, float* kept) {
  for (size_t i = 0; i < n; ++i) kept[i] = importance[i] >= threshold ? d[i] : 0.0f;
}

// Of one source's row: exp(x - largest), and what turns these into a softmax. Sums over a row: 16 interleaved sums from
// its first element on.
class RowExponentials {
 public:
  // Rows up to this length keep their exponentials in `room`, in L2; those of longer ones are found anew for each
  // block.
  static constexpr size_t kMostKept = 32'768;
  static size_t Room(size_t row) { return row <= kMostKept ? row : kBlockLanes; }   // in doubles

  // `lanes`: room for a block.
  RowExponentials(const EncodedLanes& source, size_t first, size_t row, float* lanes, double* room)
      : source_(source), first_(first), row_(row), lanes_(lanes), room_(room) {
    float largest[kSumLanes];
    double sums[kSumLanes] = {};
    std::fill_n(largest, kSumLanes, -std::numeric_limits<float>::infinity());
    const auto for_each_block = [&](auto visit) {
      for (size_t at = 0; at < row; at += kBlockLanes) visit(at, std::min(kBlockLanes, row - at));
    };
    for_each_block([&](size_t at, size_t n) {
      DecodeLanesAt(source, first + at, n, lanes);
      UseLargest(lanes, n, largest);
    });
    largest_ = static_cast<double>(*std::max_element(largest, largest + kSumLanes));
    for_each_block([&](size_t at, size_t n) { AddUp(Find(at, n), n, sums); });
    scale_ = 1.0 / FoldSums(sums);
  }

  double scale() const { return scale_; }
  // Of n lanes, a block, from `at` on; valid until the next call.
  const double* At(size_t at, size_t n) { return row_ <= kMostKept ? room_ + at : Find(at, n); }

 private:
  const double* Find(size_t at, size_t n) {
    double* const e = row_ <= kMostKept ? room_ + at : room_;
    DecodeLanesAt(source_, first_ + at, n, lanes_);
    Exponentials(lanes_, n, largest_, e);
    return e;
  }

  const EncodedLanes& source_;
  size_t first_, row_;
  float* lanes_;
  double* room_;
  double largest_ = 0, scale_ = 0;
};

// Of the row that begins at element `first` of the tile. Never negative, but for rounding: both add up to the same.
float DivergenceOf(const LaneTile& tile, size_t first, size_t row, Scratch& scratch) {
  auto* const room = reinterpret_cast<double*>(scratch.workspace);
  RowExponentials base(tile.base, first, row, scratch.base, room);
  RowExponentials model(tile.models[0], first, row, scratch.base, room + RowExponentials::Room(row));
  double sums[kSumLanes] = {}, terms[kBlockLanes];
  for (size_t at = 0; at < row; at += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, row - at);
    Divergences(model.At(at, n), model.scale(), base.At(at, n), base.scale(), n, terms);
    AddUp(terms, n, sums);
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
                .kept_bytes = elements_ / row_ * sizeof(float),
                .scratch_bytes = 2 * RowExponentials::Room(row_) * sizeof(double)};
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
      KeepImportant(block.d[0], importance, block.n, threshold_, block.merged);
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
