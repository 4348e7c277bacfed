#include "pipeline/recipe_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "ops/method.h"
#include "pipeline/glob.h"
#include "pipeline/recipe_format.h"
#include "pipeline/recipe_output.h"
#include "pipeline/recipe_reference.h"
#include "pipeline/recipe_stages.h"

namespace braid {
namespace {

const Setting* FindUnfiltered(const std::vector<Setting>& list) {
  return !list.empty() && list.back().filter.empty() ? &list.back() : nullptr;  // always the last, see Setting
}

// A number for which the methods have no default has one beyond every bound.
bool HasDefault(const ParameterSpec& spec) { return spec.default_value >= spec.min && spec.default_value <= spec.max; }

bool HasUnfiltered(const Settings& settings, std::string_view parameter) {
  const auto found = settings.find(parameter);
  return found != settings.end() && FindUnfiltered(found->second) != nullptr;
}

Setting Unfiltered(double value) {
  Setting setting;
  setting.values = {value};
  return setting;
}

class RecipeWriter {
 public:
  // `names`: of the stages in the file.
  RecipeWriter(const Recipe& recipe, Syntax syntax, const StageNames& names, std::vector<std::string>* notes)
      : recipe_(recipe), method_(*FindMethod(recipe.method)), yaml_(syntax == Syntax::kYaml), names_(names),
        notes_(notes) {}

  RecipeNode Write() {
    RecipeNode root = TableNode();
    if (!recipe_.name.empty()) Add(&root, "name", TextNode(recipe_.name));
    Add(&root, yaml_ ? "merge_method" : "method", TextNode(recipe_.method));
    if (recipe_.base) Add(&root, yaml_ ? "base_model" : "base", Reference(*recipe_.base));
    if (recipe_.dtype) Add(&root, "dtype", TextNode(std::string(TorchName(*recipe_.dtype))));
    if (recipe_.out_dtype) Add(&root, "out_dtype", TextNode(std::string(TorchName(*recipe_.out_dtype))));
    AddTokenizer(&root);
    AddOnMissing(&root);
    AddLayerScale(&root);
    AddGlobs("only", recipe_.only, &root);
    AddGlobs("exclude", recipe_.exclude, &root);
    AddOutput(&root);
    if (!yaml_) AddTomlParameters(&root);
    AddSources(&root);
    if (yaml_) AddYamlParameters(WithDefaults(), &root);
    NoteWhatIsOurs();
    return root;
  }

 private:
  // models, slices or modules.
  void AddSources(RecipeNode* root) {
    if (recipe_.modules.empty()) return Add(root, "models", Models(recipe_.models));
    if (recipe_.modules.size() == 1 && recipe_.modules.front().name.empty())
      return Add(root, "slices", Slices(recipe_.modules.front()));
    RecipeNode modules = TableNode();
    for (const RecipeModule& module : recipe_.modules) {
      RecipeNode table = TableNode();
      const RecipeSlice& first = module.slices.front();
      if (first.models.front().layers) Add(&table, "slices", Slices(module));
      else Add(&table, "models", Models(first.models));  // the base comes back by itself
      AddSettings(module.settings, &table);
      Add(&modules, module.name, std::move(table));
    }
    Add(root, "modules", std::move(modules));
  }

  RecipeNode Slices(const RecipeModule& module) {
    RecipeNode slices = ListNode();
    for (const RecipeSlice& slice : module.slices) {
      RecipeNode table = TableNode(), sources = Models(slice.models);
      if (slice.base) sources.items.insert(sources.items.begin(), Model(*slice.base));
      if (slice.base_reference) Add(&table, yaml_ ? "base_model" : "base", Reference(*slice.base_reference));
      Add(&table, "sources", std::move(sources));
      AddSettings(slice.settings, &table);
      slices.items.push_back(std::move(table));
    }
    return slices;
  }

  RecipeNode Models(const std::vector<RecipeModel>& models) {
    RecipeNode list = ListNode();
    for (const RecipeModel& model : models) list.items.push_back(Model(model));
    return list;
  }

  RecipeNode Model(const RecipeModel& model) {
    RecipeNode table = TableNode();
    const std::string stage(StageNameOf(model.reference));
    if (!yaml_ && !stage.empty()) Add(&table, "stage", TextNode(stage));
    else Add(&table, yaml_ ? "model" : "path", Reference(model.reference));
    if (model.layers) {
      RecipeNode range = ListNode();
      for (uint64_t layer : {model.layers->begin, model.layers->end})
        range.items.push_back(NumberNode(static_cast<double>(layer)));
      Add(&table, "layer_range", std::move(range));
    }
    AddSettings(model.settings, &table);
    if (!yaml_) NoteDefaults(model);
    return table;
  }

  // Parameters of anything but the recipe itself.
  void AddSettings(const Settings& settings, RecipeNode* table) {
    if (yaml_) return AddYamlParameters(settings, table);
    AddUnfiltered(settings, table);
    AddOverrides(settings, table);
  }

  RecipeNode Reference(const std::string& reference) const {
    if (yaml_ && names_.contains(reference))
      throw RecipeError(recipe_, recipe_.method_where,
                        fmt::format("in YAML {} would be the stage of that name, not a path", Quoted(reference)))
          .Hint("give the stage another name");
    if (yaml_) return YamlReferenceNode(reference);
    const std::string stage(StageNameOf(reference));
    if (stage.empty()) return TextNode(reference);
    RecipeNode table = TableNode();
    Add(&table, "stage", TextNode(stage));
    return table;
  }

  void AddTokenizer(RecipeNode* root) const {
    if (recipe_.chat_template)
      Add(root, "chat_template", TextNode(recipe_.chat_template->text.empty() ? "auto" : recipe_.chat_template->text));
    if (!recipe_.tokenizer) return;
    const RecipeTokenizer& tokenizer = *recipe_.tokenizer;
    RecipeNode table = TableNode();
    Add(&table, "source", tokenizer.source == RecipeTokenizer::Source::kBase    ? TextNode("base")
                          : tokenizer.source == RecipeTokenizer::Source::kUnion ? TextNode("union")
                                                                                : Reference(tokenizer.model));
    if (tokenizer.pad_to_multiple_of > 1)
      Add(&table, "pad_to_multiple_of", NumberNode(static_cast<double>(tokenizer.pad_to_multiple_of)));
    RecipeNode tokens = TableNode();
    for (const TokenRule& rule : tokenizer.tokens) Add(&tokens, rule.token, TokenNode(rule));
    if (!tokens.entries.empty()) Add(&table, "tokens", std::move(tokens));
    Add(root, "tokenizer", std::move(table));
  }

  RecipeNode TokenNode(const TokenRule& rule) const {
    RecipeNode table = TableNode(), source = TableNode();
    if (rule.kind == TokenRule::Kind::kModel) {
      source = Reference(rule.model);
    } else {
      const bool zero = rule.kind == TokenRule::Kind::kZero;
      Add(&source, "kind", TextNode(zero ? "zero" : "model_token"));
      if (!zero) Add(&source, "model", Reference(rule.model));
      if (rule.of) Add(&source, "token", TextNode(*rule.of));
      if (rule.id) Add(&source, "token_id", NumberNode(*rule.id));
    }
    Add(&table, "source", std::move(source));
    if (rule.force) Add(&table, "force", FlagNode(true));
    return table;
  }

  void AddOnMissing(RecipeNode* root) {
    if (recipe_.on_missing == OnMissing::kError) return;
    Add(root, "on_missing", TextNode(recipe_.on_missing == OnMissing::kBase ? "base" : "skip"));
    ours_.push_back("on_missing");
  }

  void AddLayerScale(RecipeNode* root) {
    if (!recipe_.layer_scale) return;
    RecipeNode table = TableNode();
    if (recipe_.layer_scale->alpha) Add(&table, "alpha", NumberNode(*recipe_.layer_scale->alpha));
    Add(&table, "beta", NumberNode(recipe_.layer_scale->beta));
    Add(root, "layer_scale", std::move(table));
    ours_.push_back("layer_scale");
  }

  // YAML has no form for it. Without `compress` it is the same merge; without the rest it would be another one.
  void AddOutput(RecipeNode* root) const {
    const std::optional<RecipeNode> output = OutputNode(recipe_.output);
    if (!output) return;
    if (!yaml_) return Add(root, "output", *output);
    if (recipe_.output.content == RecipeOutput::Content::kDelta)
      throw RecipeError(recipe_, recipe_.output.where, "YAML has no form for a merge that writes a delta")
          .Hint("keep it in TOML");
    if (notes_ != nullptr)
      notes_->push_back(fmt::format("YAML has no form for [output]: write 'braid merge --compress {}' instead",
                                    CompressionName(recipe_.output.compress)));
  }

  void AddGlobs(const char* key, const std::vector<NameFilter>& filters, RecipeNode* root) {
    if (filters.empty()) return;
    RecipeNode list = ListNode();
    for (const NameFilter& filter : filters) list.items.push_back(TextNode(filter.glob));
    Add(root, key, std::move(list));
    ours_.push_back(key);
  }

  RecipeNode Scalar(const ParameterSpec& spec, double value) const {
    switch (spec.kind) {
      case ParameterKind::kFlag: return FlagNode(value != 0);
      case ParameterKind::kChoice: return TextNode(std::string(spec.choices.at(static_cast<size_t>(value))));
      case ParameterKind::kNumber: break;
    }
    return NumberNode(value);
  }

  RecipeNode Value(const std::string& parameter, const Setting& setting) const {
    const ParameterSpec& spec = *method_.Find(parameter);
    if (setting.values.size() == 1) return Scalar(spec, setting.values.front());
    RecipeNode list = ListNode();
    for (double value : setting.values) list.items.push_back(Scalar(spec, value));
    return list;
  }

  // --- TOML ---

  void AddTomlParameters(RecipeNode* root) const {
    RecipeNode parameters = TableNode();
    AddUnfiltered(recipe_.settings, &parameters);
    if (!parameters.entries.empty()) Add(root, "parameters", std::move(parameters));
    AddOverrides(recipe_.settings, root);
  }

  void AddUnfiltered(const Settings& settings, RecipeNode* table) const {
    for (const auto& [parameter, list] : settings)
      if (const Setting* setting = FindUnfiltered(list)) Add(table, parameter, Value(parameter, *setting));
  }

  // One override per filter where the order of each parameter's filters allows it.
  void AddOverrides(const Settings& settings, RecipeNode* table) const {
    std::vector<std::pair<std::string, RecipeNode>> overrides;  // glob, table
    for (const auto& [parameter, list] : settings) {
      size_t next = 0;  // the parameter's filters so far are before this place
      for (const Setting& setting : list) {
        if (setting.filter.empty()) continue;
        size_t place = next;
        while (place < overrides.size() && overrides[place].first != setting.filter) ++place;
        if (place == overrides.size()) {
          place = next;
          RecipeNode added = TableNode();
          Add(&added, "tensors", TextNode(setting.filter));
          overrides.insert(overrides.begin() + static_cast<ptrdiff_t>(place), {setting.filter, std::move(added)});
        }
        Add(&overrides[place].second, parameter, Value(parameter, setting));
        next = place + 1;
      }
    }
    if (overrides.empty()) return;
    RecipeNode out = ListNode();
    for (auto& [glob, override_table] : overrides) out.items.push_back(std::move(override_table));
    Add(table, "overrides", std::move(out));
  }

  // In YAML a tensor for which no filter gives a required value is an error, in TOML it takes the default.
  void NoteDefaults(const RecipeModel& model) {
    if (recipe_.syntax != Syntax::kYaml || notes_ == nullptr) return;
    for (const ParameterSpec& spec : method_.parameters)
      if (spec.required_in_yaml && HasDefault(spec) && !HasUnfiltered(model.settings, spec.name) &&
          !HasUnfiltered(recipe_.settings, spec.name))
        notes_->push_back(fmt::format("where no filter gives model '{}' a {}, it is an error in YAML and {} in TOML",
                                      model.reference, spec.name, spec.default_value));
  }

  // --- YAML ---

  void AddYamlParameters(const Settings& settings, RecipeNode* table) {
    RecipeNode parameters = TableNode();
    for (const auto& [parameter, list] : settings)
      Add(&parameters, parameter,
          list.size() == 1 && list[0].filter.empty() ? Value(parameter, list[0]) : Filtered(parameter, list));
    if (!parameters.entries.empty()) Add(table, "parameters", std::move(parameters));
  }

  RecipeNode Filtered(const std::string& parameter, const std::vector<Setting>& list) {
    RecipeNode out = ListNode();
    for (const Setting& setting : list) {
      RecipeNode entry = TableNode();
      const auto substring = SubstringOf(setting.filter);
      if (substring && *substring != "*") {
        Add(&entry, "filter", TextNode(*substring));
      } else if (!setting.filter.empty()) {
        Add(&entry, "glob", TextNode(setting.filter));
        if (std::find(ours_.begin(), ours_.end(), "glob") == ours_.end()) ours_.push_back("glob");
      }
      Add(&entry, "value", Value(parameter, setting));
      out.items.push_back(std::move(entry));
    }
    return out;
  }

  // The recipe's own settings, with the defaults that a recipe of TOML relies on and YAML does not have.
  Settings WithDefaults() const {
    Settings settings = recipe_.settings;
    if (recipe_.syntax == Syntax::kYaml) return settings;
    for (const ParameterSpec& spec : method_.parameters) {
      const auto lacks_it = [&](const RecipeModel& model) { return !HasUnfiltered(model.settings, spec.name); };
      bool relied_on = std::any_of(recipe_.models.begin(), recipe_.models.end(), lacks_it);
      for (const RecipeModule& module : recipe_.modules)
        for (const RecipeSlice& slice : module.slices)
          relied_on |= !HasUnfiltered(module.settings, spec.name) && !HasUnfiltered(slice.settings, spec.name) &&
                       std::any_of(slice.models.begin(), slice.models.end(), lacks_it);
      if (spec.required_in_yaml && relied_on && !HasUnfiltered(settings, spec.name) && HasDefault(spec))
        settings[std::string(spec.name)].push_back(Unfiltered(spec.default_value));
    }
    return settings;
  }

  void NoteWhatIsOurs() {
    if (!yaml_ || notes_ == nullptr || ours_.empty()) return;
    notes_->push_back(fmt::format("mergekit ignores what is Braid's own: {}", fmt::join(ours_, ", ")));
  }

  const Recipe& recipe_;
  const MethodInfo& method_;
  const bool yaml_;
  const StageNames& names_;
  std::vector<std::string>* notes_;
  std::vector<std::string> ours_;  // keys that mergekit does not know
};

// The comment that a recipe begins with; both syntaxes write it alike.
std::string LeadingComment(std::string_view text) {
  std::string comment;
  while (text.starts_with('#')) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    comment += std::string(line) + "\n";
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return comment;
}

}  // namespace

std::string WriteRecipe(const Recipe& recipe, Syntax syntax, std::vector<std::string>* notes) {
  StageNames names;
  for (const Recipe& stage : recipe.stages) names.insert(stage.name);
  std::vector<RecipeNode> tables;
  for (const Recipe& stage : recipe.stages) tables.push_back(RecipeWriter(stage, syntax, names, notes).Write());
  tables.push_back(RecipeWriter(recipe, syntax, names, notes).Write());
  std::string text = LeadingComment(recipe.text);
  if (syntax == Syntax::kYaml) {
    for (const RecipeNode& table : tables) text += (&table == &tables.front() ? "" : "---\n") + FormatYaml(table);
    return text;
  }
  if (recipe.stages.empty()) return text + FormatToml(tables.front());
  RecipeNode root = TableNode(), list = ListNode();
  std::vector<RecipeEntry>& result = tables.back().entries;
  const auto output =
      std::find_if(result.begin(), result.end(), [](const RecipeEntry& entry) { return entry.key == "output"; });
  if (output != result.end()) {
    root.entries.push_back(std::move(*output));
    result.erase(output);
  }
  list.items = std::move(tables);
  Add(&root, "stages", std::move(list));
  return text + FormatToml(root);
}

std::optional<std::string> TryWriteRecipe(const Recipe& recipe, Syntax syntax) {
  try {
    return WriteRecipe(recipe, syntax);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUsage) throw;
    return std::nullopt;
  }
}

bool SetSeed(Recipe* recipe, double seed) {
  bool used = false;
  for (Recipe& stage : recipe->stages) used |= SetSeed(&stage, seed);
  const ParameterSpec* spec = FindMethod(recipe->method)->Find("seed");
  if (spec == nullptr) return used;
  if (!(seed >= spec->min && seed <= spec->max))
    throw RecipeError(*recipe, recipe->method_where,
                      fmt::format("the seed must be between {} and {}, not {}", spec->min, spec->max, seed));
  recipe->settings["seed"] = {Unfiltered(seed)};
  return true;
}

void RecordSeed(Recipe* recipe) {
  for (Recipe& stage : recipe->stages) RecordSeed(&stage);
  const MethodInfo* const method = FindMethod(recipe->method);   // null: of braid apply, which draws nothing
  const ParameterSpec* spec = method == nullptr ? nullptr : method->Find("seed");
  if (spec != nullptr && !recipe->settings.contains("seed"))
    recipe->settings["seed"] = {Unfiltered(spec->default_value)};
}

}  // namespace braid
