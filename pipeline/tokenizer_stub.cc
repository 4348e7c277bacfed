#include "pipeline/tokenizer_stub.h"

#include "io/json.h"

namespace braid {
namespace {

constexpr const char* kSpecialTokens[] = {"<unk>", "<s>", "</s>"};

std::string Utf8(unsigned code_point) {  // below U+0800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// Byte-level tokenizers write each byte as a printable character: itself where it is one in Latin-1,
// otherwise the next one from U+0100 on.
Json ByteVocabulary() {
  Json vocabulary = Json::object();
  int id = 0;
  for (const char* token : kSpecialTokens) vocabulary[token] = id++;
  unsigned substitute = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
    vocabulary[Utf8(printable ? byte : substitute++)] = id++;
  }
  return vocabulary;
}

}  // namespace

std::string TokenizerText() {
  Json added = Json::array();
  int id = 0;
  for (const char* token : kSpecialTokens)
    added.push_back({{"id", id++}, {"content", token}, {"single_word", false}, {"lstrip", false},
                     {"rstrip", false}, {"normalized", false}, {"special", true}});
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true},
                           {"use_regex", true}};
  const Json model = {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false}, {"byte_fallback", false}, {"vocab", ByteVocabulary()},
                      {"merges", Json::array()}};
  const Json tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr},
                          {"added_tokens", added}, {"normalizer", nullptr}, {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr}, {"decoder", byte_level}, {"model", model}};
  return tokenizer.dump(2) + "\n";
}

std::string TokenizerConfigText() {
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"unk_token", "<unk>"},
                       {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"model_max_length", 4096},
                       {"clean_up_tokenization_spaces", false}};
  return config.dump(2) + "\n";
}

}  // namespace braid
