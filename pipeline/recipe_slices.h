// Recipes that put a model together from layers: `slices`, and `modules` around them or around `models`. What both
// syntaxes share in reading them, and what can be wrong with them. Everything that fails throws RecipeError.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/recipe_reader.h"

namespace braid {

// What each syntax writes in its own way.
struct SliceSyntax {
  std::string_view base_key;  // "base_model"
  // An entry of `sources`, or of a module's `models`; only the former may have a layer_range.
  std::function<RecipeModel(const RecipeNode&, bool has_layers)> read_model;
  std::function<std::string(const RecipeNode&, std::string_view name)> read_reference;
  // The parameters for all models of a slice or module; fails for what is neither that nor one of `keys`.
  std::function<void(const RecipeNode&, std::string_view place, const std::vector<std::string_view>& keys, Settings*)>
      read_parameters;
};

// Fails when the recipe has more than one of models, slices and modules. `place`: "the recipe" or "a module".
void CheckOneOfModelsSlicesModules(const RecipeReader& reader, const RecipeNode& table, std::string_view place);

// The value of `slices`, as the only module of the recipe.
void ReadSlices(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax);
// The value of `modules`.
void ReadModules(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax);

// The value of `layer_range`: two whole numbers.
LayerRange ReadLayerRange(const RecipeReader& reader, const RecipeNode& node);

// Brings the modules into the form that recipe.h promises, and checks that the sources of each slice fit together and
// the method; of CompleteRecipe.
void CompleteModules(const MethodInfo& method, Recipe* recipe);

}  // namespace braid
