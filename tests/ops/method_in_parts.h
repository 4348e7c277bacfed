// A method whose merger is wrapped in one that goes through the parts of its task vectors.
#pragma once

#include "ops/merger.h"
#include "ops/task_vector_parts.h"

namespace braid::test {

// `New`: NewDeltaMerger or NewMeasuredMerger. As in a plan, such a merge is not drafted.
template <auto New>
MethodInfo InParts(const MethodInfo& method) {
  MethodInfo wrapped = method;
  wrapped.make = [](const MethodInfo& its, const Coefficients& c, const TensorFacts& scope, Approach approach) {
    const Approach undrafted = approach == Approach::kDraft ? Approach::kPlain : approach;
    return New(its, c.model.size(), TaskVectorPart(its, c, scope),
               FindMethod(its.name)->make(its, c, scope, undrafted));
  };
  return wrapped;
}

}  // namespace braid::test
