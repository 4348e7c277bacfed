#include "io/model_config.h"

#include <fmt/format.h>

#include "io/error.h"
#include "io/json.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint64_t kMaxConfigBytes = 16u << 20;

class ConfigReader {
 public:
  ConfigReader(const Json& config, const std::string& path) : config_(config), path_(path) {}

  // The value of a key; nullptr when it is absent or null.
  static const Json* Find(const Json& object, const char* key) {
    auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }
  const Json* Find(const char* key) const { return Find(config_, key); }

  // As Find, but looks into text_config, the language part of a multimodal model, when the top level has
  // none.
  const Json* FindOrInText(const char* key) const {
    if (const Json* value = Find(key)) return value;
    const Json* text = Find("text_config");
    return text != nullptr && text->is_object() ? Find(*text, key) : nullptr;
  }

  Error WrongType(const char* key, const char* expected) const {
    return Error(ErrorCode::kBadInput, fmt::format("'{}' must be {}", key, expected))
        .Path(path_)
        .Hint("correct it, or download the file again");
  }

 private:
  const Json& config_;
  const std::string& path_;
};

std::string QuantisationOf(const ConfigReader& reader) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* config = reader.FindOrInText(key);
    if (config == nullptr) continue;
    const Json* method = config->is_object() ? ConfigReader::Find(*config, "quant_method") : nullptr;
    return method != nullptr && method->is_string() ? method->get<std::string>() : key;
  }
  return "";
}

}  // namespace

ModelConfig ParseModelConfig(std::string text, const std::string& path) {
  Json json = ParseJson(text, path, {.python_literals = true});
  if (!json.is_object()) throw Error(ErrorCode::kBadInput, "this is not a JSON object").Path(path);
  ConfigReader reader(json, path);
  ModelConfig config;
  config.path = path;
  if (const Json* value = reader.Find("architectures")) {
    if (!value->is_array()) throw reader.WrongType("architectures", "a list of strings");
    for (const Json& name : *value) {
      if (!name.is_string()) throw reader.WrongType("architectures", "a list of strings");
      config.architectures.push_back(name.get<std::string>());
    }
  }
  if (const Json* value = reader.Find("model_type")) {
    if (!value->is_string()) throw reader.WrongType("model_type", "a string");
    config.model_type = value->get<std::string>();
  }
  if (const Json* value = reader.FindOrInText("tie_word_embeddings")) {
    if (!value->is_boolean()) throw reader.WrongType("tie_word_embeddings", "true or false");
    config.tie_word_embeddings = value->get<bool>();
  }
  for (const char* key : {"torch_dtype", "dtype"})
    if (json.contains(key)) config.dtype_key = key;
  config.quantisation = QuantisationOf(reader);
  config.custom_code = reader.Find("auto_map") != nullptr;
  config.text = std::move(text);
  return config;
}

ModelConfig ReadModelConfig(const std::string& path) {
  return ParseModelConfig(ReadSmallFile(path, kMaxConfigBytes), path);
}

}  // namespace braid
