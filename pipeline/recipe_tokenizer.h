// Reading what a recipe says about the output's vocabulary, tokenizer and chat template. The keys and their meaning are
// mergekit's, the same in both syntaxes:
//
//   tokenizer_source: base | union | MODEL            (YAML; in TOML the same as the text of `tokenizer`)
//   tokenizer: {source, tokens: {TOKEN: {source, force}}, pad_to_multiple_of}
//     source of a token: MODEL | {kind: zero} | {kind: model_token, model, token | token_id}
//   chat_template: auto | a name | Jinja
//
// Used while one recipe is read, by one thread; everything that fails throws RecipeError.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "pipeline/recipe_reader.h"

namespace braid {

// How this syntax writes a model; `name` is the key it stands under.
using ReadModelText = std::function<std::string(const RecipeNode& node, std::string_view name)>;

void ReadTokenizerSource(RecipeReader* reader, const RecipeNode& node, std::string_view name,
                         const ReadModelText& read);
void ReadTokenizerTable(RecipeReader* reader, const RecipeNode& node, const ReadModelText& read);
void ReadChatTemplate(RecipeReader* reader, const RecipeNode& node);

// Once the models are known: those that tokens come from must be among them.
void CheckTokenizer(Recipe* recipe);

}  // namespace braid
