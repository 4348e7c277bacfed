// What a delta says of itself in the safetensors metadata of each of its files: that it is one, which base it belongs
// to, and the types of the tensors that the two make. A delta has the names and shapes of its base, as float32 or
// bfloat16; of tensors that it lacks the base's bytes are the result.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace braid {

struct DeltaMarks {
  std::string base, samples;  // of the base: its headers and samples of its weights (base_identity.h)
  std::vector<DType> types;   // per tensor, in the order of the file
};

void AddDeltaMarks(const DeltaMarks& marks, std::map<std::string, std::string>* metadata);

// Nothing: the file is no delta's. Throws Error(kBadInput) where it says that it is one, and not of what.
std::optional<DeltaMarks> FindDeltaMarks(const SafetensorsHeader& header, const std::string& path);

}  // namespace braid
