// Tokenizer files for another vocabulary than they were made for: texts in, texts out. Everything that is not named
// here stays byte for byte.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "io/tokenizer.h"

namespace braid {

// tokenizer.json with the vocabulary and the added tokens of `to`, which has grown out of `from`: those that `text`
// has. `path` is used in messages only.
//
// As long as only added tokens come in, the model's vocabulary stays. Otherwise every token is listed in it with its
// id, added tokens too: a client gives those that are not listed the next free ids, whatever their own. Merges with a
// part or a result that is gone go with it; none are added, so new BPE tokens have ids and no way to be produced from
// text. Throws Error(kIncompatible) where a list of pieces cannot express the ids.
std::string RewriteTokenizer(const std::string& text, const std::string& path, const Tokenizer& from,
                             const Tokenizer& to);

// tokenizer_config.json with the added tokens of `tokenizer`, where it lists any. `text` is a JSON object.
std::string RewriteTokenizerConfig(const std::string& text, const Tokenizer& tokenizer);

// tokenizer_config.json ("" when there is none) with this chat template.
std::string WithChatTemplate(const std::string& config_text, std::string_view chat_template);

// A model's chat template: chat_template.jinja, else that of tokenizer_config.json (the one called "default" where it
// has several), else that of chat_template.json. Throws Error.
std::optional<std::string> FindChatTemplate(const std::string& directory);

}  // namespace braid
