#include "io/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>
#include <set>

#include "io/checksum.h"
#include "io/json.h"
#include "io/json_events.h"
#include "io/model_directory.h"
#include "io/os.h"
#include "io/sentence_piece.h"

namespace braid {
namespace {

constexpr uint64_t kMostFileBytes = 256u << 20;  // the largest published tokenizer.json have 35 MB
constexpr size_t kMostAdded = 1 << 20;

// What transformers asks of a tokenizer that was loaded, in the order in which it adds those that are missing.
constexpr auto kSpecialRoles = std::to_array<const char*>(
    {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"});
constexpr auto kSpecialLists = std::to_array<const char*>({"additional_special_tokens", "extra_special_tokens"});

// Forms of tokenizers that are not read: others than these have ids that only their class knows.
constexpr auto kUnreadable = std::to_array<const char*>(
    {"spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model", "vocab.txt"});

constexpr const char* kConvert =
    "convert it once: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers writes a tokenizer.json";

bool* FlagOf(AddedToken* token, std::string_view key) {
  if (key == "single_word") return &token->single_word;
  if (key == "lstrip") return &token->lstrip;
  if (key == "rstrip") return &token->rstrip;
  if (key == "normalized") return &token->normalized;
  if (key == "special") return &token->special;
  return nullptr;
}

// tokenizer.json: model.type, model.vocab and added_tokens; everything else is passed over, merges above all, which as
// a tree would take ten times the memory of the file.
class TokenizerFile final : public JsonEvents {
 public:
  explicit TokenizerFile(const std::string& path) : JsonEvents(path) {}

  std::string model;
  bool has_vocabulary = false, listed = false;
  std::vector<Token> tokens;
  std::vector<AddedToken> added;   // as the file has them

 private:
  enum class Place { kOther, kRoot, kModel, kMap, kList, kPiece, kAddedList, kAdded };

  Error NoPiece() const { return Fault("an entry of the vocabulary must be a piece and its score"); }
  Place place() const { return places_.empty() ? Place::kOther : places_.back(); }

  Place Enter(bool object) {
    if (places_.empty()) {
      if (!object) throw Fault("this is no tokenizer.json: not a JSON object");
      return Place::kRoot;
    }
    switch (place()) {
      case Place::kRoot:
        if (key_ == "model" && object) return Place::kModel;
        if (key_ == "added_tokens" && !object) return Place::kAddedList;
        return Place::kOther;
      case Place::kModel:
        if (key_ != "vocab") return Place::kOther;
        if (std::exchange(has_vocabulary, true)) throw Fault("the model has two vocabularies");
        listed = !object;
        return object ? Place::kMap : Place::kList;
      case Place::kList:
        if (object) throw NoPiece();
        NewToken("", tokens.size());
        piece_values_ = 0;
        return Place::kPiece;
      case Place::kMap: throw Fault("the id of a token must be a number");
      case Place::kPiece: throw NoPiece();
      case Place::kAddedList:
        if (!object) throw Fault("an added token must be an object");
        if (added.size() == kMostAdded) throw Fault("too many added tokens");
        added.emplace_back();
        has_id_ = false;
        return Place::kAdded;
      default: return Place::kOther;
    }
  }

  void NewToken(std::string text, uint64_t id) {
    if (id >= Tokenizer::kMostTokens || tokens.size() >= Tokenizer::kMostTokens)
      throw Fault(fmt::format("no vocabulary has {} tokens", std::max<uint64_t>(id, tokens.size())));
    tokens.push_back({std::move(text), static_cast<uint32_t>(id), 0});
  }

  void Leave() {
    if (place() == Place::kPiece && piece_values_ != 2) throw NoPiece();
    if (place() == Place::kAdded && (!has_id_ || added.back().content.empty()))
      throw Fault("an added token needs an id and a content");
    places_.pop_back();
  }

  void Number(double value) {
    if (place() == Place::kMap) throw Fault("the id of a token must be a whole number");
    if (place() == Place::kAdded && key_ == "id") throw Fault("the id of a token must be a whole number");
    if (place() != Place::kPiece) return;
    if (++piece_values_ != 2) throw NoPiece();
    tokens.back().score = value;
  }

  void OnNull() override { Plain(); }
  void OnBoolean(bool value) override {
    if (place() != Place::kAdded) return Plain();
    if (bool* flag = FlagOf(&added.back(), key_)) *flag = value;
  }
  void OnUnsigned(uint64_t value) override {
    if (place() == Place::kMap) return NewToken(std::move(key_), value);
    if (place() != Place::kAdded || key_ != "id") return Number(static_cast<double>(value));
    if (value >= Tokenizer::kMostTokens) throw Fault(fmt::format("no vocabulary has {} tokens", value));
    added.back().id = static_cast<uint32_t>(value);
    has_id_ = true;
  }
  void OnNegative(int64_t value) override { Number(static_cast<double>(value)); }
  void OnFloat(double value) override { Number(value); }
  void OnString(std::string& value) override {
    if (place() == Place::kModel && key_ == "type") model = std::move(value);
    else if (place() == Place::kAdded && key_ == "content") added.back().content = std::move(value);
    else if (place() == Place::kPiece && ++piece_values_ == 1) tokens.back().text = std::move(value);
    else Plain();
  }
  // A value where the vocabulary wants something else.
  void Plain() const {
    if (place() == Place::kMap) throw Fault("the id of a token must be a number");
    if (place() == Place::kPiece || place() == Place::kList) throw NoPiece();
  }
  void OnKey(std::string& key) override { key_ = std::move(key); }
  void OnStartObject() override { places_.push_back(Enter(true)); }
  void OnStartArray() override { places_.push_back(Enter(false)); }
  void OnEndObject() override { Leave(); }
  void OnEndArray() override { Leave(); }

  std::vector<Place> places_;
  std::string key_;
  int piece_values_ = 0;
  bool has_id_ = false;
};

// vocab.json: tokens and their ids. Also added_tokens.json.
class TokenMap final : public JsonEvents {
 public:
  explicit TokenMap(const std::string& path) : JsonEvents(path) {}
  std::vector<Token> tokens;

 private:
  Error Wrong() const { return Fault("this must be an object of tokens and their ids"); }
  void OnNull() override { throw Wrong(); }
  void OnBoolean(bool) override { throw Wrong(); }
  void OnNegative(int64_t) override { throw Wrong(); }
  void OnFloat(double) override { throw Wrong(); }
  void OnString(std::string&) override { throw Wrong(); }
  void OnStartArray() override { throw Wrong(); }
  void OnEndArray() override {}
  void OnStartObject() override {
    if (std::exchange(begun_, true)) throw Wrong();
  }
  void OnEndObject() override {}
  void OnKey(std::string& key) override { key_ = std::move(key); }
  void OnUnsigned(uint64_t id) override {
    if (!begun_) throw Wrong();
    if (id >= Tokenizer::kMostTokens || tokens.size() >= Tokenizer::kMostTokens)
      throw Fault(fmt::format("no vocabulary has {} tokens", std::max<uint64_t>(id, tokens.size())));
    tokens.push_back({std::move(key_), static_cast<uint32_t>(id), 0});
  }

  std::string key_;
  bool begun_ = false;
};

std::vector<Token> ParseTokenMap(std::string_view text, const std::string& path) {
  TokenMap map(path);
  map.Walk(text);
  return std::move(map.tokens);
}

// Which texts are known, while tokens are being added to a vocabulary.
class KnownTokens {
 public:
  KnownTokens(std::vector<Token>* tokens, std::vector<AddedToken>* added) : tokens_(*tokens), added_(*added) {
    by_text_.resize(tokens_.size());
    std::iota(by_text_.begin(), by_text_.end(), 0u);
    std::sort(by_text_.begin(), by_text_.end(),
              [&](uint32_t a, uint32_t b) { return tokens_[a].text < tokens_[b].text; });
    for (const Token& token : tokens_) next_ = std::max(next_, token.id + 1);
  }

  bool Has(const std::string& text) const {
    const auto less = [&](uint32_t place, const std::string& wanted) { return tokens_[place].text < wanted; };
    const auto found = std::lower_bound(by_text_.begin(), by_text_.end(), text, less);
    return (found != by_text_.end() && tokens_[*found].text == text) || new_.contains(text);
  }
  void Add(AddedToken token) {
    new_.insert(token.content);
    next_ = std::max(next_, token.id + 1);
    tokens_.push_back({token.content, token.id, 0});
    added_.push_back(std::move(token));
  }
  uint32_t next() const { return next_; }

 private:
  std::vector<Token>& tokens_;
  std::vector<AddedToken>& added_;
  std::vector<uint32_t> by_text_;   // places of the tokens that there were, in the order of the texts
  std::set<std::string> new_;
  uint32_t next_ = 0;
};

// A token as a configuration names it: its text, or an object with a content.
std::optional<AddedToken> NamedToken(const Json& value) {
  AddedToken token;
  token.special = true;
  if (value.is_string()) {
    token.content = value.get<std::string>();
  } else if (value.is_object()) {
    for (const auto& [key, member] : value.items()) {
      if (key == "content" && member.is_string()) token.content = member.get<std::string>();
      else if (bool* flag = FlagOf(&token, key); flag != nullptr && member.is_boolean()) *flag = member.get<bool>();
    }
  }
  if (token.content.empty()) return std::nullopt;
  return token;
}

// What tokenizer_config.json knows beyond the vocabulary: tokens with ids, then special tokens that have none, which
// transformers puts behind all others.
void AddConfigured(const Json& config, KnownTokens* known) {
  if (const auto decoder = config.find("added_tokens_decoder"); decoder != config.end() && decoder->is_object()) {
    std::vector<AddedToken> listed;
    for (const auto& [key, value] : decoder->items()) {
      std::optional<AddedToken> token = NamedToken(value);
      uint32_t id = 0;
      const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
      if (!token || parsed.ptr != key.data() + key.size() || id >= Tokenizer::kMostTokens) continue;
      token->id = id;
      if (!known->Has(token->content)) listed.push_back(std::move(*token));
    }
    std::sort(listed.begin(), listed.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    for (AddedToken& token : listed)
      if (token.id = known->next(); !known->Has(token.content)) known->Add(std::move(token));
  }
  const auto add = [&](const Json& value) {
    std::optional<AddedToken> token = NamedToken(value);
    if (!token || known->Has(token->content) || known->next() >= Tokenizer::kMostTokens) return;
    token->id = known->next();
    known->Add(std::move(*token));
  };
  for (const char* role : kSpecialRoles)
    if (const auto found = config.find(role); found != config.end()) add(*found);
  for (const char* list : kSpecialLists)
    if (const auto found = config.find(list); found != config.end() && found->is_array() && found->size() < 4096)
      for (const Json& value : *found) add(value);
}

// The model's vocabulary wins where an added token says something else, as it does in the tokenizers library.
void MergeAdded(std::vector<AddedToken> from_file, std::vector<Token>* tokens, std::vector<AddedToken>* added) {
  std::vector<const Token*> by_text;
  const size_t vocabulary = tokens->size();
  tokens->reserve(vocabulary + from_file.size());
  for (size_t i = 0; i < vocabulary; ++i) by_text.push_back(&(*tokens)[i]);
  const auto less = [](const Token* token, std::string_view text) { return token->text < text; };
  std::sort(by_text.begin(), by_text.end(), [](const Token* a, const Token* b) { return a->text < b->text; });
  std::set<std::string> seen;
  for (AddedToken& token : from_file) {
    if (!seen.insert(token.content).second) continue;
    const auto found = std::lower_bound(by_text.begin(), by_text.end(), token.content, less);
    if (found != by_text.end() && (*found)->text == token.content) token.id = (*found)->id;
    else tokens->push_back({token.content, token.id, 0});
    added->push_back(std::move(token));
  }
}

}  // namespace

std::string ReadTokenizerFile(const std::string& path) { return ReadSmallFile(path, kMostFileBytes); }

std::optional<uint32_t> Tokenizer::Find(std::string_view text) const {
  const auto less = [&](uint32_t place, std::string_view wanted) { return tokens[place].text < wanted; };
  const auto found = std::lower_bound(by_text.begin(), by_text.end(), text, less);
  if (found == by_text.end() || tokens[*found].text != text) return std::nullopt;
  return *found;
}

uint64_t Tokenizer::MemoryBytes() const {
  const auto heap = [](const std::string& text) { return text.capacity() > 15 ? text.capacity() + 17 : 0; };
  uint64_t bytes = sizeof(*this) + tokens.capacity() * sizeof(Token) + added.capacity() * sizeof(AddedToken) +
                   by_text.capacity() * sizeof(uint32_t);
  for (const Token& token : tokens) bytes += heap(token.text);
  for (const AddedToken& token : added) bytes += heap(token.content);
  return bytes;
}

XXH128_hash_t Tokenizer::Sum() const {
  Checksum sum;
  const auto add = [&](const auto& value) { sum.Add(&value, sizeof(value)); };
  const auto add_text = [&](const std::string& text) { add(text.size()), sum.Add(text.data(), text.size()); };
  add(format), add(listed), add_text(model), add(tokens.size());
  for (const Token& token : tokens) add_text(token.text), add(token.id), add(token.score);
  for (const AddedToken& token : added) {
    add_text(token.content), add(token.id);
    for (bool flag : {token.single_word, token.lstrip, token.rstrip, token.normalized, token.special}) add(flag);
  }
  return sum.Take();
}

const AddedToken* Tokenizer::FindAdded(uint32_t id) const {
  const auto less = [](const AddedToken& token, uint32_t wanted) { return token.id < wanted; };
  const auto found = std::lower_bound(added.begin(), added.end(), id, less);
  return found == added.end() || found->id != id ? nullptr : &*found;
}

bool SameTokens(const Tokenizer& a, const Tokenizer& b) {
  return std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end(),
                    [](const Token& x, const Token& y) { return x.id == y.id && x.text == y.text; });
}

Tokenizer MakeTokenizer(std::vector<Token> tokens, std::vector<AddedToken> added, const std::string& path) {
  Tokenizer tokenizer;
  const auto by_id = [](const auto& a, const auto& b) { return a.id < b.id; };
  const auto same_id = [](const auto& a, const auto& b) { return a.id == b.id; };
  if (!std::is_sorted(tokens.begin(), tokens.end(), by_id)) std::stable_sort(tokens.begin(), tokens.end(), by_id);
  std::stable_sort(added.begin(), added.end(), by_id);
  added.erase(std::unique(added.begin(), added.end(), same_id), added.end());
  const auto twice = [&](const Token& a, const Token& b, const char* what) {
    return Error(ErrorCode::kBadInput,
                 fmt::format("the tokens '{}' (id {}) and '{}' (id {}) have the same {}",
                             Printable(a.text).substr(0, 200), a.id, Printable(b.text).substr(0, 200), b.id, what))
        .Path(path).Hint("correct the file, or download it again");
  };
  for (size_t i = 1; i < tokens.size(); ++i)
    if (tokens[i - 1].id == tokens[i].id) throw twice(tokens[i - 1], tokens[i], "id");
  tokenizer.by_text.resize(tokens.size());
  std::iota(tokenizer.by_text.begin(), tokenizer.by_text.end(), 0u);
  std::sort(tokenizer.by_text.begin(), tokenizer.by_text.end(),
            [&](uint32_t a, uint32_t b) { return tokens[a].text < tokens[b].text; });
  for (size_t i = 1; i < tokens.size(); ++i) {
    const Token &a = tokens[tokenizer.by_text[i - 1]], &b = tokens[tokenizer.by_text[i]];
    if (a.text == b.text) throw twice(a, b, "text");
  }
  tokenizer.tokens = std::move(tokens), tokenizer.added = std::move(added);
  return tokenizer;
}

std::optional<Tokenizer> ReadTokenizer(const std::string& path) {
  const ModelDirectory directory(path);
  std::vector<Token> tokens;
  std::vector<AddedToken> added;
  std::string model = "BPE", file, text;
  uint64_t file_bytes = 0;
  bool listed = false;
  const auto read = [&](const char* name) {
    file = directory.FilePath(name);
    text = ReadTokenizerFile(file);
    file_bytes = text.size();
  };
  auto format = Tokenizer::Format::kTokenizerJson;
  if (directory.Has("tokenizer.json")) {
    read("tokenizer.json");
    TokenizerFile events(file);
    events.Walk(text);
    if (!events.has_vocabulary) throw Error(ErrorCode::kBadInput, "its model has no vocabulary").Path(file);
    model = std::move(events.model), listed = events.listed, tokens = std::move(events.tokens);
    MergeAdded(std::move(events.added), &tokens, &added);
  } else if (directory.Has("vocab.json") && directory.Has("merges.txt")) {
    read("vocab.json");
    format = Tokenizer::Format::kVocabAndMerges;
    tokens = ParseTokenMap(text, file);
    if (directory.Has("added_tokens.json")) {
      const std::string added_file = directory.FilePath("added_tokens.json");
      std::vector<AddedToken> more;
      for (Token& token : ParseTokenMap(ReadTokenizerFile(added_file), added_file))
        more.push_back({.content = std::move(token.text), .id = token.id});
      MergeAdded(std::move(more), &tokens, &added);
    }
  } else if (directory.Has("tokenizer.model")) {
    read("tokenizer.model");
    format = Tokenizer::Format::kSentencePiece;
    model = "SentencePiece", listed = true;
    tokens = ParseSentencePieces(text, file);
  } else {
    for (const char* name : kUnreadable)
      if (directory.Has(name))
        throw Error(ErrorCode::kIncompatible, fmt::format("its tokenizer is {} alone, which cannot be read", name))
            .Path(path).Hint(kConvert);
    return std::nullopt;
  }
  std::string().swap(text);   // the largest of all that is here
  if (directory.Has("tokenizer_config.json")) {
    const std::string config = directory.FilePath("tokenizer_config.json");
    const Json json = ParseJson(ReadSmallFile(config), config, {.python_literals = true});
    KnownTokens known(&tokens, &added);
    if (json.is_object()) AddConfigured(json, &known);
  }
  Tokenizer tokenizer = MakeTokenizer(std::move(tokens), std::move(added), file);
  tokenizer.model = std::move(model), tokenizer.listed = listed;
  tokenizer.format = format, tokenizer.file_bytes = file_bytes;
  return tokenizer;
}

}  // namespace braid
