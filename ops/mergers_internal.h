// The mergers behind NewMerger.
#pragma once

#include <memory>

#include "ops/merger.h"

namespace braid {

// ties and task_arithmetic (ops/task_vector_merger.cc).
std::unique_ptr<Merger> NewTaskVectorMerger(const MethodInfo& method, const Coefficients& coefficients,
                                            uint64_t elements, Approach approach);

// linear and average (ops/linear_merger.cc).
std::unique_ptr<Merger> NewLinearMerger(const MethodInfo& method, const Coefficients& coefficients);

inline void DecodeLanesAt(const EncodedLanes& source, size_t start, size_t n, float* lanes) {
  DecodeLanes(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), n, lanes);
}

// The sum of float32 weights as mergekit's tensors add up (torch.sum over a small vector): four interleaved
// float32 sums over the whole groups of four, the rest onto the first, then the other three onto it.
float SumOfWeights(const std::vector<float>& weights);

}  // namespace braid
