// What a parameter is for one tensor: filters, precedence, gradients over the layers.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pipeline/glob.h"
#include "pipeline/layer_names.h"
#include "pipeline/recipe.h"
#include "pipeline/recipe_node.h"

namespace braid {
namespace {

const Setting* FindSetting(const Settings& settings, std::string_view parameter,
                           std::string_view tensor_name) {
  const auto found = settings.find(parameter);
  if (found == settings.end()) return nullptr;
  for (const Setting& setting : found->second)
    if (setting.filter.empty() || GlobMatches(setting.filter, tensor_name)) return &setting;
  return nullptr;
}

double Interpolate(const Setting& setting, ParameterKind kind, double layer_position) {
  const std::vector<double>& points = setting.values;
  const double at = layer_position * static_cast<double>(points.size() - 1);
  const size_t below = std::min(static_cast<size_t>(at), points.size() - 1);
  if (kind != ParameterKind::kNumber) return points[below];
  const size_t above = std::min(below + 1, points.size() - 1);
  const double fraction = at - static_cast<double>(below);
  return (1 - fraction) * points[below] + fraction * points[above];
}

void CollectFilters(const Settings& settings, std::vector<NameFilter>* filters) {
  for (const auto& [parameter, list] : settings)
    for (const Setting& setting : list)
      if (!setting.filter.empty()) filters->push_back({setting.filter, setting.filter_where});
}

// Filters in the order of the file, each glob once.
std::vector<NameFilter> FiltersOf(const Recipe& recipe) {
  std::vector<NameFilter> filters = recipe.only;
  filters.insert(filters.end(), recipe.exclude.begin(), recipe.exclude.end());
  CollectFilters(recipe.settings, &filters);
  for (const RecipeModel& model : recipe.models) CollectFilters(model.settings, &filters);
  for (const RecipeModule& module : recipe.modules) {
    CollectFilters(module.settings, &filters);
    for (const RecipeSlice& slice : module.slices) {
      CollectFilters(slice.settings, &filters);
      for (const RecipeModel& model : slice.models) CollectFilters(model.settings, &filters);
    }
  }
  std::stable_sort(filters.begin(), filters.end(), [](const NameFilter& a, const NameFilter& b) {
    return std::pair(a.where.line, a.where.column) < std::pair(b.where.line, b.where.column);
  });
  std::set<std::string> seen;
  std::erase_if(filters, [&](const NameFilter& filter) { return !seen.insert(filter.glob).second; });
  return filters;
}

void AddComponents(std::string_view name, std::set<std::string_view>* components) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    components->insert(name.substr(begin, end - begin));
    begin = end + 1;
  }
}

// A whole glob is never near a whole name, but one of its components may be a slip of one of theirs.
std::string FilterHint(std::string_view filter, const std::vector<std::string_view>& tensor_names) {
  constexpr size_t kLongestComponent = 64;  // keeps the edit distance cheap
  std::set<std::string_view> known, written;
  for (std::string_view name : tensor_names) AddComponents(name, &known);
  AddComponents(filter, &written);
  for (std::string_view component : written) {
    if (component.size() > kLongestComponent || component.find_first_of("*?\\") != std::string_view::npos)
      continue;
    if (known.contains(component)) continue;
    const std::string nearest = NearestName(component, known);
    if (!nearest.empty()) return fmt::format("did you mean '{}' instead of '{}'?", nearest, component);
  }
  return "a filter is a glob over the whole name, as in '*.mlp.*'";
}

}  // namespace

LayerPositions::LayerPositions(const std::vector<std::string_view>& tensor_names) {
  for (std::string_view name : tensor_names) {
    const auto layer = ParseLayerName(name);
    if (!layer) continue;
    auto stack = layers_by_stack_.find(layer->stack);
    if (stack == layers_by_stack_.end()) stack = layers_by_stack_.emplace(layer->stack, 0).first;
    stack->second = std::max(stack->second, layer->index + 1);
  }
}

double LayerPositions::Of(std::string_view tensor_name) const {
  const auto layer = ParseLayerName(tensor_name);
  if (!layer) return 0;
  const auto stack = layers_by_stack_.find(layer->stack);
  if (stack == layers_by_stack_.end()) return 0;
  const uint64_t last = stack->second - 1;
  if (layer->index >= last) return 1;  // the last layer, and the only one of a stack of one
  return static_cast<double>(layer->index) / static_cast<double>(last);
}

bool IsMerged(const Recipe& recipe, std::string_view tensor_name) {
  const auto matches = [&](const NameFilter& filter) { return GlobMatches(filter.glob, tensor_name); };
  const bool chosen = recipe.only.empty() || std::any_of(recipe.only.begin(), recipe.only.end(), matches);
  return chosen && std::none_of(recipe.exclude.begin(), recipe.exclude.end(), matches);
}

std::string FilterText(const Recipe& recipe, std::string_view glob) {
  if (recipe.syntax == Syntax::kYaml)
    if (const auto substring = SubstringOf(glob)) return Quoted(*substring);
  return Quoted(glob);
}

double ResolveParameter(const Recipe& recipe, const RecipeModel* model, const ParameterSpec& spec,
                        std::string_view tensor_name, double layer_position,
                        std::span<const Settings* const> between) {
  const bool per_model = model != nullptr && spec.scope == ParameterScope::kModel;
  const Setting* setting = nullptr;
  if (per_model) setting = FindSetting(model->settings, spec.name, tensor_name);
  for (const Settings* settings : between)
    if (setting == nullptr) setting = FindSetting(*settings, spec.name, tensor_name);
  if (setting == nullptr) setting = FindSetting(recipe.settings, spec.name, tensor_name);
  if (setting != nullptr) return Interpolate(*setting, spec.kind, layer_position);
  if (per_model && spec.required_in_yaml && recipe.syntax == Syntax::kYaml)
    throw RecipeError(
        recipe, model->where,
        fmt::format("no {} for model {}: none of its filters matches", spec.name, Quoted(model->reference)))
        .Tensor(std::string(tensor_name))
        .Hint("add a value without a filter, as the last one");
  return spec.default_value;
}

void CheckFilters(const Recipe& recipe, const std::vector<std::string_view>& tensor_names,
                  std::vector<RecipeWarning>* warnings) {
  for (const NameFilter& filter : FiltersOf(recipe)) {
    const bool matches = std::any_of(tensor_names.begin(), tensor_names.end(),
                                     [&](std::string_view name) { return GlobMatches(filter.glob, name); });
    if (matches) continue;
    std::string message = fmt::format("the filter {} matches no tensor", FilterText(recipe, filter.glob));
    if (recipe.syntax == Syntax::kToml)
      throw RecipeError(recipe, filter.where, std::move(message)).Hint(FilterHint(filter.glob, tensor_names));
    warnings->push_back({std::move(message), filter.where});
  }
}

}  // namespace braid
