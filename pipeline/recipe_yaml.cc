// mergekit's syntax: YAML.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "pipeline/glob.h"
#include "pipeline/recipe_checks.h"
#include "pipeline/recipe_reader.h"
#include "pipeline/recipe_reference.h"
#include "pipeline/recipe_slices.h"
#include "pipeline/recipe_tokenizer.h"

namespace braid {
namespace {

// --- text -> tree ---------------------------------------------------------------------------------------

// Builds the tree from yaml-cpp's events rather than from its nodes: the limits then hold while the text is
// read, aliases are copied one by one and counted (a small file can stand for an exponential tree), and a document
// that does not begin with "---" is asked for only once (YAML::LoadAll of 0.7 never ends where a closing bracket stands
// alone).
class YamlTree : private YAML::EventHandler {
 public:
  explicit YamlTree(const Recipe& recipe) : recipe_(recipe) {}

  // The documents of the file; at least one, which may be empty.
  std::vector<RecipeNode> Parse() {
    std::istringstream stream(recipe_.text);
    std::vector<RecipeNode> documents;
    try {
      YAML::Parser parser(stream);
      do {
        root_ = {};
        anchors_.clear();
        if (!parser.HandleNextDocument(*this) && !documents.empty()) break;
        documents.push_back(std::move(root_));
        in_first_document_ = false;
      } while (true);
    } catch (const YAML::Exception& error) {
      throw RecipeError(recipe_, At(error.mark), error.msg);
    }
    return documents;
  }

 private:
  // A list or table whose end has not come yet.
  struct Open {
    RecipeNode node;
    YAML::anchor_t anchor;
    bool has_key = false;  // of a table: the next node is the value of the last entry
    std::map<std::string, Location> keys = {};
  };

  static Location At(const YAML::Mark& mark) {
    if (mark.is_null()) return {1, 1};
    return {mark.line + 1, mark.column + 1};
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (in_first_document_) return;
    if (mark.pos < 0 ||
        !std::string_view(recipe_.text).substr(static_cast<size_t>(mark.pos)).starts_with("---"))
      throw RecipeError(recipe_, At(mark), "text behind the end of the recipe")
          .Hint("look for a bracket too many, or a wrong indentation");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    // The mark of a value that is not there is that of whatever comes next.
    RecipeNode node;
    node.where = At(mark);
    if (!open_.empty() && open_.back().has_key)
      node.where = open_.back().node.entries.back().where;
    else if (!open_.empty())
      node.where = open_.back().node.where;
    Add(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto anchored = anchors_.find(anchor);
    if (anchored == anchors_.end())
      throw RecipeError(recipe_, At(mark), "an alias (*) inside of what it stands for");
    CountCopy(anchored->second, open_.size());
    Attach(anchored->second);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    CheckTag(tag, At(mark));
    CheckNoNul(recipe_, value, At(mark));
    RecipeNode node;
    node.kind = RecipeNode::Kind::kText;
    node.where = At(mark);
    node.text = value;
    Add(std::move(node), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Begin(RecipeNode::Kind::kList, At(mark), tag, anchor);
  }
  void OnSequenceEnd() override { End(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Begin(RecipeNode::Kind::kTable, At(mark), tag, anchor);
  }
  void OnMapEnd() override { End(); }

  void Begin(RecipeNode::Kind kind, Location where, const std::string& tag, YAML::anchor_t anchor) {
    CheckTag(tag, where);
    if (AwaitsKey()) FailKey(where);
    limits_.Visit(recipe_, static_cast<int>(open_.size()), where);
    Open open{.node = {}, .anchor = anchor};
    open.node.kind = kind;
    open.node.where = where;
    open_.push_back(std::move(open));
  }

  void End() {
    Open closed = std::move(open_.back());
    open_.pop_back();
    Remember(closed.node, closed.anchor);
    Attach(std::move(closed.node));
  }

  // A node without parts.
  void Add(RecipeNode node, YAML::anchor_t anchor) {
    limits_.Visit(recipe_, static_cast<int>(open_.size()), node.where);
    Remember(node, anchor);
    Attach(std::move(node));
  }

  void Remember(const RecipeNode& node, YAML::anchor_t anchor) {
    if (anchor == YAML::NullAnchor) return;
    CountCopy(node, open_.size());
    anchors_[anchor] = node;
  }

  void CountCopy(const RecipeNode& node, size_t depth) {
    limits_.Visit(recipe_, static_cast<int>(depth), node.where);
    for (const RecipeNode& item : node.items) CountCopy(item, depth + 1);
    for (const RecipeEntry& entry : node.entries) CountCopy(entry.value, depth + 1);
  }

  bool AwaitsKey() const {
    return !open_.empty() && open_.back().node.kind == RecipeNode::Kind::kTable && !open_.back().has_key;
  }

  // Gives a finished node to the list or table it belongs to.
  void Attach(RecipeNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
    } else if (AwaitsKey()) {
      AttachKey(node);
    } else if (open_.back().node.kind == RecipeNode::Kind::kTable) {
      open_.back().node.entries.back().value = std::move(node);
      open_.back().has_key = false;
    } else {
      open_.back().node.items.push_back(std::move(node));
    }
  }

  void AttachKey(const RecipeNode& node) {
    if (node.kind != RecipeNode::Kind::kText) FailKey(node.where);
    if (node.text == "<<")
      throw RecipeError(recipe_, node.where, "merge keys (<<) are not supported")
          .Hint("write the values out");
    Open& table = open_.back();
    const auto [first, is_new] = table.keys.emplace(node.text, node.where);
    if (!is_new)
      throw RecipeError(recipe_, node.where,
                        fmt::format("the key {} is there twice, first at {}:{}", Quoted(node.text),
                                    first->second.line, first->second.column));
    table.node.entries.push_back({node.text, node.where, {}});
    table.has_key = true;
  }

  [[noreturn]] void FailKey(Location where) const {
    throw RecipeError(recipe_, where, "a key must be plain text");
  }

  void CheckTag(const std::string& tag, Location where) const {
    if (!tag.empty() && tag != "?" && tag != "!")
      throw RecipeError(recipe_, where, fmt::format("YAML tags are not supported: {}", Quoted(tag)));
  }

  const Recipe& recipe_;
  RecipeTreeLimits limits_;
  bool in_first_document_ = true;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, RecipeNode> anchors_;
  RecipeNode root_;
};

// --- tree -> recipe -------------------------------------------------------------------------------------

bool IsNothing(const RecipeNode& node) { return node.kind == RecipeNode::Kind::kNothing; }

class YamlReader {
 public:
  explicit YamlReader(Recipe* recipe, const StageNames* stages = nullptr) : reader_(recipe, stages), recipe_(*recipe) {}

  void Read(const RecipeNode& root) {
    if (IsNothing(root)) reader_.Fail(root.where.line > 0 ? root.where : Location{1, 1}, "an empty recipe");
    if (root.kind != RecipeNode::Kind::kTable)
      reader_.Fail(root.where, "a recipe is a table of keys and values");
    reader_.ReadMethod(root, "merge_method");
    CheckOneOfModelsSlicesModules(reader_, root, "the recipe");
    for (const RecipeEntry& entry : root.entries) ReadTopLevel(entry);
    CompleteRecipe(reader_.method(), &recipe_);
    CheckTokenizer(&recipe_);
  }

 private:
  void ReadTopLevel(const RecipeEntry& entry) {
    static const std::vector<std::string_view> known = {"merge_method",  "models",      "slices",
                                                        "modules",       "base_model",  "parameters",
                                                        "dtype",         "out_dtype",   "tokenizer_source",
                                                        "on_missing",    "layer_scale", "tokenizer",
                                                        "chat_template", "only",        "exclude",
                                                        "name"};
    const auto reference = [this](const RecipeNode& node, std::string_view name) {
      return ReadYamlReference(&reader_, node, name);
    };
    const RecipeNode& value = entry.value;
    const bool is_known = std::find(known.begin(), known.end(), entry.key) != known.end();
    if (is_known && IsNothing(value)) return;  // `dtype:` alone is as good as no dtype
    if (entry.key == "name") {
      recipe_.name = reader_.ReadText(value, entry.key);
      recipe_.name_where = value.where;
    } else if (entry.key == "models") {
      ReadModels(value);
    } else if (entry.key == "slices") {
      ReadSlices(&reader_, value, SyntaxOfSlices());
    } else if (entry.key == "modules") {
      ReadModules(&reader_, value, SyntaxOfSlices());
    } else if (entry.key == "base_model") {
      recipe_.base = ReadYamlReference(&reader_, value, entry.key);
      recipe_.base_where = value.where;
    } else if (entry.key == "parameters") {
      ReadParameters(value, ParameterHolder::kAllModels, &recipe_.settings);
    } else if (entry.key == "dtype") {
      recipe_.dtype = reader_.ReadType(value, entry.key);
    } else if (entry.key == "out_dtype") {
      recipe_.out_dtype = reader_.ReadType(value, entry.key);
    } else if (entry.key == "on_missing") {
      recipe_.on_missing = reader_.ReadOnMissing(value);
    } else if (entry.key == "only" || entry.key == "exclude") {
      (entry.key == "only" ? recipe_.only : recipe_.exclude) = reader_.ReadGlobs(value, entry.key);
    } else if (entry.key == "layer_scale") {
      recipe_.layer_scale = reader_.ReadLayerScale(value);
    } else if (entry.key == "tokenizer") {
      ReadTokenizerTable(&reader_, value, reference);
    } else if (entry.key == "tokenizer_source") {
      ReadTokenizerSource(&reader_, value, entry.key, reference);
    } else if (entry.key == "chat_template") {
      ReadChatTemplate(&reader_, value);
    } else if (entry.key == "residual_weight") {
      WarnOfResidualWeight(entry);
    } else if (!is_known) {
      reader_.FailUnknownKey(entry, "the recipe", known);
    }
  }

  // mergekit parses it and never uses it.
  void WarnOfResidualWeight(const RecipeEntry& entry) {
    reader_.Warn(entry.where, "'residual_weight' has no effect, in mergekit too");
  }

  void ReadModels(const RecipeNode& node) {
    reader_.RequireList(node, "models");
    for (const RecipeNode& item : node.items) recipe_.models.push_back(ReadModel(item, false));
  }

  SliceSyntax SyntaxOfSlices() {
    return {.base_key = "base_model",
            .read_model = [this](const RecipeNode& node, bool has_layers) { return ReadModel(node, has_layers); },
            .read_reference = [this](const RecipeNode& node,
                                     std::string_view name) { return ReadYamlReference(&reader_, node, name); },
            .read_parameters = [this](const RecipeNode& node, std::string_view place,
                                      const std::vector<std::string_view>& keys,
                                      Settings* settings) { ReadParametersOf(node, place, keys, settings); }};
  }

  // Of a slice or module, which has nothing but these keys beside its parameters.
  void ReadParametersOf(const RecipeNode& node, std::string_view place, std::vector<std::string_view> keys,
                        Settings* settings) {
    keys.push_back("parameters");
    for (const RecipeEntry& entry : node.entries) {
      if (std::find(keys.begin(), keys.end(), entry.key) == keys.end()) reader_.FailUnknownKey(entry, place, keys);
      if (entry.key == "parameters" && !IsNothing(entry.value))
        ReadParameters(entry.value, ParameterHolder::kOneSlice, settings);
    }
  }

  RecipeModel ReadModel(const RecipeNode& node, bool has_layers) {
    std::vector<std::string_view> known = {"model", "parameters"};
    const std::string_view list = has_layers ? "sources" : "models";
    if (has_layers) known.push_back("layer_range");
    if (node.kind != RecipeNode::Kind::kTable)
      reader_.Fail(node.where, fmt::format("an entry of '{}' must be a table", list), "write it as '- model: path'");
    const RecipeNode* reference = node.Find("model");
    RecipeModel model;
    for (const RecipeEntry& entry : node.entries) {
      if (entry.key == "parameters" && !IsNothing(entry.value))
        ReadParameters(entry.value, ParameterHolder::kOneModel, &model.settings);
      else if (entry.key == "residual_weight")
        WarnOfResidualWeight(entry);
      else if (std::find(known.begin(), known.end(), entry.key) == known.end())
        reader_.FailUnknownKey(entry, "a model", known);
    }
    if (reference == nullptr) reader_.Fail(node.where, fmt::format("an entry of '{}' without a 'model'", list));
    model.reference = ReadYamlReference(&reader_, *reference, "model");
    model.where = reference->where;
    if (!has_layers) return model;
    const RecipeNode* layers = node.Find("layer_range");
    if (layers == nullptr)
      reader_.Fail(node.where, fmt::format("a source without a 'layer_range': {}", Quoted(model.reference)),
                   "say which of its layers the slice takes, as in layer_range: [0, 16]");
    model.layers = ReadLayerRange(reader_, *layers);
    return model;
  }

  void ReadParameters(const RecipeNode& node, ParameterHolder holder, Settings* settings) {
    reader_.RequireTable(node, "parameters");
    for (const RecipeEntry& entry : node.entries)
      if (const ParameterSpec* spec = reader_.FindParameter(entry, holder))
        (*settings)[entry.key] = ReadSettings(*spec, entry.value);
  }

  // A value, a gradient, one {filter, value}, or a list of those.
  std::vector<Setting> ReadSettings(const ParameterSpec& spec, const RecipeNode& node) const {
    if (node.kind == RecipeNode::Kind::kTable) return {ReadFiltered(spec, node)};
    const bool filtered = std::any_of(node.items.begin(), node.items.end(), [](const RecipeNode& item) {
      return item.kind == RecipeNode::Kind::kTable;
    });
    if (!filtered) return {reader_.ReadSetting(spec, node)};
    std::vector<Setting> settings;
    for (const RecipeNode& item : node.items) {
      if (item.kind != RecipeNode::Kind::kTable)
        reader_.Fail(item.where, fmt::format("'{}' mixes plain values and filters in one list", spec.name),
                     "write a value for all other tensors as '- value: ...'");
      settings.push_back(ReadFiltered(spec, item));
    }
    return settings;
  }

  Setting ReadFiltered(const ParameterSpec& spec, const RecipeNode& node) const {
    static const std::vector<std::string_view> known = {"filter", "glob", "value"};
    for (const RecipeEntry& entry : node.entries)
      if (std::find(known.begin(), known.end(), entry.key) == known.end())
        reader_.FailUnknownKey(entry, fmt::format("a value of '{}'", spec.name), known);
    if (spec.scope == ParameterScope::kRecipe)
      reader_.Fail(
          node.where,
          fmt::format("'{}' holds for the whole recipe and cannot be set for some tensors", spec.name));
    const RecipeNode* value = node.Find("value");
    if (value == nullptr)
      reader_.Fail(node.where, fmt::format("a filter of '{}' without a 'value'", spec.name));

    Setting setting = reader_.ReadSetting(spec, *value);
    ReadFilter(node, &setting);
    return setting;
  }

  // mergekit's `filter`, a substring, or our `glob`. "*" and none are for all tensors in both.
  void ReadFilter(const RecipeNode& node, Setting* setting) const {
    const RecipeNode* filter = node.Find("filter");
    const RecipeNode* glob = node.Find("glob");
    if (filter != nullptr && IsNothing(*filter)) filter = nullptr;
    if (glob != nullptr && IsNothing(*glob)) glob = nullptr;
    if (filter != nullptr && glob != nullptr)
      reader_.Fail(glob->where, "a value with both a 'filter' and a 'glob'",
                   "a filter is a substring of the name, a glob the whole");
    const RecipeNode* given = filter != nullptr ? filter : glob;
    if (given == nullptr) return;
    const std::string text = reader_.ReadText(*given, filter != nullptr ? "filter" : "glob");
    if (text == "*") return;
    setting->filter = filter != nullptr ? GlobOfSubstring(text) : text;
    setting->filter_where = given->where;
  }

  RecipeReader reader_;
  Recipe& recipe_;
};

}  // namespace

Recipe ParseYamlRecipe(std::string text, const std::string& path) {
  Recipe recipe = StartRecipe(std::move(text), path, Syntax::kYaml);
  const std::vector<RecipeNode> documents = YamlTree(recipe).Parse();
  if (documents.size() > 1) {
    ReadStages(documents, &recipe, [](const RecipeNode& document, const StageNames& names, Recipe* stage) {
      YamlReader(stage, &names).Read(document);
    });
  } else {
    YamlReader(&recipe).Read(documents.front());
  }
  return recipe;
}

}  // namespace braid
