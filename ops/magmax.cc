// magmax: of each element, the entry of largest magnitude. methods.md, row of that name.
#include <cmath>

#include "ops/elementwise_merger.h"

namespace braid {
namespace {

void Largest(const Coefficients&, const DeltaBlock& block) {
  std::fill_n(block.merged, block.n, 0.0f);
  for (const float* d : block.d)   // the first listed stays among equals
    for (size_t i = 0; i < block.n; ++i) block.merged[i] = std::fabs(d[i]) > std::fabs(block.merged[i]) ? d[i] : block.merged[i];
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
