#include "pipeline/recipe.h"

#include <fmt/format.h>

#include <filesystem>

#include "io/os.h"
#include "pipeline/recipe_node.h"

namespace braid {
namespace {

constexpr size_t kMaxRecipeBytes = 1u << 20;
constexpr size_t kMaxQuotedBytes = 80;

bool IsContinuation(unsigned char byte) { return (byte & 0xc0) == 0x80; }

// Bytes of the well-formed UTF-8 character at the start of `text`; 0 when there is none (overlong forms,
// surrogates and anything above U+10FFFF are not well-formed).
size_t Utf8Length(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if (!IsContinuation(byte(i))) return 0;
  if (lead == 0xe0 && byte(1) < 0xa0) return 0;
  if (lead == 0xed && byte(1) > 0x9f) return 0;
  if (lead == 0xf0 && byte(1) < 0x90) return 0;
  if (lead == 0xf4 && byte(1) > 0x8f) return 0;
  return length;
}

void CheckText(const Recipe& recipe) {
  const std::string_view text = recipe.text;
  if (text.size() > kMaxRecipeBytes)
    throw RecipeError(
        recipe, {1, 1},
        fmt::format("{} bytes is too large for a recipe (limit {})", text.size(), kMaxRecipeBytes));
  Location where{1, 1};
  for (size_t at = 0; at < text.size();) {
    const size_t length = Utf8Length(text.substr(at));
    if (length == 0)
      throw RecipeError(recipe, where, "not UTF-8 text").Hint("save the recipe in the encoding UTF-8");
    if (text[at] == '\0') throw RecipeError(recipe, where, "a NUL byte has no place in a recipe");
    if (text[at] == '\n')
      where = {where.line + 1, 1};
    else
      ++where.column;
    at += length;
  }
}

}  // namespace

const RecipeNode* RecipeNode::Find(std::string_view key) const {
  for (const RecipeEntry& entry : entries)
    if (entry.key == key) return &entry.value;
  return nullptr;
}

void RecipeTreeLimits::Visit(const Recipe& recipe, int depth, Location where) {
  if (depth > kMaxDepth)
    throw RecipeError(recipe, where, fmt::format("nested more than {} levels deep", kMaxDepth));
  if (++nodes_ > kMaxNodes)
    throw RecipeError(recipe, where, fmt::format("more than {} values, repeated ones included", kMaxNodes));
}

void CheckNoNul(const Recipe& recipe, std::string_view text, Location where) {
  if (text.find('\0') != std::string_view::npos)
    throw RecipeError(recipe, where, "a NUL character has no place in a recipe");
}

Recipe StartRecipe(std::string text, const std::string& path, Syntax syntax) {
  Recipe recipe;
  recipe.path = path;
  recipe.text = std::move(text);
  recipe.syntax = syntax;
  CheckText(recipe);
  return recipe;
}

std::string Quoted(std::string_view text) {
  if (text.size() <= kMaxQuotedBytes) return fmt::format("'{}'", text);
  size_t end = kMaxQuotedBytes;
  while (end > 0 && IsContinuation(static_cast<unsigned char>(text[end]))) --end;
  return fmt::format("'{}...'", text.substr(0, end));
}

Error RecipeError(const Recipe& recipe, Location where, std::string message) {
  return Error(ErrorCode::kUsage, std::move(message)).Path(recipe.path).At(where.line, where.column);
}

Error AskedForAt(Error error, const Recipe& recipe, Location where) {
  if (error.path() == recipe.path) return error;   // it has its own
  return error.AskedForAt(recipe.path, where.line, where.column);
}

std::vector<std::string> WarningTexts(const Recipe& recipe) {
  std::vector<std::string> texts;
  for (const RecipeWarning& warning : recipe.warnings)
    texts.push_back(fmt::format("{}:{}:{}: {}", Printable(recipe.path), warning.where.line, warning.where.column,
                                Printable(warning.message)));
  return texts;
}

Syntax SyntaxOf(const std::string& path) {
  const std::string extension = std::filesystem::path(path).extension().string();
  return extension == ".yml" || extension == ".yaml" ? Syntax::kYaml : Syntax::kToml;
}

Recipe ReadRecipe(const std::string& path) {
  std::string text = ReadSmallFile(path);
  if (SyntaxOf(path) == Syntax::kYaml) return ParseYamlRecipe(std::move(text), path);
  return ParseTomlRecipe(std::move(text), path);
}

}  // namespace braid
