// A method that writes its merged task vector, times lambda, not the checkpoint: what ApplyDelta adds to a base.
//
// base + this, in float32, is the method's result to the last bit if the method says so (MethodInfo::HasDelta), and
// this is written as float32. An element to which nothing is added is 0, and one that comes out as NaN is NaN.
#pragma once

#include <memory>

#include "ops/merger.h"

namespace braid {

// `merger`: of a method that HasDelta. `largest_part`: the largest TaskVectorPart (ops/task_vector_parts.h) of the
// scope's tensors. It never drafts: Approach::kPlain or kSampled.
std::unique_ptr<Merger> NewDeltaMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part,
                                       std::unique_ptr<Merger> merger);

// The way back: one model, the delta, whose elements are added to the base's in float32. An element of which 0 is added
// keeps the base's bits. Not one of Methods(), for no recipe names it.
const MethodInfo& ApplyDelta();

}  // namespace braid
