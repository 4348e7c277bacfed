#include "io/model_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string_view>

#include "io/json.h"
#include "io/model_directory.h"

namespace braid {
namespace {

// Names that transformers, tokenizers, sentencepiece, tiktoken, mistral-common and sentence-transformers
// read.
constexpr auto kNames = std::to_array<std::string_view>({"generation_config.json",
                                                         "tokenizer.json",
                                                         "tokenizer_config.json",
                                                         "special_tokens_map.json",
                                                         "added_tokens.json",
                                                         "vocab.json",
                                                         "merges.txt",
                                                         "vocab.txt",
                                                         "tekken.json",
                                                         "tokenizer.model",
                                                         "tokenizer.model.v3",
                                                         "spiece.model",
                                                         "spm.model",
                                                         "sentencepiece.model",
                                                         "sentencepiece.bpe.model",
                                                         "tiktoken.model",
                                                         "source.spm",
                                                         "target.spm",
                                                         "chat_template.jinja",
                                                         "chat_template.json",
                                                         "preprocessor_config.json",
                                                         "processor_config.json",
                                                         "image_processor_config.json",
                                                         "video_preprocessor_config.json",
                                                         "modules.json",
                                                         "sentence_bert_config.json",
                                                         "config_sentence_transformers.json"});

// Of those, the tokenizer's: vocabularies, and what lies around them.
constexpr auto kVocabularies = std::to_array<std::string_view>(
    {"added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "tokenizer.model",
     "tokenizer.model.v3", "spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model",
     "tiktoken.model", "source.spm", "target.spm"});
constexpr auto kTokenizerNames =
    std::to_array<std::string_view>({"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                     "chat_template.jinja", "chat_template.json"});

// Where multimodal models keep the configurations of their parts.
constexpr auto kParts = std::to_array<std::string_view>(
    {"text_config", "vision_config", "audio_config", "llm_config", "language_config"});

constexpr auto kLegalPrefixes =
    std::to_array<std::string_view>({"license", "licence", "notice", "use_policy"});
constexpr auto kLegalSuffixes = std::to_array<std::string_view>({"", ".txt", ".md", ".pdf", ".html", ".rst"});

bool StartsWithIgnoringCase(std::string_view text, std::string_view lower_prefix) {
  return text.size() >= lower_prefix.size() &&
         std::equal(lower_prefix.begin(), lower_prefix.end(), text.begin(),
                    [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
}

// LICENSE, LICENSE.txt, LICENSE-MODEL, NOTICE, USE_POLICY.md: but not license.py.
bool IsLegalText(std::string_view name) {
  if (std::none_of(kLegalPrefixes.begin(), kLegalPrefixes.end(),
                   [&](std::string_view prefix) { return StartsWithIgnoringCase(name, prefix); }))
    return false;
  size_t dot = name.rfind('.');
  std::string_view suffix = dot == name.npos ? "" : name.substr(dot);
  return std::find(kLegalSuffixes.begin(), kLegalSuffixes.end(), suffix) != kLegalSuffixes.end();
}

bool IsSideFile(std::string_view name) {
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.ends_with(".tiktoken") ||
         IsLegalText(name);
}

// "1_Pooling", "2_Dense": a module of sentence-transformers.
bool IsModuleDirectory(std::string_view name) {
  size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  return digits > 0 && digits < name.size() && name[digits] == '_';
}

// The files to carry from a subdirectory; a template or the parts of a module.
bool IsSideFileOf(std::string_view directory, std::string_view name) {
  if (directory == "additional_chat_templates") return name.ends_with(".jinja");
  return IsModuleDirectory(directory) && (name == "config.json" || name == "model.safetensors");
}

bool IsHidden(std::string_view name) { return name.starts_with('.'); }

// Sets a key that is there already.
void ReplaceIfPresent(std::string* object, std::string_view key, std::string_view value) {
  if (TopLevelValue(*object, key)) *object = ReplaceTopLevelValue(*object, key, value);
}

void EditCommonKeys(std::string* object, std::string_view dtype) {
  ReplaceIfPresent(object, "dtype", dtype);
  ReplaceIfPresent(object, "torch_dtype", dtype);
  *object = RemoveTopLevelKey(*object, "_name_or_path");
}

}  // namespace

std::vector<std::string> SideFiles(const std::string& path) {
  ModelDirectory directory(path);
  std::vector<std::string> files;
  for (const std::string& name : directory.Names()) {
    if (IsHidden(name)) continue;
    if (IsSideFile(name)) {
      if (directory.IsOwnFile(name)) files.push_back(name);
    } else if ((name == "additional_chat_templates" || IsModuleDirectory(name)) &&
               directory.IsOwnDirectory(name)) {
      for (const std::string& inner : directory.Names(name))
        if (!IsHidden(inner) && IsSideFileOf(name, inner) && directory.IsOwnFile(name + "/" + inner))
          files.push_back(name + "/" + inner);
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool IsVocabularyFile(std::string_view name) {
  return std::find(kVocabularies.begin(), kVocabularies.end(), name) != kVocabularies.end() ||
         name.ends_with(".tiktoken");
}

bool IsTokenizerFile(std::string_view name) {
  return std::find(kTokenizerNames.begin(), kTokenizerNames.end(), name) != kTokenizerNames.end() ||
         IsVocabularyFile(name) || name.starts_with("additional_chat_templates/");
}

std::string WithVocabularySize(std::string config, uint64_t size) {
  const std::string value = std::to_string(size);
  ReplaceIfPresent(&config, "vocab_size", value);
  if (std::optional<std::string> part = TopLevelValue(config, "text_config"); part && part->starts_with('{')) {
    ReplaceIfPresent(&*part, "vocab_size", value);
    config = ReplaceTopLevelValue(config, "text_config", *part);
  }
  return config;
}

std::string MergedConfig(const ModelConfig& donor, DType output_type, bool untie) {
  if (donor.text.empty()) return "";
  std::string text = donor.text, dtype = fmt::format("\"{}\"", TorchName(output_type));
  EditCommonKeys(&text, dtype);
  // "dtype" is what transformers writes today; without any of the two it would load the merge as float32.
  if (!TopLevelValue(text, "dtype") && !TopLevelValue(text, "torch_dtype"))
    text = ReplaceTopLevelValue(text, "dtype", dtype);

  for (std::string_view key : kParts) {
    std::optional<std::string> part = TopLevelValue(text, key);
    if (!part || !part->starts_with('{')) continue;
    EditCommonKeys(&*part, dtype);
    if (untie && key == "text_config") ReplaceIfPresent(&*part, "tie_word_embeddings", "false");
    text = ReplaceTopLevelValue(text, key, *part);
  }
  // Said at the top level even where text_config says it: a default of true would tie them again.
  if (untie) text = ReplaceTopLevelValue(text, "tie_word_embeddings", "false");
  return text;
}

}  // namespace braid
