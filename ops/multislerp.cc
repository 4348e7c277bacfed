// multislerp: methods.md, row of that name. The weighted mean of the directions, as long as the weighted mean of the
// norms.

#include <algorithm>
#include <cmath>

#include "ops/gram_merger.h"
#include "ops/trigonometry.h"

namespace braid {
namespace {

bool Normalizes(const MethodInfo& method, const Coefficients& c) {
  return c.shared[method.At("normalize_weights")] != 0;
}

// Where only one model has a weight. A recipe's only model comes out as it is, whatever its weight.
double ShareAlone(const MethodInfo& method, const Coefficients& c) {
  const std::vector<size_t> models = ModelsWithWeight(method, c);
  if (Normalizes(method, c) || c.model.size() == 1 || models.size() != 1) return 1;
  return std::fabs(c.model[models[0]][method.At("weight")]);
}

class MultislerpMerger : public GramMerger {
 public:
  MultislerpMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(method, ModelsWithWeight(method, c), false, ShareAlone(method, c)), eps_(c.shared[method.At("eps")]),
        normalize_(Normalizes(method, c)) {
    for (const auto& model : c.model) weights_.push_back(model[method.At("weight")]);
  }

 protected:
  // mergekit goes on from the mean direction along the sum of the tangents, which is 0, by the angle eps.
  void Solve(const Gram& gram, std::span<double> shares) const override {
    double weights = 0, norm = 0, square = 0;
    for (size_t m : gram.models) weights += weights_[m];
    const auto weight = [&](size_t i) {
      return normalize_ ? weights_[gram.models[i]] / weights : weights_[gram.models[i]];
    };
    for (size_t i = 0; i < gram.size(); ++i) {
      norm += weight(i) * gram.Norm(i);
      const double length = gram.Norm(i) + eps_;
      shares[i] = length == 0 ? 0 : weight(i) / length;
    }
    for (size_t i = 0; i < gram.size(); ++i)
      for (size_t j = 0; j < gram.size(); ++j) square += shares[i] * shares[j] * gram.Product(i, j);
    const double mean = std::sqrt(std::max(square, 0.0));
    if (mean < eps_ || mean == 0) {
      if (gram.size() > 2) throw NoMerge("the weighted directions of the models cancel out; other weights may help");
      for (size_t i = 0; i < gram.size(); ++i) shares[i] = weight(i);
    } else {
      for (double& share : shares) share *= norm / mean * Cos(eps_);
    }
  }

 private:
  double eps_;
  bool normalize_;
  std::vector<double> weights_;
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<MultislerpMerger>(method, c);
}

std::string Check(const MethodInfo& method, const Coefficients& c) {
  if (!Normalizes(method, c)) return "";
  const auto weight = method.At("weight");
  double sum = 0;
  for (size_t m : ModelsWithWeight(method, c)) sum += c.model[m][weight];
  return sum == 0 && !ModelsWithWeight(method, c).empty()
      ? "the weights add up to 0, and normalize_weights divides by that sum" : "";
}

}  // namespace

MethodInfo Multislerp() {
  return {.name = "multislerp",
          .summary = "weighted mean of the directions, as long as the weighted mean of the norms",
          .source = "Goddard, MultiSLERP, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
          .base = BaseUse::kOptional,
          .parameters = {WeightParameter(),
                         {.name = "normalize_weights", .kind = ParameterKind::kFlag, .default_value = 1,
                          .help = "divide the weights by their sum"},
                         {.name = "eps", .default_value = 1e-8, .min = 0, .max = 1,
                          .help = "added to norms; a mean direction shorter than this is none"},
                         LambdaWithBaseParameter()},
          .check = Check,
          .make = Make};
}

}  // namespace braid
