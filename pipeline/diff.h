// How two checkpoints differ, tensor by tensor. The weights only: not config, tokenizer or __metadata__.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/checkpoint.h"

namespace braid {

// The elements of one tensor against those of another of the same shape.
//
// Elements are equal when their bits are: 0 and -0 differ (by 0 ULP), a NaN equals the same NaN. Tensors of two
// different lane types are compared as float32. Distances are between the values of lane types; elements that
// differ and are not both finite have none and are counted instead.
struct ElementDifference {
  uint64_t elements = 0, equal = 0;
  bool has_distances = false;     // both are of lane types
  double largest_absolute = 0;    // |a - b|
  double largest_relative = 0;    // |a - b| / max(|a|, |b|)
  uint64_t largest_ulp = 0;       // in the tensors' own type; in float32 when there are two types
  uint64_t not_finite = 0;        // different elements of which at least one is NaN or infinite
};

struct TensorDifference {
  uint32_t a = 0, b = 0;          // indices into the checkpoints' tensors
  bool same_shape = true, same_dtype = true;
  bool compared = false;          // `elements` holds something: same shape, and types that can be compared
  ElementDifference elements;
  bool identical() const { return same_shape && same_dtype && elements.equal == elements.elements; }
};

struct CheckpointDifference {
  Checkpoint a, b;
  std::vector<TensorDifference> tensors;        // of those in both, in the order of a's files
  std::vector<std::string> only_in_a, only_in_b;
  uint64_t differing = 0;                       // tensors
  uint64_t bytes_read = 0;
  bool identical() const { return differing == 0 && only_in_a.empty() && only_in_b.empty(); }
};

// Reads both with a bounded window of them in memory. No figure depends on the number of threads. Throws Error,
// also when a file changes meanwhile; kUsage when both come as streams, in orders that differ.
CheckpointDifference Diff(const std::string& a, const std::string& b);

}  // namespace braid
