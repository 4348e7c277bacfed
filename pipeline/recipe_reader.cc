#include "pipeline/recipe_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <utility>

namespace braid {
namespace {

constexpr double kUnbounded = 1e30;  // what ParameterSpec says when a method sets no bound

using Pair = std::pair<std::string_view, std::string_view>;

template <size_t n>
std::string_view Lookup(const std::array<Pair, n>& table, std::string_view key) {
  for (const auto& [name, value] : table)
    if (name == key) return value;
  return {};
}

// What a key is called in the other syntax.
constexpr std::array<Pair, 4> kTomlNames = {{{"merge_method", "method"},
                                             {"base_model", "base"},
                                             {"model", "path"},
                                             {"tokenizer_source", "tokenizer"}}};
constexpr std::array<Pair, 3> kYamlNames = {
    {{"method", "merge_method"}, {"base", "base_model"}, {"path", "model"}}};

// What only TOML has a form for.
constexpr std::array<Pair, 1> kTomlOnly = {
    {{"output", "it is TOML's: write the recipe in TOML ('braid recipe convert'), or use 'braid merge --compress'"}}};

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

std::string DidYouMean(std::string_view word, const std::vector<std::string_view>& candidates) {
  const std::string nearest = NearestName(Lower(word), candidates);
  if (!nearest.empty()) return fmt::format("did you mean '{}'?", nearest);
  if (candidates.empty()) return "";
  return fmt::format("known here: {}", fmt::join(candidates, ", "));
}

// A number as YAML and Python write it, also where YAML 1.1 sees text, as in 1e-5. Not finite where it is too
// large, or infinite by name; nothing where it is no number, or one that means different things to different
// readers (010).
std::optional<double> ParseYamlNumber(std::string_view text) {
  const std::string lower = Lower(text);
  std::string_view digits = lower;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  if (digits == ".inf" || digits == ".nan") return std::nan("");
  if (digits.starts_with('-')) return std::nullopt;
  if (digits.size() > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9') return std::nullopt;
  double value = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value);
  if (parsed.ptr != end || parsed.ec == std::errc::invalid_argument) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) return std::nan("");
  return negative ? -value : value;
}

std::optional<bool> ParseYamlFlag(std::string_view text) {
  const std::string lower = Lower(text);
  for (std::string_view yes : {"true", "yes", "on", "1"})
    if (lower == yes) return true;
  for (std::string_view no : {"false", "no", "off", "0"})
    if (lower == no) return false;
  return std::nullopt;
}

std::string ExpandHome(std::string reference) {
  const char* home = std::getenv("HOME");
  if (!reference.starts_with("~/") || home == nullptr) return reference;
  return home + reference.substr(1);
}

}  // namespace

void RecipeReader::Fail(Location where, std::string message, std::string hint) const {
  throw RecipeError(recipe_, where, std::move(message)).Hint(std::move(hint));
}

void RecipeReader::Warn(Location where, std::string message) {
  recipe_.warnings.push_back({std::move(message), where});
}

void RecipeReader::FailUnknownKey(const RecipeEntry& entry, std::string_view place,
                                  const std::vector<std::string_view>& known) const {
  const bool toml = recipe_.syntax == Syntax::kToml;
  const std::string message = fmt::format("unknown key {} in {}", Quoted(entry.key), place);
  const std::string_view here = toml ? Lookup(kTomlNames, entry.key) : Lookup(kYamlNames, entry.key);
  if (std::find(known.begin(), known.end(), here) != known.end())
    Fail(entry.where, message, fmt::format("here it is called '{}'", here));
  if (!toml && !Lookup(kTomlOnly, entry.key).empty())
    Fail(entry.where, message, std::string(Lookup(kTomlOnly, entry.key)));
  if (method_ != nullptr && method_->Find(entry.key) != nullptr)
    Fail(entry.where, message,
         toml ? "it is a parameter: write it under [parameters], or beside the path of a model"
              : "it is a parameter: write it under 'parameters'");
  Fail(entry.where, message, DidYouMean(entry.key, known));
}

void RecipeReader::RequireTable(const RecipeNode& node, std::string_view name) const {
  if (node.kind != RecipeNode::Kind::kTable)
    Fail(node.where, fmt::format("'{}' must be a table of keys and values, not {}", name, Describe(node)));
}

void RecipeReader::RequireList(const RecipeNode& node, std::string_view name) const {
  if (node.kind == RecipeNode::Kind::kList) return;
  Fail(node.where, fmt::format("'{}' must be a list, not {}", name, Describe(node)),
       recipe_.syntax == Syntax::kToml ? fmt::format("begin each entry with [[{}]]", name)
                                       : "begin each entry with '- '");
}

std::string RecipeReader::ReadText(const RecipeNode& node, std::string_view name) const {
  if (node.kind != RecipeNode::Kind::kText)
    Fail(node.where, fmt::format("'{}' must be text, not {}", name, Describe(node)));
  if (node.text.empty()) Fail(node.where, fmt::format("'{}' is empty", name));
  return node.text;
}

std::string RecipeReader::ReadReference(const RecipeNode& node, std::string_view name) const {
  std::string reference = ExpandHome(ReadText(node, name));
  if (const std::string stage(StageNameOf(reference)); !stage.empty())
    Fail(node.where, fmt::format("{} is how Braid calls a stage", Quoted(reference)),
         recipe_.syntax == Syntax::kToml ? fmt::format("write {{ stage = \"{0}\" }}, or ./stage:{0} for a path", stage)
                                         : fmt::format("write {0} alone, or ./stage:{0} for a path", stage));
  return reference;
}

std::string RecipeReader::ReadStage(const RecipeNode& node) const {
  const std::string name = ReadText(node, "stage");
  if (IsStage(name)) return StageReference(name);
  std::vector<std::string_view> names;
  if (stages_ != nullptr) names.assign(stages_->begin(), stages_->end());
  Fail(node.where, fmt::format("no stage is called {}", Quoted(name)),
       names.empty() ? "stages with names are written as [[stages]]" : DidYouMean(name, names));
}

DType RecipeReader::ReadType(const RecipeNode& node, std::string_view name) const {
  const std::string text = ReadText(node, name);
  if (const auto type = ParseTorchLaneType(text)) return *type;
  static const std::vector<std::string_view> types = {"float64", "float32", "float16", "bfloat16"};
  Fail(node.where, fmt::format("{} is no type that a merge can be written in", Quoted(text)),
       DidYouMean(text, types));
}

OnMissing RecipeReader::ReadOnMissing(const RecipeNode& node) const {
  const std::string text = ReadText(node, "on_missing");
  static const std::vector<std::string_view> names = {"error", "base", "skip"};
  if (text == "error") return OnMissing::kError;
  if (text == "base") return OnMissing::kBase;
  if (text == "skip") return OnMissing::kSkip;
  Fail(node.where, fmt::format("on_missing cannot be {}", Quoted(text)), DidYouMean(text, names));
}

std::vector<NameFilter> RecipeReader::ReadGlobs(const RecipeNode& node, std::string_view name) const {
  std::vector<NameFilter> globs;
  if (node.kind != RecipeNode::Kind::kList) globs.push_back({ReadText(node, name), node.where});
  for (const RecipeNode& item : node.items) globs.push_back({ReadText(item, name), item.where});
  if (globs.empty()) Fail(node.where, fmt::format("'{}' names no tensors", name));
  return globs;
}

LayerScale RecipeReader::ReadLayerScale(const RecipeNode& node) const {
  if (method_->Find("lambda") == nullptr)
    Fail(node.where, fmt::format("layer_scale has nothing to scale: {} adds no task vector to a base", method_->name));
  RequireTable(node, "layer_scale");
  for (const RecipeEntry& entry : node.entries)
    if (entry.key != "alpha" && entry.key != "beta") FailUnknownKey(entry, "layer_scale", {"alpha", "beta"});
  const auto number = [&](std::string_view name) -> std::optional<double> {
    const RecipeNode* value = node.Find(name);
    if (value == nullptr) return std::nullopt;
    return ReadSetting({.name = name, .scope = ParameterScope::kRecipe, .help = ""}, *value).values.front();
  };
  const std::optional<double> beta = number("beta");
  if (!beta) Fail(node.where, "layer_scale without 'beta'", "how much larger the scale of the last layer is");
  return {.alpha = number("alpha"), .beta = *beta, .where = node.where};
}

void RecipeReader::ReadMethod(const RecipeNode& table, std::string_view key) {
  std::vector<std::string_view> names;
  for (const MethodInfo& method : Methods()) names.push_back(method.name);
  const RecipeNode* const node = table.Find(key);
  if (node == nullptr)
    Fail(stages_ == nullptr ? Location{1, 1} : table.where, fmt::format("no '{}'", key),
         fmt::format("name one of {}", fmt::join(names, ", ")));

  recipe_.method = ReadText(*node, key);
  recipe_.method_where = node->where;
  method_ = FindMethod(recipe_.method);
  if (method_ != nullptr) return;
  Fail(node->where, fmt::format("unknown method {}", Quoted(recipe_.method)),
       DidYouMean(recipe_.method, names));
}

const ParameterSpec* RecipeReader::FindParameter(const RecipeEntry& entry, ParameterHolder holder) {
  const ParameterSpec* spec = method_->Find(entry.key);
  if (spec == nullptr) {
    // mergekit parses residual_weight and never uses it.
    if (IsParameterOfAnotherMethod(entry.key) || entry.key == "residual_weight") {
      Warn(entry.where, fmt::format("'{}' has no effect in {}", entry.key, method_->name));
      return nullptr;
    }
    std::vector<std::string_view> known;
    for (const ParameterSpec& parameter : method_->parameters) known.push_back(parameter.name);
    Fail(entry.where, fmt::format("{} has no parameter {}", method_->name, Quoted(entry.key)),
         DidYouMean(entry.key, known));
  }
  if (holder == ParameterHolder::kAllModels || spec->scope == ParameterScope::kModel) return spec;
  if (spec->scope == ParameterScope::kRecipe)
    Fail(entry.where,
         fmt::format("'{}' holds for the whole recipe and cannot be set for a {}", spec->name,
                     holder == ParameterHolder::kOneModel ? "model" : "slice or module"),
         "write it in the recipe's own parameters");
  if (holder == ParameterHolder::kOneSlice) return spec;
  Warn(entry.where,
       fmt::format("'{}' is one value for all models: set for a model it has no effect", spec->name));
  return nullptr;
}

Setting RecipeReader::ReadSetting(const ParameterSpec& spec, const RecipeNode& node) const {
  Setting setting;
  setting.where = node.where;
  if (node.kind != RecipeNode::Kind::kList) {
    setting.values.push_back(ReadScalar(spec, node));
    return setting;
  }
  if (spec.scope == ParameterScope::kRecipe)
    Fail(node.where, fmt::format("'{}' holds for the whole recipe: one value, not a gradient", spec.name));
  if (node.items.empty())
    Fail(node.where, fmt::format("the gradient of '{}' has no values", spec.name), "give at least one");
  for (const RecipeNode& item : node.items) setting.values.push_back(ReadScalar(spec, item));
  return setting;
}

double RecipeReader::ReadScalar(const ParameterSpec& spec, const RecipeNode& node) const {
  switch (spec.kind) {
    case ParameterKind::kFlag:
      return ReadFlag(spec, node);
    case ParameterKind::kChoice:
      return ReadChoice(spec, node);
    case ParameterKind::kNumber:
      break;
  }
  return ReadNumber(spec, node);
}

double RecipeReader::ReadNumber(const ParameterSpec& spec, const RecipeNode& node) const {
  std::optional<double> value;
  if (node.kind == RecipeNode::Kind::kNumber)
    value = node.number;
  else if (node.kind == RecipeNode::Kind::kText && recipe_.syntax == Syntax::kYaml)
    value = ParseYamlNumber(node.text);
  if (!value) Fail(node.where, fmt::format("'{}' must be a number, not {}", spec.name, Describe(node)));
  if (!std::isfinite(*value)) Fail(node.where, fmt::format("'{}' must be a finite number", spec.name));
  if (spec.whole && *value != std::trunc(*value))
    Fail(node.where, fmt::format("'{}' must be a whole number, not {}", spec.name, *value));
  if (*value >= spec.min && *value <= spec.max) return *value;
  if (std::abs(*value) > kUnbounded)
    Fail(node.where, fmt::format("'{}' is too large: {}", spec.name, *value));
  Fail(node.where,
       fmt::format("'{}' must be between {} and {}, not {}", spec.name, spec.min, spec.max, *value));
}

double RecipeReader::ReadFlag(const ParameterSpec& spec, const RecipeNode& node) const {
  std::optional<bool> value;
  if (node.kind == RecipeNode::Kind::kFlag)
    value = node.flag;
  else if (node.kind == RecipeNode::Kind::kNumber && (node.number == 0 || node.number == 1))
    value = node.number == 1;
  else if (node.kind == RecipeNode::Kind::kText && recipe_.syntax == Syntax::kYaml)
    value = ParseYamlFlag(node.text);
  if (!value) Fail(node.where, fmt::format("'{}' must be true or false, not {}", spec.name, Describe(node)));
  return *value ? 1 : 0;
}

double RecipeReader::ReadChoice(const ParameterSpec& spec, const RecipeNode& node) const {
  if (node.kind != RecipeNode::Kind::kText)
    Fail(node.where, fmt::format("'{}' must be one of {}, not {}", spec.name, fmt::join(spec.choices, ", "),
                                 Describe(node)));
  const auto choice = std::find(spec.choices.begin(), spec.choices.end(), node.text);
  if (choice == spec.choices.end())
    Fail(node.where, fmt::format("'{}' cannot be {}", spec.name, Quoted(node.text)),
         DidYouMean(node.text, spec.choices));
  return static_cast<double>(choice - spec.choices.begin());
}

std::string RecipeReader::Describe(const RecipeNode& node) const {
  switch (node.kind) {
    case RecipeNode::Kind::kNothing:
      return "empty";
    case RecipeNode::Kind::kText:
      return recipe_.syntax == Syntax::kYaml ? Quoted(node.text) : "the text " + Quoted(node.text);
    case RecipeNode::Kind::kNumber:
      return fmt::format("the number {}", node.number);
    case RecipeNode::Kind::kFlag:
      return node.flag ? "true" : "false";
    case RecipeNode::Kind::kDate:
      return "a date or time";
    case RecipeNode::Kind::kList:
      return "a list";
    case RecipeNode::Kind::kTable:
      break;
  }
  return "a table";
}

}  // namespace braid
