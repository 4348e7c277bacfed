// A model's tokenizer as far as a merge needs it: which token has which id. Nothing is ever tokenized here.
//
// Read from tokenizer.json (the vocabulary of a BPE, WordPiece, WordLevel or Unigram model and its added tokens), else
// from vocab.json beside merges.txt, else from a SentencePiece tokenizer.model, whose pieces have the ids of their
// places in Llama, Gemma and their kin; then what tokenizer_config.json adds, as transformers does when it loads them.
// Files are untrusted: sizes are bounded, ids and texts are unique.
//
// Immutable after reading; any thread may use it.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

// A token that is looked for in the text before the model sees it. `content` is also its text in the vocabulary.
struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

struct Token {
  std::string text;
  uint32_t id = 0;
  double score = 0;  // of a Unigram model
};

struct Tokenizer {
  enum class Format { kTokenizerJson, kVocabAndMerges, kSentencePiece };

  // Far more than any vocabulary has (the largest published ones have 262,144); a larger id is a fault in a file.
  static constexpr uint32_t kMostTokens = 1 << 24;

  Format format = Format::kTokenizerJson;
  std::string model;               // "BPE", "WordPiece", "WordLevel", "Unigram"; empty when the file does not say
  bool listed = false;             // the vocabulary is a list, in which a token's place is its id (Unigram)
  std::vector<Token> tokens;       // by id; ids may have gaps
  std::vector<AddedToken> added;   // by id; all of them are among the tokens
  uint64_t file_bytes = 0;         // of the file that the vocabulary was read from

  // The place of a token among `tokens`. Logarithmic: a hash table's collisions could be arranged by a file.
  std::optional<uint32_t> Find(std::string_view text) const;
  // By id; nullptr when it is no added token.
  const AddedToken* FindAdded(uint32_t id) const;
  // One more than the largest id.
  uint32_t Ids() const { return tokens.empty() ? 0 : tokens.back().id + 1; }
  uint64_t MemoryBytes() const;
  // XXH3-128 of all that it says; not of the file it is from.
  XXH128_hash_t Sum() const;

  std::vector<uint32_t> by_text;   // places in `tokens`, in the order of the texts
};

// Nothing when the directory has no file of a tokenizer. Throws Error: kBadInput for files that are not what they
// claim, kIncompatible for a tokenizer that is there but in a form that cannot be read, with what to do.
std::optional<Tokenizer> ReadTokenizer(const std::string& directory);

// A Tokenizer from its tokens in any order, of which `added` are some. Throws Error(kBadInput), naming `path`, when two
// have one id or one text.
Tokenizer MakeTokenizer(std::vector<Token> tokens, std::vector<AddedToken> added, const std::string& path);

// Whether both give every token the same id.
bool SameTokens(const Tokenizer& a, const Tokenizer& b);

// The text of tokenizer.json, whatever its size up to a limit. Throws Error.
std::string ReadTokenizerFile(const std::string& path);

}  // namespace braid
