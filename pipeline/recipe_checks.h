// What can be wrong with a recipe as a whole, once its values are read: the same for both syntaxes.
#pragma once

#include "ops/method.h"
#include "pipeline/recipe.h"

namespace braid {

// Brings `models` into the form that recipe.h promises (the base in or out, by method) and checks that what
// the method needs is there and fits together. Throws RecipeError.
void CompleteRecipe(const MethodInfo& method, Recipe* recipe);

}  // namespace braid
