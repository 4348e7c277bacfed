// What the two recipe readers share: turning nodes of the tree into the Recipe's values, and the wording of
// what can go wrong there. Used while one recipe is read, by one thread; everything that fails throws
// RecipeError.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ops/method.h"
#include "pipeline/recipe.h"
#include "pipeline/recipe_node.h"

namespace braid {

// Who a parameter is written for.
enum class ParameterHolder { kAllModels, kOneSlice, kOneModel };

class RecipeReader {
 public:
  // `recipe` must outlive the reader.
  explicit RecipeReader(Recipe* recipe) : recipe_(*recipe) {}

  Recipe& recipe() { return recipe_; }
  const MethodInfo& method() const { return *method_; }  // after ReadMethod

  [[noreturn]] void Fail(Location where, std::string message, std::string hint = "") const;
  void Warn(Location where, std::string message);

  // Fails for a top-level key that mergekit has and Braid has not yet, saying what to use instead.
  void RefuseUnsupportedKey(const RecipeEntry& entry) const;

  // An unknown key of `place`: fails with the nearest of `known`, or with what the key is called in this
  // syntax.
  [[noreturn]] void FailUnknownKey(const RecipeEntry& entry, std::string_view place,
                                   const std::vector<std::string_view>& known) const;

  // Each fails unless the node is what is wanted; `name` is the key it was found under.
  void RequireTable(const RecipeNode& node, std::string_view name) const;
  void RequireList(const RecipeNode& node, std::string_view name) const;
  std::string ReadText(const RecipeNode& node, std::string_view name) const;       // not empty
  std::string ReadReference(const RecipeNode& node, std::string_view name) const;  // "~/" expanded
  DType ReadType(const RecipeNode& node, std::string_view name) const;
  OnMissing ReadOnMissing(const RecipeNode& node) const;
  std::vector<NameFilter> ReadGlobs(const RecipeNode& node, std::string_view name) const;  // one or a list
  LayerScale ReadLayerScale(const RecipeNode& node) const;  // after ReadMethod

  // Sets the recipe's method. `node` is nullptr when the key is missing.
  void ReadMethod(const RecipeNode* node, std::string_view name);

  // The method's parameter of that name. nullptr, after a warning, when it has no effect there.
  const ParameterSpec* FindParameter(const RecipeEntry& entry, ParameterHolder holder);

  // A value or a gradient, without a filter.
  Setting ReadSetting(const ParameterSpec& spec, const RecipeNode& node) const;

 private:
  double ReadScalar(const ParameterSpec& spec, const RecipeNode& node) const;
  double ReadNumber(const ParameterSpec& spec, const RecipeNode& node) const;
  double ReadFlag(const ParameterSpec& spec, const RecipeNode& node) const;
  double ReadChoice(const ParameterSpec& spec, const RecipeNode& node) const;
  std::string Describe(const RecipeNode& node) const;

  Recipe& recipe_;
  const MethodInfo* method_ = nullptr;
};

}  // namespace braid
