// A plain scalar reference of dare, breadcrumbs, della and metagpt, beside reference.h: what ops/ must equal bit for
// bit. Written from methods.md: ranks by std::stable_sort, Philox from its paper, loops.
#pragma once

#include <numeric>

#include "tests/ops/reference.h"

namespace braid::reference {

enum class Sparsifier { kDare, kBreadcrumbs, kDella };

struct SparseModel {
  std::vector<float> lanes = {};
  double weight = 1, density = 1, gamma = 0.01, epsilon = 0.15;
};

struct SparseMerge {
  Sparsifier sparsifier = Sparsifier::kDare;
  size_t row = 1;               // of the last axis
  bool by_rows = false;         // breadcrumbs
  uint64_t seed = 0, tensor_key = 0;
  bool rescale = false;
  bool paper = false;           // rescale_norm: by the density, or by each entry's probability
  bool elect = false, normalize = false;
  float lambda = 1;
  std::vector<float> base = {};
  std::vector<SparseModel> models = {};
};

// --- draws ------------------------------------------------------------------------------------------------

// 31 bits for an element: word e / 16 % 4 of counter e / 64 * 16 + e % 16.
inline uint32_t Draw(uint64_t seed, uint64_t model, uint64_t tensor_key, uint64_t element) {
  const uint64_t number = element / 64 * 16 + element % 16;
  const uint64_t high = model << 48 | number;
  uint32_t c[4] = {static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32), static_cast<uint32_t>(tensor_key),
                   static_cast<uint32_t>(tensor_key >> 32)};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int r = 0; r < 10; ++r) {
    const uint64_t left = uint64_t{0xD2511F53} * c[0], right = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(right >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(right),
                              static_cast<uint32_t>(left >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(left)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9, k[1] += 0xBB67AE85;
  }
  return c[element / 16 % 4] >> 1;
}

inline bool Happens(double probability, uint32_t draw) {
  return draw < std::min(std::floor(probability * 0x1p31), 0x1p31 - 1);
}

// --- which entries stay, and what they are divided by -----------------------------------------------------

// rank[i] of each entry within its part of `size` lanes.
inline std::vector<size_t> Ranks(const std::vector<float>& d, size_t size, bool largest_first) {
  std::vector<size_t> ranks(d.size());
  for (size_t begin = 0; begin < d.size(); begin += size) {
    std::vector<size_t> order(std::min(size, d.size() - begin));
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return largest_first ? Key(d[a]) > Key(d[b]) : Key(d[a]) < Key(d[b]);
    });
    for (size_t r = 0; r < order.size(); ++r) ranks[order[r]] = r;
  }
  return ranks;
}

inline std::vector<bool> Stays(const SparseMerge& merge, size_t m, const std::vector<float>& d,
                               std::vector<float>* divisors) {
  const SparseModel& model = merge.models[m];
  const size_t n = d.size();
  std::vector<bool> stays(n, model.density >= 1);
  divisors->assign(n, 1.0f);
  if (model.density >= 1 || model.density <= 0) return stays;
  if (merge.sparsifier == Sparsifier::kBreadcrumbs) {
    const size_t size = merge.by_rows ? merge.row : n;
    const auto kept = static_cast<size_t>(model.density * static_cast<double>(size));
    const size_t dropped = std::min(static_cast<size_t>(model.gamma * static_cast<double>(size)), size - kept);
    const std::vector<size_t> ranks = Ranks(d, size, true);
    for (size_t i = 0; i < n; ++i) stays[i] = ranks[i] >= dropped && ranks[i] < dropped + kept;
    return stays;
  }
  std::vector<size_t> ranks(n);
  if (merge.sparsifier == Sparsifier::kDella) ranks = Ranks(d, merge.row, false);
  for (size_t i = 0; i < n; ++i) {
    double p = model.density;
    if (merge.sparsifier == Sparsifier::kDella && merge.row > 1)
      p = (model.density - model.epsilon) +
          2 * model.epsilon / static_cast<double>(merge.row - 1) * static_cast<double>(ranks[i]);
    stays[i] = Happens(p, Draw(merge.seed, m, merge.tensor_key, i));
    if (merge.sparsifier == Sparsifier::kDella && merge.rescale && merge.paper) (*divisors)[i] = static_cast<float>(p);
  }
  return stays;
}

// --- rescaling --------------------------------------------------------------------------------------------

// By rows: 16 interleaved sums per row, rows in order.
inline double L1Norm(const SparseMerge& merge, const std::vector<float>& d) {
  const bool rows = merge.sparsifier == Sparsifier::kDella ||
      (merge.sparsifier == Sparsifier::kBreadcrumbs && merge.by_rows);
  const auto all = [](float) { return true; };
  if (!rows) return SumOfMagnitudes(d, all);
  double total = 0;
  for (size_t begin = 0; begin < d.size(); begin += merge.row) {
    // A row may be longer than a reduction block, and is summed as one all the same.
    double lane[16] = {};
    for (size_t i = 0; i < merge.row; ++i) lane[i % 16] += std::fabs(static_cast<double>(d[begin + i]));
    for (size_t step = 8; step > 0; step /= 2)
      for (size_t i = 0; i < step; ++i) lane[i] += lane[i + step];
    total += lane[0];
  }
  return total;
}

inline float Factor(const SparseMerge& merge, size_t m, const std::vector<float>& d, const std::vector<float>& sparse) {
  const SparseModel& model = merge.models[m];
  if (!merge.rescale || model.density >= 1 || model.density <= 0) return 1;
  if (merge.paper && merge.sparsifier == Sparsifier::kDare) return static_cast<float>(1 / model.density);
  if (merge.paper && merge.sparsifier == Sparsifier::kDella) return 1;
  const double before = L1Norm(merge, d), after = L1Norm(merge, sparse);
  if (!std::isfinite(before) || !std::isfinite(after) || before < 1e-7 || after < 1e-7) return 1;
  return static_cast<float>(before / after);
}

// --- the merge --------------------------------------------------------------------------------------------

inline std::vector<float> MergeSparse(const SparseMerge& merge, uint64_t* conflicts) {
  const size_t n = merge.base.size();
  std::vector<std::vector<float>> task(merge.models.size());
  std::vector<double> weights;
  for (size_t m = 0; m < task.size(); ++m) {
    const SparseModel& model = merge.models[m];
    weights.push_back(model.weight);
    if (model.weight == 0) continue;
    std::vector<float> d(n), divisors;
    for (size_t i = 0; i < n; ++i) d[i] = model.lanes[i] - merge.base[i];
    const std::vector<bool> stays = Stays(merge, m, d, &divisors);
    task[m] = d;
    for (size_t i = 0; i < n; ++i) {
      if (!stays[i] && !std::isnan(d[i])) task[m][i] = 0;
      task[m][i] /= divisors[i];
    }
    const float factor = Factor(merge, m, d, task[m]);
    for (float& entry : task[m]) entry *= factor;
  }
  const ElementRule rule{.elect = merge.elect, .normalize = merge.normalize, .weight_sum = SumOfWeights(weights),
                         .lambda = merge.lambda};
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i) {
    std::vector<Voter> voters;
    for (size_t m = 0; m < task.size(); ++m)   // the difference of two infinities is as bad as a NaN, as in mergekit
      if (weights[m] != 0)
        voters.push_back({merge.models[m].lanes[i] - merge.base[i], task[m][i], static_cast<float>(weights[m])});
    bool conflict;
    out[i] = MergeElement(rule, merge.base[i], voters, &conflict);
    *conflicts += conflict;
  }
  return out;
}

}  // namespace braid::reference
