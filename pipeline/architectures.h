// Model architectures that synthetic checkpoints are made in: their shapes, and the tensors and config.json
// that published checkpoints of that architecture have. Pure data; immutable, any thread may use it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"
#include "ops/dtype.h"

namespace braid {

struct Architecture {
  std::string_view name;              // "llama-1b"
  std::string_view transformers_class;
  std::string_view model_type;
  uint64_t hidden = 0, layers = 0, intermediate = 0, heads = 0, key_value_heads = 0, vocabulary = 0;
  uint64_t experts = 0;               // 0: a dense model
  bool tied_embeddings = false;       // no lm_head
};

// From the smallest to the largest.
const std::vector<Architecture>& Architectures();

// nullptr when there is none of that name.
const Architecture* FindArchitecture(std::string_view name);

// Its tensors in the order of the file, with name, type, shape, elements and bytes set; offsets are left at
// 0.
std::vector<TensorInfo> TensorsOf(const Architecture& architecture, DType dtype);

// The text of config.json.
std::string ConfigText(const Architecture& architecture, DType dtype);

}  // namespace braid
