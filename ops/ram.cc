// ram: what one model changed is added whole, what several changed is averaged over those. methods.md, row `ram`.
#include "ops/ram.h"

#include <cmath>

#include "ops/elementwise_merger.h"
#include "ops/wide_vectors.h"

namespace braid {

BRAID_WIDE_VECTORS void CountChanged(const DeltaBlock& block, float epsilon, float* counts) {
  std::fill_n(counts, block.n, 0.0f);
  for (const float* d : block.d)
    for (size_t i = 0; i < block.n; ++i) counts[i] += std::fabs(d[i]) > epsilon ? 1.0f : 0.0f;
}

BRAID_WIDE_VECTORS void AddChanged(const DeltaBlock& block, float epsilon, const float* counts, const float* unique) {
  std::fill_n(block.merged, block.n, 0.0f);
  for (size_t v = 0; v < block.d.size(); ++v) {
    const float* const d = block.d[v];
    const float factor = unique == nullptr ? 1.0f : unique[block.models[v]];
    for (size_t i = 0; i < block.n; ++i) {
      const float alone = d[i] * factor, shared = d[i] / std::max(counts[i], 1.0f);
      const float part = counts[i] > 1 ? shared : alone;
      block.merged[i] += std::fabs(d[i]) > epsilon ? part : 0.0f;
    }
  }
}

namespace {

enum Parameter : size_t { kLambda, kEpsilon };

void Ram(const Coefficients& c, const DeltaBlock& block) {
  const auto epsilon = static_cast<float>(c.shared[kEpsilon]);
  float counts[kBlockLanes];
  CountChanged(block, epsilon, counts);
  AddChanged(block, epsilon, counts, nullptr);
}

}  // namespace

MethodInfo Ram() {
  return {.name = "ram",
          .summary = "add what one model changed, average what several changed",
          .source = "Reinforced Agent Merging, arXiv 2601.13572",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter(),
                         {.name = "epsilon", .default_value = 1e-5, .min = 0,
                          .help = "an entry of a task vector counts as changed above this magnitude"}},
          .make = MakeElementwise<Ram>};
}

}  // namespace braid
