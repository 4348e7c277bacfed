#include "io/tokenizer_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "io/error.h"
#include "io/json.h"
#include "io/model_directory.h"
#include "io/os.h"

namespace braid {
namespace {

std::string AddedTokenText(const AddedToken& token, bool with_id) {
  return fmt::format(
      R"({{{}"content": {}, "single_word": {}, "lstrip": {}, "rstrip": {}, "normalized": {}, "special": {}}})",
      with_id ? fmt::format("\"id\": {}, ", token.id) : "", JsonString(token.content), token.single_word, token.lstrip,
      token.rstrip, token.normalized, token.special);
}

std::string AddedTokensText(const Tokenizer& tokenizer) {
  std::string text = "[";
  for (const AddedToken& token : tokenizer.added)
    fmt::format_to(std::back_inserter(text), "{}\n    {}", text.size() > 1 ? "," : "", AddedTokenText(token, true));
  return text + "\n  ]";
}

std::string VocabularyText(const Tokenizer& tokenizer, bool listed) {
  std::string text = listed ? "[" : "{";
  for (const Token& token : tokenizer.tokens) {
    fmt::format_to(std::back_inserter(text), "{}\n      ", text.size() > 1 ? "," : "");
    if (listed) fmt::format_to(std::back_inserter(text), "[{}, {}]", JsonString(token.text), Json(token.score).dump());
    else fmt::format_to(std::back_inserter(text), "{}: {}", JsonString(token.text), token.id);
  }
  return text + (listed ? "\n    ]" : "\n    }");
}

// A merge is "a b", or ["a", "b"].
bool StillMerges(const Json& merge, const Tokenizer& tokenizer) {
  std::string first, second;
  if (merge.is_string()) {
    const std::string pair = merge.get<std::string>();
    const size_t space = pair.find(' ');
    if (space == std::string::npos) return false;
    first = pair.substr(0, space), second = pair.substr(space + 1);
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    first = merge[0].get<std::string>(), second = merge[1].get<std::string>();
  }
  return tokenizer.Find(first) && tokenizer.Find(second) && tokenizer.Find(first + second);
}

std::string MergesText(const std::string& merges, const Tokenizer& tokenizer, const std::string& path) {
  std::string text = "[";
  for (const Json& merge : ParseJson(merges, path))
    if (StillMerges(merge, tokenizer))
      fmt::format_to(std::back_inserter(text), "{}\n      {}", text.size() > 1 ? "," : "", merge.dump());
  return text + "\n    ]";
}

bool HasGaps(const Tokenizer& tokenizer) { return tokenizer.Ids() != tokenizer.tokens.size(); }

// Whether every token that is in one and not in the other is an added token that only `to` has.
bool OnlyAddsAdded(const Tokenizer& from, const Tokenizer& to) {
  size_t kept = 0;
  for (const Token& token : to.tokens) {
    if (const auto known = from.Find(token.text); known && from.tokens[*known].id == token.id) ++kept;
    else if (to.FindAdded(token.id) == nullptr) return false;
  }
  return kept == from.tokens.size();
}

bool LosesTokens(const Tokenizer& from, const Tokenizer& to) {
  return std::any_of(from.tokens.begin(), from.tokens.end(), [&](const Token& token) { return !to.Find(token.text); });
}

}  // namespace

std::string RewriteTokenizer(const std::string& text, const std::string& path, const Tokenizer& from,
                             const Tokenizer& to) {
  std::string out = ReplaceTopLevelValue(text, "added_tokens", AddedTokensText(to));
  if (OnlyAddsAdded(from, to) && !HasGaps(to)) return out;
  if (from.listed && HasGaps(to))
    throw Error(ErrorCode::kIncompatible, "its vocabulary is a list with gaps, to which nothing can be added")
        .Path(path).Hint("take one model's tokenizer as it is");
  std::string model = TopLevelValue(out, "model").value_or("{}");
  if (const auto merges = TopLevelValue(model, "merges"); merges && LosesTokens(from, to))
    model = ReplaceTopLevelValue(model, "merges", MergesText(*merges, to, path));
  model = ReplaceTopLevelValue(model, "vocab", VocabularyText(to, from.listed));
  return ReplaceTopLevelValue(out, "model", model);
}

std::string RewriteTokenizerConfig(const std::string& text, const Tokenizer& tokenizer) {
  if (!TopLevelValue(text, "added_tokens_decoder")) return text;
  std::string decoder = "{";
  for (const AddedToken& token : tokenizer.added)
    fmt::format_to(std::back_inserter(decoder), "{}\n    \"{}\": {}", decoder.size() > 1 ? "," : "", token.id,
                   AddedTokenText(token, false));
  return ReplaceTopLevelValue(text, "added_tokens_decoder", decoder + "\n  }");
}

std::string WithChatTemplate(const std::string& config_text, std::string_view chat_template) {
  return ReplaceTopLevelValue(config_text.empty() ? "{}\n" : config_text, "chat_template", JsonString(chat_template));
}

std::optional<std::string> FindChatTemplate(const std::string& path) {
  const ModelDirectory directory(path);
  if (directory.Has("chat_template.jinja")) return ReadSmallFile(directory.FilePath("chat_template.jinja"));
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    if (!directory.Has(name)) continue;
    const std::string file = directory.FilePath(name);
    const Json json = ParseJson(ReadSmallFile(file), file, {.python_literals = true});
    const auto found = json.is_object() ? json.find("chat_template") : json.end();
    if (found == json.end()) continue;
    if (found->is_string()) return found->get<std::string>();
    if (!found->is_array()) continue;
    for (const Json& entry : *found)
      if (entry.is_object() && entry.value("name", Json()) == "default" && entry.value("template", Json()).is_string())
        return entry["template"].get<std::string>();
  }
  return std::nullopt;
}

}  // namespace braid
