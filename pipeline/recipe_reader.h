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
#include "pipeline/recipe_stages.h"

namespace braid {

// Who a parameter is written for.
enum class ParameterHolder { kAllModels, kOneSlice, kOneModel };

class RecipeReader {
 public:
  // `recipe` must outlive the reader, and so must `stages`: those of the same file.
  explicit RecipeReader(Recipe* recipe, const StageNames* stages = nullptr) : recipe_(*recipe), stages_(stages) {}

  Recipe& recipe() { return recipe_; }
  const MethodInfo& method() const { return *method_; }  // after ReadMethod

  [[noreturn]] void Fail(Location where, std::string message, std::string hint = "") const;
  void Warn(Location where, std::string message);

  // An unknown key of `place`: fails with the nearest of `known`, or with what the key is called in this
  // syntax.
  [[noreturn]] void FailUnknownKey(const RecipeEntry& entry, std::string_view place,
                                   const std::vector<std::string_view>& known) const;

  // Each fails unless the node is what is wanted; `name` is the key it was found under.
  void RequireTable(const RecipeNode& node, std::string_view name) const;
  void RequireList(const RecipeNode& node, std::string_view name) const;
  std::string ReadText(const RecipeNode& node, std::string_view name) const;       // not empty
  std::string ReadReference(const RecipeNode& node, std::string_view name) const;  // "~/" expanded
  std::string ReadStage(const RecipeNode& node) const;                             // a name; gives a StageReference
  bool IsStage(std::string_view name) const { return stages_ != nullptr && stages_->contains(name); }
  DType ReadType(const RecipeNode& node, std::string_view name) const;
  OnMissing ReadOnMissing(const RecipeNode& node) const;
  std::vector<NameFilter> ReadGlobs(const RecipeNode& node, std::string_view name) const;  // one or a list
  LayerScale ReadLayerScale(const RecipeNode& node) const;  // after ReadMethod

  // Sets the recipe's method, the value of this key of its table.
  void ReadMethod(const RecipeNode& table, std::string_view key);

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
  const StageNames* stages_;
  const MethodInfo* method_ = nullptr;
};

}  // namespace braid
