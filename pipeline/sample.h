// Samples of a scope: short runs of lanes, evenly over all its elements.
#pragma once

#include <cstdint>

#include "ops/merger.h"
#include "pipeline/plan.h"

namespace braid {

class ScopeRun;

// The runs that begin in a tile that is resident, of a tensor of so many elements, into the accumulator of the scope's
// present round.
void SampleTile(const LaneTile& tile, uint64_t elements, const Coefficients& coefficients, const ScopeRun& scope,
                Scratch& scratch, Accumulator* accumulator);

// Reads a sample of a scope that is streamed, by several threads, and counts it into the accumulators of its present
// round. Throws Error.
void SampleScope(const Plan& plan, ScopeRun* run);

}  // namespace braid
