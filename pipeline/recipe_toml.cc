// Our own syntax: TOML.
#include <fmt/format.h>

// toml++ 3.3.0 asserts, and with NDEBUG lets some compilers assume, what bad text can break ("[1, }",
// "[.a]"). Right behind the assertions it reports the same faults as errors, so it does without them, in
// every build.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(expression) static_assert(true)
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include <algorithm>
#include <utility>

#include "pipeline/recipe_checks.h"
#include "pipeline/recipe_output.h"
#include "pipeline/recipe_reader.h"
#include "pipeline/recipe_slices.h"
#include "pipeline/recipe_tokenizer.h"

namespace braid {
namespace {

// --- text -> tree ---------------------------------------------------------------------------------------

// toml++ 3.3.0 bounds the nesting of values but not of dotted keys, and frees tables recursively: a key of
// 20,000 components overflows the stack. So the depth is checked on the text, before it is parsed.
class TomlDepthCheck {
 public:
  explicit TomlDepthCheck(const Recipe& recipe) : recipe_(recipe), text_(recipe.text) {}

  void Run() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"' || c == '\'') {
        SkipString();
      } else if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else {
        Visit(c);
        ++at_;
      }
    }
  }

 private:
  static constexpr int kMaxKeyDots = 16;

  void Visit(char c) {
    if (c == '[' || c == '{') CheckDepth(++brackets_, RecipeTreeLimits::kMaxDepth);
    if (c == ']' || c == '}') --brackets_;
    if (c == '\n') NextLine();
    if (c == '.')
      CheckDepth(++dots_, kMaxKeyDots);
    else if (std::string_view("=,[]{}\n").find(c) != std::string_view::npos)
      dots_ = 0;
  }

  void CheckDepth(int depth, int limit) const {
    if (depth > limit)
      throw RecipeError(recipe_, {line_, static_cast<int>(at_ - line_begin_) + 1}, "nested too deeply");
  }

  void NextLine() {
    ++line_;
    line_begin_ = at_ + 1;
  }

  // Leaves at_ behind the string, or at the line end that breaks it off, for the parser to complain about.
  void SkipString() {
    const char quote = text_[at_];
    const std::string triple(3, quote);
    const bool multi_line = text_.substr(at_, 3) == triple;
    at_ += multi_line ? 3 : 1;
    while (at_ < text_.size()) {
      if (text_[at_] == '\n') {
        if (!multi_line) return;
        NextLine();
      }
      if (text_[at_] == '\\' && quote == '"' && !text_.substr(at_ + 1).starts_with('\n'))
        ++at_;
      else if (multi_line && text_.substr(at_, 3) == triple)
        return SkipClosingQuotes(quote);
      else if (!multi_line && text_[at_] == quote)
        return void(++at_);
      ++at_;
    }
  }

  // A multi-line string may end in one or two quotes of its own before the three that close it.
  void SkipClosingQuotes(char quote) {
    for (int i = 0; i < 5 && at_ < text_.size() && text_[at_] == quote; ++i) ++at_;
  }

  const Recipe& recipe_;
  std::string_view text_;
  size_t at_ = 0, line_begin_ = 0;
  int line_ = 1, dots_ = 0, brackets_ = 0;
};

class TomlTree {
 public:
  explicit TomlTree(const Recipe& recipe) : recipe_(recipe) {}

  RecipeNode Parse() {
    TomlDepthCheck(recipe_).Run();
    try {
      const toml::table root = toml::parse(std::string_view(recipe_.text));
      return Convert(root, {1, 1}, 0);
    } catch (const toml::parse_error& error) {
      throw RecipeError(recipe_, At(error.source(), {1, 1}), std::string(error.description()));
    }
  }

 private:
  // Tables that only exist because a longer key names them may have no place of their own.
  static Location At(const toml::source_region& source, Location otherwise) {
    if (source.begin.line == 0) return otherwise;
    return {static_cast<int>(source.begin.line), static_cast<int>(source.begin.column)};
  }

  RecipeNode Convert(const toml::node& from, Location otherwise, int depth) {
    RecipeNode node;
    node.where = At(from.source(), otherwise);
    limits_.Visit(recipe_, depth, node.where);
    switch (from.type()) {
      case toml::node_type::string:
        node.kind = RecipeNode::Kind::kText;
        node.text = from.as_string()->get();
        CheckNoNul(recipe_, node.text, node.where);
        break;
      case toml::node_type::integer:
        node.kind = RecipeNode::Kind::kNumber;
        node.number = static_cast<double>(from.as_integer()->get());
        break;
      case toml::node_type::floating_point:
        node.kind = RecipeNode::Kind::kNumber;
        node.number = from.as_floating_point()->get();
        break;
      case toml::node_type::boolean:
        node.kind = RecipeNode::Kind::kFlag;
        node.flag = from.as_boolean()->get();
        break;
      case toml::node_type::array:
        ConvertArray(*from.as_array(), depth, &node);
        break;
      case toml::node_type::table:
        ConvertTable(*from.as_table(), depth, &node);
        break;
      default:
        node.kind = RecipeNode::Kind::kDate;
        break;
    }
    return node;
  }

  void ConvertArray(const toml::array& from, int depth, RecipeNode* node) {
    node->kind = RecipeNode::Kind::kList;
    for (const toml::node& item : from) node->items.push_back(Convert(item, node->where, depth + 1));
  }

  void ConvertTable(const toml::table& from, int depth, RecipeNode* node) {
    node->kind = RecipeNode::Kind::kTable;
    for (const auto& [key, value] : from) {
      const Location where = At(key.source(), node->where);
      CheckNoNul(recipe_, key.str(), where);
      node->entries.push_back({std::string(key.str()), where, Convert(value, where, depth + 1)});
    }
    // toml++ sorts by name.
    std::stable_sort(
        node->entries.begin(), node->entries.end(), [](const RecipeEntry& a, const RecipeEntry& b) {
          return std::pair(a.where.line, a.where.column) < std::pair(b.where.line, b.where.column);
        });
  }

  const Recipe& recipe_;
  RecipeTreeLimits limits_;
};

// --- tree -> recipe -------------------------------------------------------------------------------------

class TomlReader {
 public:
  explicit TomlReader(Recipe* recipe, const StageNames* stages = nullptr)
      : reader_(recipe, stages), recipe_(*recipe), is_stage_(stages != nullptr) {}

  void Read(const RecipeNode& root) {
    if (is_stage_) reader_.RequireTable(root, "stages");
    reader_.ReadMethod(root, "method");
    CheckOneOfModelsSlicesModules(reader_, root, "the recipe");
    for (const RecipeEntry& entry : root.entries) ReadTopLevel(entry);
    // Overrides come first in the order of precedence, wherever they stand in the file.
    if (const RecipeNode* overrides = root.Find("overrides"))
      ReadOverrides(*overrides, "overrides", ParameterHolder::kAllModels, &recipe_.settings);
    if (const RecipeNode* parameters = root.Find("parameters")) ReadParameters(*parameters);
    if (const RecipeNode* models = root.Find("models")) ReadModels(*models);
    if (const RecipeNode* slices = root.Find("slices")) ReadSlices(&reader_, *slices, SyntaxOfSlices());
    if (const RecipeNode* modules = root.Find("modules")) ReadModules(&reader_, *modules, SyntaxOfSlices());
    CompleteRecipe(reader_.method(), &recipe_);
    CheckTokenizer(&recipe_);
  }

 private:
  void ReadTopLevel(const RecipeEntry& entry) {
    static const std::vector<std::string_view> known = {"method",    "base",       "dtype",
                                                        "out_dtype", "models",     "on_missing",
                                                        "tokenizer", "parameters", "overrides",
                                                        "slices",    "modules",    "layer_scale",
                                                        "chat_template", "only", "exclude",
                                                        "output"};
    const RecipeNode& value = entry.value;
    if (entry.key == "name" && is_stage_) {
      recipe_.name = reader_.ReadText(value, entry.key);
      recipe_.name_where = value.where;
    } else if (entry.key == "base") {
      recipe_.base = ReadBase(value, entry.key);
      recipe_.base_where = value.where;
    } else if (entry.key == "dtype") {
      recipe_.dtype = reader_.ReadType(value, entry.key);
    } else if (entry.key == "out_dtype") {
      recipe_.out_dtype = reader_.ReadType(value, entry.key);
    } else if (entry.key == "on_missing") {
      recipe_.on_missing = reader_.ReadOnMissing(value);
    } else if (entry.key == "tokenizer") {
      const auto reference = [this](const RecipeNode& node, std::string_view name) {
        return reader_.ReadReference(node, name);
      };
      if (value.kind == RecipeNode::Kind::kTable) ReadTokenizerTable(&reader_, value, reference);
      else ReadTokenizerSource(&reader_, value, entry.key, reference);
    } else if (entry.key == "chat_template") {
      ReadChatTemplate(&reader_, value);
    } else if (entry.key == "only" || entry.key == "exclude") {
      (entry.key == "only" ? recipe_.only : recipe_.exclude) = reader_.ReadGlobs(value, entry.key);
    } else if (entry.key == "layer_scale") {
      recipe_.layer_scale = reader_.ReadLayerScale(value);
    } else if (entry.key == "output") {
      if (is_stage_) reader_.Fail(entry.where, "only the result is written: 'output' stands outside of the stages");
      recipe_.output = ReadOutput(reader_, value);
    } else if (std::find(known.begin(), known.end(), entry.key) == known.end()) {
      reader_.FailUnknownKey(entry, is_stage_ ? "a stage" : "the recipe", known);
    }
  }

  // Text, or { stage = "..." }.
  std::string ReadBase(const RecipeNode& node, std::string_view name) const {
    if (node.kind != RecipeNode::Kind::kTable) return reader_.ReadReference(node, name);
    for (const RecipeEntry& entry : node.entries)
      if (entry.key != "stage") reader_.FailUnknownKey(entry, fmt::format("'{}'", name), {"stage"});
    const RecipeNode* stage = node.Find("stage");
    if (stage == nullptr) reader_.Fail(node.where, fmt::format("'{}' is a table without a 'stage'", name));
    return reader_.ReadStage(*stage);
  }

  void ReadParameters(const RecipeNode& node) {
    reader_.RequireTable(node, "parameters");
    for (const RecipeEntry& entry : node.entries)
      if (const ParameterSpec* spec = reader_.FindParameter(entry, ParameterHolder::kAllModels))
        recipe_.settings[entry.key].push_back(reader_.ReadSetting(*spec, entry.value));
  }

  void ReadModels(const RecipeNode& node) {
    reader_.RequireList(node, "models");
    for (const RecipeNode& item : node.items) recipe_.models.push_back(ReadModel(item, false));
  }

  SliceSyntax SyntaxOfSlices() {
    return {
        .base_key = "base",
        .read_model = [this](const RecipeNode& node, bool has_layers) { return ReadModel(node, has_layers); },
        .read_reference = [this](const RecipeNode& node, std::string_view name) { return ReadBase(node, name); },
        .read_parameters =
            [this](const RecipeNode& node, std::string_view place, const std::vector<std::string_view>& keys,
                   Settings* settings) { ReadParametersOf(node, place, keys, ParameterHolder::kOneSlice, settings); }};
  }

  RecipeModel ReadModel(const RecipeNode& node, bool has_layers) {
    reader_.RequireTable(node, has_layers ? "sources" : "models");
    const RecipeNode *path = node.Find("path"), *stage = node.Find("stage");
    if (path == nullptr && stage == nullptr) reader_.Fail(node.where, "a model without a 'path'");
    if (path != nullptr && stage != nullptr) reader_.Fail(stage->where, "a model with both a 'path' and a 'stage'");
    RecipeModel model;
    model.reference = stage != nullptr ? reader_.ReadStage(*stage) : reader_.ReadReference(*path, "path");
    model.where = (stage != nullptr ? stage : path)->where;
    std::vector<std::string_view> keys = {"path", "stage"};
    if (has_layers) {
      const RecipeNode* layers = node.Find("layer_range");
      if (layers == nullptr)
        reader_.Fail(node.where, fmt::format("a source without a 'layer_range': {}", Quoted(model.reference)),
                     "say which of its layers the slice takes, as in layer_range = [0, 16]");
      model.layers = ReadLayerRange(reader_, *layers);
      keys.push_back("layer_range");
    }
    ReadParametersOf(node, "a model", keys, ParameterHolder::kOneModel, &model.settings);
    return model;
  }

  // Parameters that stand beside the keys of a model, slice or module.
  void ReadParametersOf(const RecipeNode& node, std::string_view place, std::vector<std::string_view> keys,
                        ParameterHolder holder, Settings* settings) {
    const std::string_view name = holder == ParameterHolder::kOneSlice ? "slices.overrides" : "models.overrides";
    if (const RecipeNode* overrides = node.Find("overrides")) ReadOverrides(*overrides, name, holder, settings);
    keys.push_back("overrides");
    for (const RecipeEntry& entry : node.entries) {
      if (std::find(keys.begin(), keys.end(), entry.key) != keys.end()) continue;
      RequireParameterName(entry, place, keys);
      if (const ParameterSpec* spec = reader_.FindParameter(entry, holder))
        (*settings)[entry.key].push_back(reader_.ReadSetting(*spec, entry.value));
    }
  }

  void ReadOverrides(const RecipeNode& node, std::string_view name, ParameterHolder holder,
                     Settings* settings) {
    reader_.RequireList(node, name);
    for (const RecipeNode& item : node.items) ReadOverride(item, name, holder, settings);
  }

  void ReadOverride(const RecipeNode& node, std::string_view name, ParameterHolder holder,
                    Settings* settings) {
    reader_.RequireTable(node, name);
    const RecipeNode* tensors = node.Find("tensors");
    if (tensors == nullptr)
      reader_.Fail(node.where, "an override without 'tensors'", "name them, as in tensors = \"*.mlp.*\"");
    const std::vector<NameFilter> globs = reader_.ReadGlobs(*tensors, "tensors");
    if (node.entries.size() == 1) reader_.Fail(node.where, "an override that sets no parameter");
    for (const RecipeEntry& entry : node.entries) {
      if (entry.key == "tensors") continue;
      RequireParameterName(entry, "an override", {"tensors"});
      const ParameterSpec* spec = reader_.FindParameter(entry, holder);
      if (spec == nullptr) continue;
      if (spec->scope == ParameterScope::kRecipe)
        reader_.Fail(
            entry.where,
            fmt::format("'{}' holds for the whole recipe and cannot be set for some tensors", spec->name),
            "write it under [parameters]");
      Setting setting = reader_.ReadSetting(*spec, entry.value);
      for (const NameFilter& filter : globs) {
        setting.filter = filter.glob == "*" ? "" : filter.glob;
        setting.filter_where = filter.where;
        (*settings)[entry.key].push_back(setting);
      }
    }
  }

  // Beside keys of their own, models and overrides take parameters: a slip may be one of either.
  void RequireParameterName(const RecipeEntry& entry, std::string_view place,
                            std::vector<std::string_view> keys) const {
    if (reader_.method().Find(entry.key) != nullptr || IsParameterOfAnotherMethod(entry.key)) return;
    if (entry.key == "residual_weight") return;
    for (const ParameterSpec& spec : reader_.method().parameters) keys.push_back(spec.name);
    reader_.FailUnknownKey(entry, place, keys);
  }

  RecipeReader reader_;
  Recipe& recipe_;
  bool is_stage_;
};

// A file of [[stages]] holds nothing else but what becomes of the result.
void ReadTomlStages(const RecipeNode& root, const RecipeNode& stages, Recipe* recipe) {
  const RecipeReader reader(recipe);
  reader.RequireList(stages, "stages");
  for (const RecipeEntry& entry : root.entries)
    if (entry.key != "stages" && entry.key != "output")
      reader.Fail(entry.where, fmt::format("{} stands outside of the stages", Quoted(entry.key)),
                  "write it in the stage that it is for");
  ReadStages(stages.items, recipe, [](const RecipeNode& table, const StageNames& names, Recipe* stage) {
    TomlReader(stage, &names).Read(table);
  });
  if (const RecipeNode* output = root.Find("output")) recipe->output = ReadOutput(reader, *output);
  if (recipe->output.content == RecipeOutput::Content::kDelta)
    reader.Fail(recipe->output.where, "a chain of stages has no delta: its base may be another stage's result",
                "write the checkpoint");
}

}  // namespace

Recipe ParseTomlRecipe(std::string text, const std::string& path) {
  Recipe recipe = StartRecipe(std::move(text), path, Syntax::kToml);
  const RecipeNode root = TomlTree(recipe).Parse();
  if (const RecipeNode* stages = root.Find("stages")) ReadTomlStages(root, *stages, &recipe);
  else TomlReader(&recipe).Read(root);
  return recipe;
}

}  // namespace braid
