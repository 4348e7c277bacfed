// linear and average: sum of w_i x_i, divided by the sum of the weights. methods.md, row `linear`.

#include <algorithm>

#include "ops/mergers_internal.h"

namespace braid {

float SumOfWeights(const std::vector<float>& weights) {
  float sums[4] = {0, 0, 0, 0};
  const size_t whole = weights.size() / 4 * 4;
  for (size_t i = 0; i < whole; ++i) sums[i % 4] += weights[i];
  for (size_t i = whole; i < weights.size(); ++i) sums[0] += weights[i];
  for (size_t j = 1; j < 4; ++j) sums[0] += sums[j];
  return sums[0];
}

namespace {

class LinearMerger : public Merger {
 public:
  explicit LinearMerger(const MethodInfo& method)
      : weight_(method.IndexOf("weight")), normalize_(method.IndexOf("normalize")) {}

  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t model, const Coefficients& c) const override { return WeightOf(c, model) != 0; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    scratch.weights.clear();
    // A model that lacks the tensor (on_missing = "skip") does not count in the divisor.
    for (size_t m = 0; m < tile.models.size(); ++m)
      scratch.weights.push_back(tile.models[m].bytes == nullptr ? 0.0f : WeightOf(c, m));
    const bool divide = normalize_ < 0 || c.shared[static_cast<size_t>(normalize_)] != 0;
    const float divisor = SumOfWeights(scratch.weights);
    scratch.weights.clear();
    scratch.present.clear();
    for (size_t m = 0; m < tile.models.size(); ++m) {
      if (tile.models[m].bytes == nullptr) continue;
      scratch.present.push_back(scratch.models[m]);
      scratch.weights.push_back(WeightOf(c, m));
    }
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      for (size_t m = 0; m < tile.models.size(); ++m)
        if (tile.models[m].bytes != nullptr) DecodeLanesAt(tile.models[m], start, n, scratch.models[m]);
      WeightedSum(scratch.present.data(), scratch.present.size(), scratch.weights.data(), divide, divisor, n,
                  scratch.out);
      EncodeLanes(type, scratch.out, n, out + start * LaneBytes(type), &counts->non_finite);
    }
  }

 private:
  float WeightOf(const Coefficients& c, size_t model) const {
    return weight_ < 0 ? 1.0f : static_cast<float>(c.model[model][static_cast<size_t>(weight_)]);
  }

  int weight_, normalize_;  // indices of the parameters, -1 when the method has none
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients&, const TensorFacts&, Approach) {
  return std::make_unique<LinearMerger>(method);
}

std::string CheckWeights(const MethodInfo& method, const Coefficients& c) {
  const auto weight = method.At("weight"), normalize = method.At("normalize");
  if (c.shared[normalize] == 0) return "";
  float sum = 0;
  for (const auto& model : c.model) sum += static_cast<float>(model[weight]);
  return sum == 0 ? "the weights add up to 0, and normalize divides by that sum" : "";
}

}  // namespace

MethodInfo Linear() {
  return {.name = "linear",
          .summary = "weighted average of the models",
          .source = "Wortsman et al., Model Soups, ICML 2022, arXiv 2203.05482",
          .base = BaseUse::kIsASource,
          .parameters = {WeightParameter(), NormalizeParameter(true)},
          .check = CheckWeights,
          .make = Make};
}

MethodInfo Average() {
  return {.name = "average",
          .summary = "plain average of the models",
          .source = "Wortsman et al., Model Soups, ICML 2022, arXiv 2203.05482",
          .base = BaseUse::kIsASource,
          .make = Make};
}

}  // namespace braid
