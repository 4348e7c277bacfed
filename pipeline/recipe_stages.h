// Several merges in one file, some of which take the results of others for models: [[stages]] in TOML, several
// documents in YAML, as mergekit-multi has them. They may stand in any order; the result is TOML's last one, YAML's one
// without a name.
#pragma once

#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "pipeline/recipe_node.h"

namespace braid {

// Of one file.
using StageNames = std::set<std::string, std::less<>>;

// How the result of a stage stands among the references of models. No path that a user writes reads like that.
std::string StageReference(std::string_view name);
std::string_view StageNameOf(std::string_view reference);   // empty: it is no stage

// Reads one of them into `stage`, which has the file's path and syntax.
using ReadStage = std::function<void(const RecipeNode& from, const StageNames& names, Recipe* stage)>;

// Reads all; `recipe` becomes the one that is the result, and has the others as its stages. Throws RecipeError: names
// that are missing or there twice, a stage that uses its own result or is not used.
void ReadStages(std::span<const RecipeNode> tables, Recipe* recipe, const ReadStage& read);

}  // namespace braid
