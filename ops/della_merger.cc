// della and della_linear: methods.md, rows of that name. The larger an entry's magnitude is within its row, the more
// probable it is to stay: p = (density - epsilon) + 2 epsilon rank / (entries - 1). Drawn by its place (ops/random.h).

#include "ops/row_draws.h"
#include "ops/row_ranks.h"
#include "ops/sparsify.h"

namespace braid {
namespace {

class DellaMerger : public SparseMerger {
 public:
  DellaMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope)
      : SparseMerger(method, elect, c, scope, true), ranks_(models(), row(), UnitLanes()),
        draws_(models(), row(), UnitLanes()), limits_(models()),
        seed_(static_cast<uint64_t>(c.shared[method.At("seed")])) {
    const bool by_probability = c.shared[method.At("rescale_norm")] != 0;
    divide_ = rescale() && by_probability;
    for (size_t m = 0; m < models(); ++m) {
      drawn_ |= IsDrawn(m);
      const double epsilon = c.model[m][method.At("epsilon")];
      limits_[m].low = density(m) - epsilon;
      limits_[m].step = 2 * epsilon / static_cast<double>(row() - 1);
      if (row() == 1) limits_[m] = {.low = density(m), .step = 0};
    }
    norms_ = rescale() && !by_probability && drawn_;
  }

 private:
  bool IsDrawn(size_t m) const { return sparse(m) && density(m) > 0; }

  size_t scratch_bytes() const override {
    return !drawn_ ? 0 : divide_ ? ranks_.WorkspaceBytes() : draws_.WorkspaceBytes();
  }

  RandomStream StreamOf(const LaneTile& tile, size_t m) const {
    return {.seed = seed_, .model = static_cast<uint32_t>(m), .tensor_key = tile.tensor.key};
  }

  void Prepare(const LaneTile& tile, const uint64_t*, const LaneUnit& unit, Scratch& scratch) const override {
    for (size_t m = 0; m < models(); ++m) {
      if (tile.models[m].bytes == nullptr || !IsDrawn(m)) continue;
      if (divide_) ranks_.Find(tile, m, unit, RowRanks::Order::kSmallestFirst, scratch);
      else draws_.Find(tile, m, unit, StreamOf(tile, m), limits_[m], scratch);
    }
  }

  void Keep(const LaneTile& tile, size_t m, const LaneUnit& unit, size_t start, size_t n, Scratch& scratch,
            float* d) const override {
    if (!IsDrawn(m)) return KeepKeys(0, 0, n, d);
    if (!divide_) return KeepBits(draws_.Of(m, scratch), start - unit.start, n, d);
    const RankLimits& limits = limits_[m];
    const uint32_t* const ranks = ranks_.Of(m, scratch) + (start - unit.start);
    DrawBits(StreamOf(tile, m), tile.first + start, n, scratch.draws);
    for (size_t i = 0; i < n; ++i) scratch.limits[i] = limits.Of(ranks[i]);
    KeepDrawn(scratch.draws, scratch.limits, n, d);
    for (size_t i = 0; i < n; ++i) d[i] /= static_cast<float>(limits.ProbabilityOf(ranks[i]));
  }

  RowRanks ranks_;   // where entries are divided by their probabilities, all ranks have to be known
  RowDraws draws_;   // elsewhere
  std::vector<RankLimits> limits_;
  uint64_t seed_;
  bool divide_ = false;   // each entry that stays, by its probability
  bool drawn_ = false;
};

template <bool kElect>
std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& scope, Approach) {
  return std::make_unique<DellaMerger>(method, kElect, c, scope);
}

std::string CheckProbabilities(const MethodInfo& method, const Coefficients& c) {
  const auto density = method.At("density"), epsilon = method.At("epsilon");
  for (const auto& model : c.model) {
    const double rho = model[density], eps = model[epsilon];
    if (rho <= 0 || rho >= 1) continue;   // nothing is drawn
    if (rho - eps <= 0 || rho + eps >= 1)
      return "density - epsilon and density + epsilon must lie between 0 and 1, without them: they are probabilities";
  }
  return "";
}

std::vector<ParameterSpec> Parameters(bool normalize) {
  return TaskVectorParameters(normalize, {
      DensityParameter("mean probability with which entries of a row stay"),
      {.name = "epsilon", .scope = ParameterScope::kModel, .default_value = 0.15, .min = 0, .max = 1,
       .help = "how much less probable the smallest entry is to stay than the mean, and how much more the largest"},
      RescaleParameter(true),
      {.name = "rescale_norm", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe,
       .choices = {"l1", "probability"},
       .help = "what rescale divides by: the share of the l1 norm that stayed, or each entry's probability (the "
               "paper)"},
      SeedParameter()});
}

}  // namespace

MethodInfo Della() {
  return {.name = "della",
          .summary = "drop entries at random, small ones of a row sooner; rescale, elect signs, merge what agrees",
          .source = "Deep et al., DELLA-Merging, 2024, arXiv 2406.11617",
          .base = BaseUse::kRequired,
          .parameters = Parameters(true),
          .by_rows = AlwaysByRows,
          .check = CheckProbabilities,
          .make = Make<true>};
}

MethodInfo DellaLinear() {
  return {.name = "della_linear",
          .summary = "drop entries at random, small ones of a row sooner; rescale, add up",
          .source = "Deep et al., DELLA-Merging, 2024, arXiv 2406.11617",
          .base = BaseUse::kRequired,
          .parameters = Parameters(false),
          .by_rows = AlwaysByRows,
          .check = CheckProbabilities,
          .make = Make<false>};
}

}  // namespace braid
