// slerp: methods.md, row of that name. Two models along the arc between their directions; more of them one after the
// other.

#include <algorithm>

#include "ops/gram_merger.h"

namespace braid {
namespace {

constexpr double kLeastNorm = 1e-8;        // a norm up to it counts as 1
constexpr double kAlmostParallel = 0.9995; // a cosine of larger magnitude: along the straight line

std::pair<double, double> Slerp(double xx, double yy, double xy, double t) {
  const double x_norm = std::sqrt(xx), y_norm = std::sqrt(yy);
  const bool small = x_norm <= kLeastNorm || y_norm <= kLeastNorm;
  const auto counted = [](double norm) { return norm > kLeastNorm ? norm : 1.0; };
  const double cosine = small ? std::clamp(xy / (counted(x_norm) * counted(y_norm)), -1.0, 1.0) : Cosine(xx, yy, xy);
  return std::fabs(cosine) > kAlmostParallel ? LinearShares(t) : SphericalShares(cosine, t);
}

double ParameterT(const MethodInfo& method, const Coefficients& c) { return c.shared[method.At("t")]; }

double WeightOf(const MethodInfo& method, const Coefficients& c, size_t m) {
  return c.model[m][method.At("weight")];
}

// t = 0 is the first model and t = 1 the second; the other is not needed. A weight of 0, which models without the
// tensor have, too: no part in it.
std::vector<size_t> Sources(const MethodInfo& method, const Coefficients& c) {
  std::vector<size_t> sources = ModelsWithWeight(method, c);
  const double t = ParameterT(method, c);
  if (sources.size() == 2 && t == 0) sources.pop_back();
  else if (sources.size() == 2 && t == 1) sources.erase(sources.begin());
  return sources;
}

class SlerpMerger : public GramMerger {
 public:
  SlerpMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(method, Sources(method, c), false), t_(ParameterT(method, c)) {
    for (size_t m = 0; m < c.model.size(); ++m) weights_.push_back(WeightOf(method, c, m));
  }

 protected:
  // Each step needs |x| and x y of the combination x so far, which the Gram matrix has.
  void Solve(const Gram& gram, std::span<double> shares) const override {
    shares[0] = 1;
    double weights = weights_[gram.models[0]];
    for (size_t i = 1; i < gram.size(); ++i) {
      double xx = 0, xy = 0;
      for (size_t j = 0; j < i; ++j) {
        xy += shares[j] * gram.Product(j, i);
        for (size_t k = 0; k < i; ++k) xx += shares[j] * shares[k] * gram.Product(j, k);
      }
      weights += weights_[gram.models[i]];
      const double t = t_ == kNoDefault ? weights_[gram.models[i]] / weights : t_;
      const auto [x, y] = Slerp(std::max(xx, 0.0), gram.Product(i, i), xy, t);
      for (size_t j = 0; j < i; ++j) shares[j] *= x;
      shares[i] = y;
    }
  }

 private:
  double t_;
  std::vector<double> weights_;
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<SlerpMerger>(method, c);
}

std::string Check(const MethodInfo& method, const Coefficients& c) {
  double sum = 0;
  size_t set = 0;
  bool cancels = false;
  for (size_t m = 0; m < c.model.size(); ++m) {
    const double weight = WeightOf(method, c, m);
    if (weight == kNoDefault) continue;
    ++set;
    sum += weight;
    cancels |= weight != 0 && sum == 0;
  }
  if (ParameterT(method, c) != kNoDefault) {
    if (c.model.size() > 2)
      return "t is given, which says where to stop between two models; more than two take a weight each";
    for (size_t m = 0; m < c.model.size(); ++m)   // 0: the model lacks the tensor
      if (const double weight = WeightOf(method, c, m); weight != kNoDefault && weight != 0)
        return "both t and weights are given";
    return "";
  }
  if (set < c.model.size())
    return c.model.size() == 2 ? "there is neither t nor a weight for each model" : "there is no weight for each model";
  if (cancels) return "the weights up to one of the models add up to 0";
  return sum == 0 ? "all weights are 0" : "";
}

}  // namespace

MethodInfo Slerp() {
  return {.name = "slerp",
          .summary = "along the arc between two models; more of them one after the other",
          .source = "Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985",
          .base = BaseUse::kIsFirst,
          .least_models = 2,
          .parameters = {{.name = "t", .default_value = kNoDefault,
                          .help = "place between two models: 0 is the first (the base), 1 the second"},
                         {.name = "weight", .scope = ParameterScope::kModel, .default_value = kNoDefault,
                          .help = "share of this model, instead of t; for more than two models"}},
          .check = Check,
          .make = Make};
}

}  // namespace braid
