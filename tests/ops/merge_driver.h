// Drives a Merger as the pipeline does, at its most contrary: tiles in random order on random workers,
// accumulators added in random order, bytes at odd addresses, sources withheld that a round does not ask for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ops/merger.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid::test {

// One source's elements of one tensor, as they lie in a file.
struct Source {
  DType type = DType::kF32;
  std::vector<std::byte> bytes = {};  // none: the source has no such tensor
};

inline Source SourceOf(DType type, const std::vector<float>& lanes) {
  return {.type = type, .bytes = reference::Encode(type, lanes)};
}

struct ScopeTensor {
  ScopeTensor(std::string its_name, size_t its_elements)
      : name(std::move(its_name)), elements(its_elements) {}

  std::string name;
  size_t elements;
  size_t row = 0;  // elements of the last axis; 0: all of them
  size_t slice = 0;  // elements that share an index of the first axis; 0: fewer than two axes
  Source base;  // unused by methods without one
  std::vector<Source> models;
  Coefficients coefficients;
};

struct DriveOptions {
  size_t blocks_per_tile = 1;
  size_t workers = 1;
  DType type = DType::kF32;  // of the output
  std::optional<Approach> approach = {};  // chosen at random otherwise
};

struct Driven {
  std::vector<std::vector<std::byte>> tensors;  // in the order given
  MergeCounts counts;
  uint64_t entries = 0, kept = 0;
  TaskVectorNorms norms = {};
  bool drafted = false;
};

// What the driver says of a tensor.
TensorFacts FactsOf(const ScopeTensor& tensor);

// Merges one scope.
Driven Drive(const MethodInfo& method, const std::vector<ScopeTensor>& tensors, const DriveOptions& options,
             Random& random);

// That these are the elements, rounded to the type.
void ExpectBytes(const std::vector<float>& expected, DType type, const std::vector<std::byte>& bytes);

// The defaults of `method` for so many models; set what differs by name.
Coefficients DefaultCoefficients(const MethodInfo& method, size_t num_models);
void SetShared(const MethodInfo& method, Coefficients& coefficients, std::string_view name, double value);
void SetModel(const MethodInfo& method, Coefficients& coefficients, size_t model, std::string_view name,
              double value);

}  // namespace braid::test
