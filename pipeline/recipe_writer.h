// A recipe as text, in the syntax of its file or in the other: `braid recipe convert`, and what a merge leaves beside
// its weights. Read again, the text is the same recipe, but for places, `~`, and what depends on the syntax alone (see
// WriteRecipe).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pipeline/recipe.h"

namespace braid {

// The whole text, under the comment that the recipe's own begins with. In YAML a filter of the form *text* is
// mergekit's `filter`, any other our `glob`. A recipe of TOML relies on `weight` being 1 where none is given; in YAML
// that is written out. `notes`, if given, gets what a user of the result should know: what mergekit would not
// understand, and where the two syntaxes differ. Throws RecipeError for what has no form in that syntax.
std::string WriteRecipe(const Recipe& recipe, Syntax syntax, std::vector<std::string>* notes = nullptr);

// Nothing where it has no form in that syntax.
std::optional<std::string> TryWriteRecipe(const Recipe& recipe, Syntax syntax);

// The method's parameter `seed`, for every tensor. False when it has none.
bool SetSeed(Recipe* recipe, double seed);

// Writes out the seed where the method has one and the recipe relies on its default.
void RecordSeed(Recipe* recipe);

}  // namespace braid
