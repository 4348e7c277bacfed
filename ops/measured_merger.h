// A method on task vectors that also measures what it merges to: one more statistics round, behind the method's own,
// finds two l1 norms over the scope: of the mean of the task vectors, and of what they are merged to before lambda
// scales it. For a scale that depends on them: LiNeS, Wang et al. 2025, arXiv 2410.17146; methods.md, row
// `layer_scale`.
//
// The mean is of the models that have the tensor and a weight there other than 0. An element that is infinite or NaN
// counts as 0: it shall not spoil the scale of a whole model. Sums are of reduction blocks, or of tile units.
#pragma once

#include <memory>

#include "ops/merger.h"

namespace braid {

// `merger`: of a method with a base and a lambda. In the round "norms" its coefficients have to have a lambda of 1.
// `largest_part`: the largest TaskVectorPart (ops/task_vector_parts.h) of the scope's tensors.
std::unique_ptr<Merger> NewMeasuredMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part,
                                          std::unique_ptr<Merger> merger);

}  // namespace braid
