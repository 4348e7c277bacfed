// What ram and ramplus_tl share: which entries changed, and how many models changed an element.
#pragma once

#include "ops/delta_blocks.h"

namespace braid {

// counts[i] = models with |d_i| > epsilon.
void CountChanged(const DeltaBlock& block, float epsilon, float* counts);

// merged = sum of the changed entries: times unique[model] where one model changed the element, otherwise divided by
// the number of models that did. `unique` nullptr: 1 for all.
void AddChanged(const DeltaBlock& block, float epsilon, const float* counts, const float* unique);

}  // namespace braid
