// nuslerp: methods.md, row of that name. Slerp of two models, or of their task vectors, by weights; over whole tensors,
// rows or columns.

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
  return c.shared[method.At(name)];
}

// mergekit says it with two flags, of which nuslerp_row_wise means the first axis.
Axis AxisOf(const MethodInfo& method, const Coefficients& c) {
  const auto axis = static_cast<Axis>(Shared(method, c, "axis"));
  if (axis != Axis::kAll || Shared(method, c, "nuslerp_flatten") != 0) return axis;
  return Shared(method, c, "nuslerp_row_wise") != 0 ? Axis::kFirst : Axis::kLast;
}

bool ByRows(const MethodInfo& method, const Coefficients& c) { return AxisOf(method, c) == Axis::kLast; }
bool ByColumns(const MethodInfo& method, const Coefficients& c) { return AxisOf(method, c) == Axis::kFirst; }

double PlaceBetween(const MethodInfo& method, const Coefficients& c) {
  const auto weight = method.At("weight");
  const double sum = c.model[0][weight] + c.model[1][weight];
  return std::fabs(sum) < kLeastWeightSum ? 0.5 : c.model[1][weight] / sum;
}

// The coefficients of x and y from their products.
std::pair<double, double> Shares(double xx, double yy, double xy, double t) {
  const double x_norm = std::sqrt(xx), y_norm = std::sqrt(yy);
  const bool small = x_norm < kLeastNorm || y_norm < kLeastNorm;
  const double clamped = std::max(x_norm, kLeastNorm) * std::max(y_norm, kLeastNorm);
  const double cosine = small ? std::clamp(xy / clamped, -1.0, 1.0) : Cosine(xx, yy, xy);
  const bool collinear = 1 - cosine * cosine <= kLeastSquareOfSine;
  return collinear ? LinearShares(t) : SphericalShares(cosine, t);
}

class NuslerpMerger : public GramMerger {
 public:
  NuslerpMerger(const MethodInfo& method, const Coefficients& c)
      : GramMerger(method, ModelsWithWeight(method, c), ByRows(method, c)), t_(PlaceBetween(method, c)) {}

 protected:
  void Solve(const Gram& gram, std::span<double> shares) const override {
    std::tie(shares[0], shares[1]) = Shares(gram.Product(0, 0), gram.Product(1, 1), gram.Product(0, 1), t_);
  }

 private:
  double t_;
};

// Over the first axis: a coefficient for each column and model. Within a group of slices (ColumnGroup) a column's
// products are added row by row, groups are added in their order, so that no figure depends on tiles. Sums take 24
// bytes for each column of a group, and what is found 16 bytes for each column until the tensor is merged.
class NuslerpColumns : public Merger {
 public:
  NuslerpColumns(const MethodInfo& method, const Coefficients& c, const TensorFacts& tensor)
      : lambda_(method), t_(PlaceBetween(method, c)), columns_(tensor.slice), group_(ColumnGroup(tensor)) {}

  size_t statistics_rounds() const override { return 1; }
  RoundSpec round(size_t r) const override {
    if (r == 1) return {.name = "merge"};
    return {.name = "inner products of columns", .sums = kProducts * columns_,
            .kept_bytes = 2 * columns_ * sizeof(double)};
  }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Accumulate(size_t, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch, Accumulator*,
                  BlockSums sums) const override {
    for (size_t start = 0; start < tile.count; start += group_) {
      const size_t rows = std::min(group_, tile.count - start) / columns_, group = (tile.first + start) / group_;
      for (size_t column = 0; column < columns_; column += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, columns_ - column);
        scratch.partial.assign(kProducts * kBlockLanes, 0.0);
        double* const xx = scratch.partial.data();
        double* const yy = xx + kBlockLanes;
        double* const xy = yy + kBlockLanes;
        for (size_t row = 0; row < rows; ++row) {
          Widen(tile, start + row * columns_ + column, n, scratch);
          AddLaneProducts(scratch.wide[0], scratch.wide[0], n, xx);
          AddLaneProducts(scratch.wide[1], scratch.wide[1], n, yy);
          AddLaneProducts(scratch.wide[0], scratch.wide[1], n, xy);
        }
        for (size_t i = 0; i < n; ++i)
          for (size_t q = 0; q < kProducts; ++q)
            sums.data[(kProducts * (column + i) + q) * sums.stride + group] = scratch.partial[q * kBlockLanes + i];
      }
    }
  }

  void Finish(size_t, Accumulator*, std::span<const double> sums) override {
    for (auto& shares : shares_) shares.resize(columns_);
    for (size_t i = 0; i < columns_; ++i)
      std::tie(shares_[0][i], shares_[1][i]) =
          Shares(sums[kProducts * i], sums[kProducts * i + 1], sums[kProducts * i + 2], t_);
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    const double lambda = lambda_.Of(c, tile), scales[] = {lambda, lambda};
    const double* const terms[] = {scratch.wide[0], scratch.wide[1]};
    for (size_t row = 0; row < tile.count; row += columns_)
      for (size_t column = 0; column < columns_; column += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, columns_ - column), start = row + column;
        Widen(tile, start, n, scratch);
        for (size_t m : {0, 1}) MultiplyLanes(shares_[m].data() + column, n, scratch.wide[m]);
        CombineLanes(terms, 2, scales, tile.base.bytes != nullptr ? scratch.base : nullptr, n, RoundingFor(type),
                     scratch.out);
        EncodeLanes(type, scratch.out, n, out + start * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
      }
  }

 private:
  static constexpr size_t kProducts = 3;

  static void Widen(const LaneTile& tile, size_t start, size_t n, Scratch& scratch) {
    WidenBlock(tile, tile.base.bytes != nullptr, start, n, scratch, [](size_t) { return true; });
  }

  LambdaOfBase lambda_;
  double t_;
  size_t columns_, group_;   // elements of a slice, of a group of them
  std::vector<double> shares_[2];
};

// A tensor of fewer than two axes is one vector, and so is what has only one model.
std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& tensor, Approach) {
  if (ByColumns(method, c) && tensor.slice > 0 && ModelsWithWeight(method, c).size() == 2)
    return std::make_unique<NuslerpColumns>(method, c, tensor);
  return std::make_unique<NuslerpMerger>(method, c);
}

std::string Check(const MethodInfo& method, const Coefficients& c) {
  if (Shared(method, c, "axis") != 0 && Shared(method, c, "nuslerp_flatten") == 0)
    return "both axis and nuslerp_flatten are given, which say the same thing";
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
                          .help = "what is one vector: the whole tensor, each row (along the last axis), or each "
                                  "column (along the first)"},
                         {.name = "nuslerp_flatten", .kind = kFlag, .default_value = 1,
                          .help = "mergekit's name for axis = \"all\""},
                         {.name = "nuslerp_row_wise", .kind = kFlag,
                          .help = "mergekit's name, with nuslerp_flatten = false, for axis = \"first\"; otherwise it "
                                  "is \"last\""},
                         LambdaWithBaseParameter()},
          .by_rows = ByRows,
          .by_columns = ByColumns,
          .check = Check,
          .make = Make};
}

}  // namespace braid
