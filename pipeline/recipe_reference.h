// How mergekit's YAML names a model: as text, `path[@revision]`, or as a table,
//
//   {model: {path: org/name, revision: v2}, override_architecture: LlamaForCausalLM}
//
// `model` may be text in the table, too. A table's `path` is taken as it is; in text, `@` and `+` are special.
#pragma once

#include <string>
#include <string_view>

#include "pipeline/recipe_node.h"
#include "pipeline/recipe_reader.h"

namespace braid {

// The reference, as RecipeModel has it; `name` is the key it was found under. Throws RecipeError, also for adapters
// (`+lora`), which are not supported yet; warns of what has no effect.
std::string ReadYamlReference(RecipeReader* reader, const RecipeNode& node, std::string_view name);

// The node that ReadYamlReference reads as `reference`: text wherever text can say it.
RecipeNode YamlReferenceNode(const std::string& reference);

}  // namespace braid
