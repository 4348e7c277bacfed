// What a checkpoint holds, from its headers; with statistics also from its data, in one pass in file order.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "io/checkpoint.h"

namespace braid {

// Of one tensor of a lane type, in the values of its own type. NaN and Inf are counted and otherwise left out.
// The sums are float64 by the fixed rule of all reductions, so no figure depends on the number of threads.
struct TensorStatistics {
  double l2_norm = 0;
  double largest_magnitude = 0;
  double mean = 0;
  uint64_t nan = 0, inf = 0, zeros = 0;
};

struct DTypeTotal {
  DType dtype = DType::kF32;
  uint64_t tensors = 0, elements = 0, bytes = 0;
};

struct Inspection {
  Checkpoint checkpoint;
  std::vector<DTypeTotal> by_dtype;                         // largest first
  uint64_t elements = 0, bytes = 0;                         // of all tensors
  std::vector<std::map<std::string, std::string>> metadata; // __metadata__ per shard
};

// Reads headers only. Throws Error.
Inspection Inspect(const std::string& reference);

// By index into checkpoint.tensors; those of tensors that are not of a lane type mean nothing. Reads everything,
// with a bounded window of it in memory; a stream only once. Throws Error, also when a file changes meanwhile.
std::vector<TensorStatistics> ComputeStatistics(const Checkpoint& checkpoint);

}  // namespace braid
