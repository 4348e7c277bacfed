// ramplus_tl: ram, with what one model alone changed made stronger the more of its changes it shares with others.
// methods.md, row `ram`. "tl": its counts are those of the tensor.
#include <cmath>

#include "ops/ram.h"

namespace braid {
namespace {

enum Parameter : size_t { kLambda, kEpsilon, kR, kAlpha };

// Per model: elements that it and others changed, and those that it alone did.
class ChangeCounts : public Accumulator {
 public:
  explicit ChangeCounts(size_t models) : shared(models), unique(models) {}
  std::vector<uint64_t> shared, unique;

  void Add(Accumulator* other) override {
    const auto& o = static_cast<const ChangeCounts&>(*other);
    for (size_t m = 0; m < shared.size(); ++m) shared[m] += o.shared[m], unique[m] += o.unique[m];
  }
};

class RamPlusMerger : public Merger {
 public:
  explicit RamPlusMerger(const Coefficients& c)
      : epsilon_(static_cast<float>(c.shared[kEpsilon])), r_(static_cast<float>(c.shared[kR])),
        alpha_(static_cast<float>(c.shared[kAlpha])), factors_(c.model.size(), 1.0f) {}

  size_t statistics_rounds() const override { return 1; }
  RoundSpec round(size_t r) const override {
    if (r > 0) return {.name = "merge"};
    return {.name = "changes", .accumulator_bytes = sizeof(ChangeCounts) + factors_.size() * 2 * sizeof(uint64_t)};
  }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }
  std::unique_ptr<Accumulator> NewAccumulator(size_t) const override {
    return std::make_unique<ChangeCounts>(factors_.size());
  }

  void Accumulate(size_t, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                  Accumulator* accumulator, BlockSums) const override {
    auto& total = static_cast<ChangeCounts&>(*accumulator);
    float counts[kBlockLanes];
    ForEachDeltaBlock(tile, scratch, [&](const DeltaBlock& block) {
      CountChanged(block, epsilon_, counts);
      for (size_t v = 0; v < block.d.size(); ++v) {
        const float* const d = block.d[v];
        uint32_t shared = 0, changed = 0;
        for (size_t i = 0; i < block.n; ++i) {
          const uint32_t is_changed = std::fabs(d[i]) > epsilon_ ? 1 : 0, by_many = counts[i] > 1 ? 1 : 0;
          changed += is_changed, shared += is_changed & by_many;
        }
        total.shared[block.models[v]] += shared;
        total.unique[block.models[v]] += changed - shared;
      }
    });
  }

  // float32 steps in mergekit's order.
  void Finish(size_t, Accumulator* accumulator, std::span<const double>) override {
    const auto& total = static_cast<const ChangeCounts&>(*accumulator);
    for (size_t m = 0; m < factors_.size(); ++m) {
      if (total.shared[m] == 0) continue;
      const float ratio = static_cast<float>(total.shared[m]) / std::max(static_cast<float>(total.unique[m]), epsilon_);
      factors_[m] = 1 + r_ * std::clamp(ratio, 0.0f, alpha_);
    }
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    float changed_by[kBlockLanes];
    const auto lambda = static_cast<float>(c.shared[kLambda]);
    MergeDeltaBlocks(tile, lambda, scratch, type, out, counts, [&](const DeltaBlock& block) {
      CountChanged(block, epsilon_, changed_by);
      AddChanged(block, epsilon_, changed_by, factors_.data());
    });
  }

 private:
  float epsilon_, r_, alpha_;
  std::vector<float> factors_;   // per model, of what it alone changed
};

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<RamPlusMerger>(c);
}

}  // namespace

MethodInfo RamPlusTl() {
  return {.name = "ramplus_tl",
          .summary = "ram, with unshared changes made stronger in models that share many",
          .source = "Reinforced Agent Merging, arXiv 2601.13572 (RAM+, counts per tensor)",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter(),
                         {.name = "epsilon", .default_value = 1e-5, .min = 0,
                          .help = "an entry of a task vector counts as changed above this magnitude"},
                         {.name = "r", .default_value = 0.1, .help = "how much stronger, per share of shared changes"},
                         {.name = "alpha", .default_value = 0.2, .min = 0, .help = "the share counts up to this much"}},
          .make = Make};
}

}  // namespace braid
