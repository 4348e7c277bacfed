#include "pipeline/vocabulary_tensors.h"

#include <algorithm>
#include <array>

#include "io/json.h"

namespace braid {
namespace {

constexpr auto kEmbeddings = std::to_array<std::string_view>(
    {"embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight",
     "shared.weight"});
constexpr auto kHeads = std::to_array<std::string_view>(
    {"head.weight", "head.bias", "embed_out.weight", "output.weight", "output_layer.weight", "decoder.weight",
     "decoder.bias", "predictions.bias", "vocab_projector.weight", "vocab_projector.bias"});

// Whether a dotted name ends in these components.
bool EndsWith(std::string_view name, std::string_view ending) {
  return name == ending || (name.ends_with(ending) && name[name.size() - ending.size() - 1] == '.');
}

}  // namespace

bool IsOutputHead(std::string_view name) { return EndsWith(name, "lm_head.weight"); }

bool IsEmbedding(std::string_view name) {
  return std::any_of(kEmbeddings.begin(), kEmbeddings.end(),
                     [&](std::string_view ending) { return EndsWith(name, ending); });
}

std::optional<uint32_t> FindEmbedding(const Checkpoint& checkpoint) {
  for (std::string_view ending : kEmbeddings)
    for (uint32_t i = 0; i < checkpoint.tensors.size(); ++i)
      if (EndsWith(checkpoint.tensors[i].info.name, ending)) return i;
  return std::nullopt;
}

// "lm_head.bias" and "mlm_head.bias", but no name that only happens to end in "head".
bool MayBeOutputHead(std::string_view name) {
  return std::any_of(kHeads.begin(), kHeads.end(), [&](std::string_view ending) {
    const bool part_of_a_word = ending.starts_with("head.") && name.ends_with(ending) && name.size() > ending.size();
    return EndsWith(name, ending) || (part_of_a_word && name[name.size() - ending.size() - 1] == '_');
  });
}

uint64_t VocabularyRows(const Checkpoint& checkpoint) {
  if (const auto embedding = FindEmbedding(checkpoint)) {
    const TensorInfo& info = checkpoint.tensors[*embedding].info;
    if (!info.shape.empty()) return info.shape.front();
  }
  if (checkpoint.config.text.empty()) return 0;
  const Json config = ParseJson(checkpoint.config.text, checkpoint.config.path, {.python_literals = true});
  for (const Json& part : {config, config.value("text_config", Json())})
    if (part.is_object() && part.contains("vocab_size"))
      if (const auto size = AsSize(part["vocab_size"])) return *size;
  return 0;
}

}  // namespace braid
