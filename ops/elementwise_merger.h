// Methods that merge each element by itself, in one round: base + lambda f(d_1, ..., d_n), d_i = x_i - base.
//
// Such a method is one file: its MethodInfo, and f over a block of lanes. f is a plain loop with separately rounded
// float32 steps and without branches, so that the compiler can use any instruction set and all give the same bits.
#pragma once

#include <memory>

#include "ops/delta_blocks.h"

namespace braid {

// Fills block.merged from block.d, which may be empty (then it is all 0). Pure; called concurrently.
using ElementwiseFunction = void (*)(const Coefficients& c, const DeltaBlock& block);

std::unique_ptr<Merger> NewElementwiseMerger(const MethodInfo& method, ElementwiseFunction function);

// For MethodInfo::make.
template <ElementwiseFunction kFunction>
std::unique_ptr<Merger> MakeElementwise(const MethodInfo& method, const Coefficients&, const TensorFacts&, Approach) {
  return NewElementwiseMerger(method, kFunction);
}

}  // namespace braid
