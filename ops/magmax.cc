// magmax: of each element, the entry of largest magnitude. methods.md, row of that name.
#include <cmath>

#include "ops/elementwise_merger.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

BRAID_WIDE_VECTORS void Largest(const Coefficients&, const DeltaBlock& block) {
  float* const largest = block.merged;
  std::fill_n(largest, block.n, 0.0f);
  for (const float* d : block.d)   // the first listed stays among equals
    for (size_t i = 0; i < block.n; ++i) largest[i] = std::fabs(d[i]) > std::fabs(largest[i]) ? d[i] : largest[i];
}

}  // namespace

MethodInfo MagMax() {
  return {.name = "magmax",
          .summary = "of each element, the change of largest magnitude",
          .source = "Marczak et al., MagMax, ECCV 2024, arXiv 2407.06322",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter()},
          .make = MakeElementwise<Largest>};
}

}  // namespace braid
