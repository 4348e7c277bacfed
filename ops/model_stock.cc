// model_stock: methods.md, row of that name. Between the base and the average, as far as the fine-tunes agree in
// direction.

#include <algorithm>

#include "ops/gram_merger.h"

namespace braid {
namespace {

constexpr double kLeastNormProduct = 1e-6;
constexpr double kLeastDenominator = 1e-6;   // below it there is no estimate: the base

bool FilterWise(const MethodInfo& method, const Coefficients& c) {
  return c.shared[method.At("filter_wise")] != 0;
}

class ModelStockMerger : public GramMerger {
 public:
  ModelStockMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(method, AllModels(c), FilterWise(method, c)) {}

 protected:
  void Solve(const Gram& gram, std::span<double> shares) const override {
    const auto n = static_cast<double>(gram.size());
    double cosines = 0;
    for (size_t i = 0; i < gram.size(); ++i)
      for (size_t j = i + 1; j < gram.size(); ++j) {
        const double norms = std::sqrt(gram.Product(i, i) * gram.Product(j, j));
        cosines += std::clamp(gram.Product(i, j) / std::max(norms, kLeastNormProduct), -1.0, 1.0);
      }
    const double cosine = cosines / (n * (n - 1) / 2), denominator = 1 + (n - 1) * cosine;
    const double t = std::fabs(denominator) < kLeastDenominator ? 0 : n * cosine / denominator;
    std::fill(shares.begin(), shares.end(), t / n);
  }
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<ModelStockMerger>(method, c);
}

}  // namespace

MethodInfo ModelStock() {
  return {.name = "model_stock",
          .summary = "between the base and the average, as far as the fine-tunes agree in direction",
          .source = "Jang et al., Model Stock, ECCV 2024, arXiv 2403.19522, Equation 2",
          .base = BaseUse::kRequired,
          .least_models = 2,
          .parameters = {{.name = "filter_wise", .kind = ParameterKind::kFlag,
                          .help = "a ratio of its own for each row, along the last axis"},
                         LambdaParameter()},
          .by_rows = FilterWise,
          .adds_float32 = false,
          .make = Make};
}

}  // namespace braid
