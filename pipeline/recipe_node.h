// What a recipe file says before anyone asks what it means: a tree of values, each with its line and column.
// Both syntaxes are turned into this tree first, under the same limits, so that nothing beyond the two
// converters depends on toml++ or yaml-cpp.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/recipe.h"

namespace braid {

struct RecipeEntry;

struct RecipeNode {
  enum class Kind {
    kNothing,  // YAML's null
    kText,     // every other YAML scalar is text until a reader knows what it should be
    kNumber,
    kFlag,
    kDate,
    kList,
    kTable,
  };

  Kind kind = Kind::kNothing;
  Location where;
  std::string text;
  double number = 0;
  bool flag = false;
  std::vector<RecipeNode> items;     // of a kList
  std::vector<RecipeEntry> entries;  // of a kTable, in the order of the file, keys unique

  // The value of a key of a kTable; nullptr when it has none of that name.
  const RecipeNode* Find(std::string_view key) const;
};

struct RecipeEntry {
  std::string key;
  Location where;
  RecipeNode value;
};

// What keeps a small file from becoming a large tree. Counts every node that a converter visits.
class RecipeTreeLimits {
 public:
  static constexpr int kMaxDepth = 64;
  static constexpr size_t kMaxNodes = 100'000;

  // Called for each node; throws RecipeError when it lies too deep or is one too many.
  void Visit(const Recipe& recipe, int depth, Location where);

 private:
  size_t nodes_ = 0;
};

// A key or text that came out of escapes may hold a NUL, at which the system would cut a path short. Throws
// RecipeError.
void CheckNoNul(const Recipe& recipe, std::string_view text, Location where);

// An empty recipe around a file's text, after the checks that need no parser: size, UTF-8, NUL. Throws
// RecipeError.
Recipe StartRecipe(std::string text, const std::string& path, Syntax syntax);

// 'text' for a message: cut short when it is long, never inside a character.
std::string Quoted(std::string_view text);

}  // namespace braid
