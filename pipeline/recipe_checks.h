// What can be wrong with a recipe as a whole, once its values are read: the same for both syntaxes.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "ops/method.h"
#include "pipeline/recipe.h"

namespace braid {

// Brings `models` into the form that recipe.h promises (the base in or out, by method) and checks that what
// the method needs is there and fits together. Throws RecipeError.
void CompleteRecipe(const MethodInfo& method, Recipe* recipe);

// --- of models that are merged with each other: the recipe's, or the sources of a slice
void CheckListedOnce(const Recipe& recipe, const std::vector<RecipeModel>& models);
// `relative`: there is a base beside them. `where`: what to blame.
void CheckNumberOfModels(const MethodInfo& method, const Recipe& recipe, const std::vector<RecipeModel>& models,
                         Location where, bool relative);
// `around`: what may give the value, too, beside a model itself and the recipe's own parameters.
void CheckRequiredParameters(const MethodInfo& method, const Recipe& recipe, const std::vector<RecipeModel>& models,
                             std::initializer_list<const Settings*> around);
// Appends the base unless it is among them.
void AddListedBase(const std::string& base, const Recipe& recipe, std::vector<RecipeModel>* models);

}  // namespace braid
