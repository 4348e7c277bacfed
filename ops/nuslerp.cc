// nuslerp: methods.md, row of that name. Slerp of two models, or of their task vectors, by weights; over whole tensors or rows.

#include <algorithm>
#include <tuple>

#include "ops/gram_merger.h"

namespace braid {
namespace {

constexpr double kLeastNorm = 1e-7;          // smaller norms count as this
constexpr double kLeastSquareOfSine = 1e-16; // below it, along the straight line
constexpr double kLeastWeightSum = 1e-6;     // below it, t is 1/2

enum class Axis { kAll, kLast, kFirst };

double Shared(const MethodInfo& method, const Coefficients& c, std::string_view name) {
  return c.shared[static_cast<size_t>(method.IndexOf(name))];
}

// mergekit says it with two flags, of which nuslerp_row_wise means the first axis.
Axis AxisOf(const MethodInfo& method, const Coefficients& c) {
  const auto axis = static_cast<Axis>(Shared(method, c, "axis"));
  if (axis != Axis::kAll || Shared(method, c, "nuslerp_flatten") != 0) return axis;
  return Shared(method, c, "nuslerp_row_wise") != 0 ? Axis::kFirst : Axis::kLast;
}

bool ByRows(const MethodInfo& method, const Coefficients& c) { return AxisOf(method, c) == Axis::kLast; }

double PlaceBetween(const MethodInfo& method, const Coefficients& c) {
  const auto weight = static_cast<size_t>(method.IndexOf("weight"));
  const double sum = c.model[0][weight] + c.model[1][weight];
  return std::fabs(sum) < kLeastWeightSum ? 0.5 : c.model[1][weight] / sum;
}

class NuslerpMerger : public GramMerger {
 public:
  NuslerpMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(ModelsWithWeight(method, c), ByRows(method, c)), t_(PlaceBetween(method, c)) {}

 protected:
  void Solve(const Gram& gram, std::span<double> shares) const override {
    const double xx = gram.Product(0, 0), yy = gram.Product(1, 1), xy = gram.Product(0, 1);
    const double x_norm = std::sqrt(xx), y_norm = std::sqrt(yy);
    const bool small = x_norm < kLeastNorm || y_norm < kLeastNorm;
    const double clamped = std::max(x_norm, kLeastNorm) * std::max(y_norm, kLeastNorm);
    const double cosine = small ? std::clamp(xy / clamped, -1.0, 1.0) : Cosine(xx, yy, xy);
    const bool collinear = 1 - cosine * cosine <= kLeastSquareOfSine;
    std::tie(shares[0], shares[1]) = collinear ? LinearShares(t_) : SphericalShares(cosine, t_);
  }

 private:
  double t_;
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<NuslerpMerger>(method, c);
}

std::string Check(const MethodInfo& method, const Coefficients& c) {
  if (Shared(method, c, "axis") != 0 && Shared(method, c, "nuslerp_flatten") == 0)
    return "both axis and nuslerp_flatten are given, which say the same thing";
  if (AxisOf(method, c) == Axis::kFirst)
    return "nuslerp over the first axis (axis = \"first\", mergekit's nuslerp_row_wise) is not supported yet";
  return "";
}

}  // namespace

MethodInfo Nuslerp() {
  using enum ParameterKind;
  return {.name = "nuslerp",
          .summary = "along the arc between two models, or between their task vectors, by weights",
          .source = "mergekit's NuSLERP; slerp: Shoemake, SIGGRAPH 1985",
          .base = BaseUse::kOptional,
          .least_models = 2,
          .most_models = 2,
          .parameters = {WeightParameter(),
                         {.name = "axis", .kind = kChoice, .choices = {"all", "last", "first"},
                          .help = "what is one vector: the whole tensor, each row (along the last axis), or each column "
                                  "(along the first)"},
                         {.name = "nuslerp_flatten", .kind = kFlag, .default_value = 1,
                          .help = "mergekit's name for axis = \"all\""},
                         {.name = "nuslerp_row_wise", .kind = kFlag,
                          .help = "mergekit's name, with nuslerp_flatten = false, for axis = \"first\"; otherwise it is \"last\""}},
          .by_rows = ByRows,
          .check = Check,
          .make = Make};
}

}  // namespace braid
