// Samples of a scope: short runs of lanes, evenly over all its elements.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/merger.h"
#include "pipeline/plan.h"

namespace braid {

class ScopeRun;

// Of a tensor whose tiles are resident. Many short runs cost nothing there, and lanes close to each other are alike.
inline constexpr uint64_t kResidentRuns = 1024, kResidentRunLanes = 64;

// visit(first, lanes) for the runs of a tensor that begin in [first, first + count).
template <typename Visit>
void ForEachSampleRun(uint64_t elements, uint64_t first, uint64_t count, Visit visit) {
  const uint64_t stride = std::max(elements / kResidentRuns, kResidentRunLanes);
  for (uint64_t at = (first + stride - 1) / stride * stride; at + kResidentRunLanes <= first + count; at += stride)
    visit(at, kResidentRunLanes);
}

// Reads a sample of a scope that is streamed, by several threads, and counts it into the accumulators of its present
// round. Throws Error.
void SampleScope(const Plan& plan, ScopeRun* run);

}  // namespace braid
