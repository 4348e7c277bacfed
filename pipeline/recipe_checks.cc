#include "pipeline/recipe_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "pipeline/recipe_node.h"
#include "pipeline/recipe_slices.h"

namespace braid {
namespace {

std::string_view BaseKey(const Recipe& recipe) {
  return recipe.syntax == Syntax::kToml ? "base" : "base_model";
}

void CheckBase(const MethodInfo& method, const Recipe& recipe) {
  const std::string_view key = BaseKey(recipe);
  if (method.base == BaseUse::kRequired && !recipe.base)
    throw RecipeError(recipe, recipe.method_where, fmt::format("{} needs a base model", method.name))
        .Hint(fmt::format("name the model that the others were fine-tuned from as '{}'", key));
}

void WarnOfLambda(const MethodInfo& method, const Settings& settings, Recipe* recipe) {
  const auto found = settings.find("lambda");
  if (found == settings.end()) return;
  for (const Setting& setting : found->second)
    recipe->warnings.push_back({fmt::format("'lambda' has no effect in {} without a base", method.name),
                                setting.where});
}

// Of a method with a lambda that works without a base, too: there is no task vector then.
void CheckScales(const MethodInfo& method, Recipe* recipe) {
  if (method.base != BaseUse::kOptional || recipe->base) return;
  if (recipe->layer_scale)
    throw RecipeError(*recipe, recipe->layer_scale->where,
                      fmt::format("layer_scale has nothing to scale: {} adds task vectors only to a base", method.name))
        .Hint(fmt::format("name the model that the others were fine-tuned from as '{}'", BaseKey(*recipe)));
  WarnOfLambda(method, recipe->settings, recipe);
  for (const RecipeModule& module : recipe->modules) {
    WarnOfLambda(method, module.settings, recipe);
    for (const RecipeSlice& slice : module.slices) WarnOfLambda(method, slice.settings, recipe);
  }
}

// What of a recipe a delta has no place for. Whether it is empty shows when the models are known.
void CheckDelta(const MethodInfo& method, const Recipe& recipe) {
  if (recipe.output.content != RecipeOutput::Content::kDelta) return;
  const auto refuse = [&](std::string why, std::string hint) {
    throw RecipeError(recipe, recipe.output.where, std::move(why)).Hint(std::move(hint));
  };
  if (!method.HasDelta()) {
    std::vector<std::string_view> names;
    for (const MethodInfo& other : Methods())
      if (other.HasDelta()) names.push_back(other.name);
    refuse(fmt::format("{} has no delta: its result is not the float32 sum of the base and something else",
                       method.name),
           fmt::format("methods that have one: {}", fmt::join(names, ", ")));
  }
  if (!recipe.modules.empty())
    refuse("a delta is of whole models: slices and modules would give it the base's tensors under other names",
           "write the checkpoint");
  if (recipe.tokenizer || recipe.chat_template)
    refuse(fmt::format("a delta has the base's tokenizer: '{}' has no place beside it",
                       recipe.tokenizer ? "tokenizer" : "chat_template"),
           "write the checkpoint");
}

}  // namespace

// mergekit counts the base among the models of some methods; here the numbers are of what the recipe is left with.
void CheckNumberOfModels(const MethodInfo& method, const Recipe& recipe, const std::vector<RecipeModel>& merged,
                         Location where, bool relative) {
  const size_t models = merged.size();
  if (models >= method.least_models && models <= method.most_models) return;
  const std::string wanted = method.least_models == method.most_models ? fmt::format("{}", method.least_models)
                             : models < method.least_models            ? fmt::format("at least {}", method.least_models)
                                                                       : fmt::format("at most {}", method.most_models);
  throw RecipeError(
      recipe, where,
      fmt::format("{} merges {} model{}{}, not {}", method.name, wanted,
                  wanted.ends_with(" 1") || wanted == "1" ? "" : "s", relative ? " beside the base" : "", models));
}

void CheckListedOnce(const Recipe& recipe, const std::vector<RecipeModel>& models) {
  std::map<std::string_view, Location> first;
  for (const RecipeModel& model : models) {
    const auto [listed, is_new] = first.emplace(model.reference, model.where);
    if (is_new) continue;
    throw RecipeError(recipe, model.where,
                      fmt::format("the model {} is listed twice, first in line {}", Quoted(model.reference),
                                  listed->second.line))
        .Hint(model.layers ? "a slice takes a model once; stack its layers in slices of their own"
                           : "list it once, with the sum of the weights");
  }
}

void AddListedBase(const std::string& base, const Recipe& recipe, std::vector<RecipeModel>* models) {
  const bool listed = std::any_of(models->begin(), models->end(),
                                  [&](const RecipeModel& model) { return model.reference == base; });
  if (!listed) models->push_back({base, recipe.base_where, {}});
}

namespace {

// The base of a method on task vectors is no task vector itself: mergekit's recipes may list it all the same.
void DropListedBase(const MethodInfo& method, Recipe* recipe) {
  std::erase_if(recipe->models, [&](const RecipeModel& model) {
    if (model.reference != *recipe->base) return false;
    if (!model.settings.empty())
      recipe->warnings.push_back(
          {fmt::format("parameters of the base model have no effect in {}", method.name), model.where});
    return true;
  });
}

void AddBase(BaseUse use, Recipe* recipe) {
  if (use == BaseUse::kIsASource) {
    AddListedBase(*recipe->base, *recipe, &recipe->models);
  } else if (use == BaseUse::kIsFirst) {
    const auto listed = std::find_if(recipe->models.begin(), recipe->models.end(),
                                     [&](const RecipeModel& model) { return model.reference == *recipe->base; });
    if (listed == recipe->models.end())
      recipe->models.insert(recipe->models.begin(), {*recipe->base, recipe->base_where, {}});
    else std::rotate(recipe->models.begin(), listed, listed + 1);
  }
}

}  // namespace

void CheckRequiredParameters(const MethodInfo& method, const Recipe& recipe, const std::vector<RecipeModel>& models,
                             std::initializer_list<const Settings*> around) {
  for (const ParameterSpec& spec : method.parameters) {
    const auto has_it = [&](const Settings* settings) { return settings->contains(spec.name); };
    const bool required = spec.required_in_yaml && (recipe.syntax == Syntax::kYaml || spec.default_value == kNoDefault);
    if (!required || has_it(&recipe.settings) || std::any_of(around.begin(), around.end(), has_it)) continue;
    if (spec.scope != ParameterScope::kModel)
      throw RecipeError(recipe, recipe.method_where, fmt::format("{} needs '{}'", method.name, spec.name))
          .Hint(fmt::format("write '{}' in the recipe's parameters: {}", spec.name, spec.help));
    for (const RecipeModel& model : models) {
      if (model.settings.contains(spec.name)) continue;
      throw RecipeError(recipe, model.where,
                        fmt::format("no {} for model {}", spec.name, Quoted(model.reference)))
          .Hint(fmt::format("write '{}' in the model's parameters, or in the recipe's own for every model",
                            spec.name));
    }
  }
}

namespace {

bool IsModelScope(const MethodInfo& method, const Recipe& recipe) {
  const ParameterSpec* spec = method.Find("scope");
  if (spec == nullptr) return method.whole_model;
  return spec->choices.at(static_cast<size_t>(ResolveParameter(recipe, nullptr, *spec, "", 0))) == "model";
}

void CheckOneNumber(const Recipe& recipe, const Settings& settings, std::string_view parameter) {
  const auto found = settings.find(parameter);
  if (found == settings.end()) return;
  for (const Setting& setting : found->second) {
    const std::string rule = fmt::format("with scope 'model' a {} is one number per model", parameter);
    if (!setting.filter.empty())
      throw RecipeError(
          recipe, setting.where,
          fmt::format("{}, and cannot depend on the filter {}", rule, FilterText(recipe, setting.filter)));
    if (setting.values.size() > 1)
      throw RecipeError(recipe, setting.where, fmt::format("{}, not a gradient", rule));
  }
}

// A model that is a source of several slices, too.
void CheckOneNumberPerModel(const Recipe& recipe, const ParameterSpec& spec) {
  std::map<std::string_view, std::pair<double, Location>> first;
  for (const RecipeModule& module : recipe.modules) {
    CheckOneNumber(recipe, module.settings, spec.name);
    for (const RecipeSlice& slice : module.slices) {
      CheckOneNumber(recipe, slice.settings, spec.name);
      for (const RecipeModel& model : slice.models) {
        CheckOneNumber(recipe, model.settings, spec.name);
        const std::array<const Settings*, 2> around = {&slice.settings, &module.settings};
        const double value = ResolveParameter(recipe, &model, spec, "", 0, around);
        const auto [earlier, is_new] = first.emplace(model.reference, std::pair(value, model.where));
        if (earlier->second.first == value) continue;
        throw RecipeError(
            recipe, model.where,
            fmt::format("with scope 'model' a {} is one number per model: here {} has {}, in line {} it has {}",
                        spec.name, Quoted(model.reference), value, earlier->second.second.line, earlier->second.first))
            .Hint("give it the same one in all slices");
      }
    }
  }
}

// One threshold over a model's whole task vector has no place for a density that varies within it.
void CheckModelScope(const MethodInfo& method, const Recipe& recipe) {
  const ParameterSpec* density = method.Find("density");
  if (density == nullptr || !IsModelScope(method, recipe)) return;
  CheckOneNumber(recipe, recipe.settings, density->name);
  for (const RecipeModel& model : recipe.models) CheckOneNumber(recipe, model.settings, density->name);
  CheckOneNumberPerModel(recipe, *density);
}

// Behind a value for all tensors no other is ever asked for.
void DropUnreachable(Settings* settings, Recipe* recipe) {
  for (auto& [parameter, list] : *settings) {
    const auto last =
        std::find_if(list.begin(), list.end(), [](const Setting& setting) { return setting.filter.empty(); });
    if (last == list.end()) continue;
    for (auto setting = last + 1; setting != list.end(); ++setting)
      recipe->warnings.push_back(
          {fmt::format("this value of '{}' is never used: the one in line {} is for all tensors", parameter,
                       last->where.line),
           setting->where});
    list.erase(last + 1, list.end());
  }
}

void DropUnreachable(Recipe* recipe) {
  for (RecipeModel& model : recipe->models) DropUnreachable(&model.settings, recipe);
  for (RecipeModule& module : recipe->modules) {
    for (RecipeSlice& slice : module.slices) {
      for (RecipeModel& model : slice.models) DropUnreachable(&model.settings, recipe);
      DropUnreachable(&slice.settings, recipe);
    }
    DropUnreachable(&module.settings, recipe);
  }
  DropUnreachable(&recipe->settings, recipe);
}

void CompleteModels(const MethodInfo& method, Recipe* recipe) {
  CheckListedOnce(*recipe, recipe->models);
  const bool relative = method.base == BaseUse::kRequired || (method.base == BaseUse::kOptional && recipe->base);
  if (relative) DropListedBase(method, recipe);
  if (recipe->models.empty())
    throw RecipeError(*recipe, recipe->method_where, "no models to merge")
        .Hint(recipe->base ? "list at least one besides the base" : "list at least one");
  if (recipe->base) AddBase(method.base, recipe);
  CheckNumberOfModels(method, *recipe, recipe->models, recipe->method_where, relative);
  CheckRequiredParameters(method, *recipe, recipe->models, {});
}

// Where only slices name a base, that of the first one lends config.json and tokenizer.
void AdoptBaseOfSlices(Recipe* recipe) {
  for (const RecipeModule& module : recipe->modules)
    for (const RecipeSlice& slice : module.slices)
      if (slice.base_reference && !recipe->base) recipe->base = slice.base_reference, recipe->base_where = slice.where;
}

}  // namespace

void CompleteRecipe(const MethodInfo& method, Recipe* recipe) {
  DropUnreachable(recipe);
  if (!recipe->base) AdoptBaseOfSlices(recipe);
  CheckBase(method, *recipe);
  CheckScales(method, recipe);
  CheckDelta(method, *recipe);
  if (recipe->modules.empty()) CompleteModels(method, recipe);
  else CompleteModules(method, recipe);
  if (recipe->on_missing == OnMissing::kBase && !recipe->base)
    throw RecipeError(*recipe, recipe->method_where, "on_missing 'base' needs a base model")
        .Hint(fmt::format("name one as '{}'", BaseKey(*recipe)));
  CheckModelScope(method, *recipe);
}

}  // namespace braid
