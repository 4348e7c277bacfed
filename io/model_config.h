// What a merge needs to know from a model's config.json.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace braid {

// Absent file: all empty.
struct ModelConfig {
  std::string path;  // empty when there is none
  std::string text;  // the file, byte for byte
  std::vector<std::string> architectures;
  std::string model_type;
  std::optional<bool> tie_word_embeddings;  // top level, else text_config's
  std::optional<std::string> dtype_key;     // "dtype" or "torch_dtype", whichever the file has
  std::string quantisation;                 // "gptq", "fp8", ...; empty when the weights are plain
  bool custom_code = false;                 // auto_map: the model brings Python code
};

// Throws Error(kBadInput) for a file that is no JSON object or whose keys above have other types.
ModelConfig ReadModelConfig(const std::string& path);
ModelConfig ParseModelConfig(std::string text, const std::string& path);

}  // namespace braid
