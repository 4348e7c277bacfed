// dare_linear and dare_ties: methods.md, rows of that name. Each entry of a task vector stays with probability
// `density`, drawn by its place (ops/random.h).

#include "ops/random.h"
#include "ops/sparse_merger.h"
#include "ops/sparsify.h"

namespace braid {
namespace {

class DareMerger : public SparseMerger {
 public:
  DareMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope)
      : SparseMerger(method, elect, c, scope, false),
        seed_(static_cast<uint64_t>(c.shared[method.At("seed")])) {
    const bool by_density = c.shared[method.At("rescale_norm")] != 0;
    for (size_t m = 0; m < models(); ++m) {
      if (!rescale() || !sparse(m) || density(m) <= 0) continue;
      if (by_density) UseFactor(m, 1 / density(m));
      else norms_ = true;
    }
  }

 private:
  void Keep(const LaneTile& tile, size_t m, const LaneUnit&, size_t start, size_t n, Scratch& scratch,
            float* d) const override {
    const RandomStream stream{.seed = seed_, .model = static_cast<uint32_t>(m), .tensor_key = tile.tensor.key};
    DrawBits(stream, tile.first + start, n, scratch.draws);
    std::fill_n(scratch.limits, n, LimitOf(density(m)));
    KeepDrawn(scratch.draws, scratch.limits, n, d);
  }

  uint64_t seed_;
};

template <bool kElect>
std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& scope, Approach) {
  return std::make_unique<DareMerger>(method, kElect, c, scope);
}

std::vector<ParameterSpec> Parameters() {
  return TaskVectorParameters(false, {
      DensityParameter("probability with which each entry of the task vector stays"), RescaleParameter(true),
      {.name = "rescale_norm", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe,
       .choices = {"l1", "density"},
       .help = "what rescale divides by: the share of the l1 norm that stayed, or the density (the paper)"},
      SeedParameter()});
}

}  // namespace

MethodInfo DareLinear() {
  return {.name = "dare_linear",
          .summary = "drop entries of task vectors at random, rescale the others, add up",
          .source = "Yu et al., Language Models are Super Mario, ICML 2024, arXiv 2311.03099",
          .base = BaseUse::kRequired,
          .parameters = Parameters(),
          .make = Make<false>};
}

MethodInfo DareTies() {
  return {.name = "dare_ties",
          .summary = "drop entries of task vectors at random, rescale the others, elect signs, merge what agrees",
          .source = "Yu et al., Language Models are Super Mario, ICML 2024, arXiv 2311.03099; TIES: arXiv 2306.01708",
          .base = BaseUse::kRequired,
          .parameters = Parameters(),
          .make = Make<true>};
}

}  // namespace braid
