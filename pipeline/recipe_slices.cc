#include "pipeline/recipe_slices.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "pipeline/recipe_checks.h"

namespace braid {
namespace {

constexpr uint64_t kMostLayers = 1'000'000;

bool IsNothing(const RecipeNode& node) { return node.kind == RecipeNode::Kind::kNothing; }

// nullptr also for a key without a value.
const RecipeNode* FindValue(const RecipeNode& table, std::string_view key) {
  const RecipeNode* value = table.Find(key);
  return value == nullptr || IsNothing(*value) ? nullptr : value;
}

std::optional<uint64_t> WholeNumber(const RecipeNode& node) {
  if (node.kind == RecipeNode::Kind::kNumber) {
    if (node.number < 0 || node.number > kMostLayers || node.number != std::floor(node.number)) return std::nullopt;
    return static_cast<uint64_t>(node.number);
  }
  if (node.kind != RecipeNode::Kind::kText) return std::nullopt;
  uint64_t value = 0;
  const char* end = node.text.data() + node.text.size();
  const auto parsed = std::from_chars(node.text.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end || value > kMostLayers) return std::nullopt;
  return value;
}

RecipeSlice ReadSlice(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax) {
  if (node.kind != RecipeNode::Kind::kTable)
    reader->Fail(node.where, "an entry of 'slices' must be a table", "list its 'sources' in it");
  const RecipeNode* sources = node.Find("sources");
  if (sources == nullptr)
    reader->Fail(node.where, "a slice without 'sources'", "list the models that its layers are from");
  RecipeSlice slice{.where = node.where, .models = {}};
  for (const RecipeEntry& entry : node.entries)
    if (entry.key == "residual_weight") reader->Warn(entry.where, "'residual_weight' has no effect, in mergekit too");
  if (const RecipeNode* base = FindValue(node, syntax.base_key))
    slice.base_reference = syntax.read_reference(*base, syntax.base_key);
  syntax.read_parameters(node, "a slice", {"sources", syntax.base_key, "residual_weight"}, &slice.settings);
  reader->RequireList(*sources, reader->recipe().syntax == Syntax::kToml ? "slices.sources" : "sources");
  for (const RecipeNode& source : sources->items) slice.models.push_back(syntax.read_model(source, true));
  if (slice.models.empty()) reader->Fail(sources->where, "a slice without sources");
  return slice;
}

std::vector<RecipeSlice> ReadSliceList(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax) {
  reader->RequireList(node, "slices");
  std::vector<RecipeSlice> slices;
  for (const RecipeNode& item : node.items) slices.push_back(ReadSlice(reader, item, syntax));
  if (slices.empty()) reader->Fail(node.where, "no slices to stack", "list at least one");
  return slices;
}

RecipeModule ReadModule(RecipeReader* reader, const RecipeEntry& entry, const SliceSyntax& syntax) {
  const RecipeNode& node = entry.value;
  reader->RequireTable(node, entry.key);
  CheckOneOfModelsSlicesModules(*reader, node, "a module");
  RecipeModule module{.name = entry.key, .where = entry.where};
  syntax.read_parameters(node, "a module", {"models", "slices"}, &module.settings);
  if (const RecipeNode* slices = FindValue(node, "slices")) {
    module.slices = ReadSliceList(reader, *slices, syntax);
  } else if (const RecipeNode* models = FindValue(node, "models")) {
    reader->RequireList(*models, "models");
    RecipeSlice& all = module.slices.emplace_back();
    all.where = models->where;
    for (const RecipeNode& item : models->items) all.models.push_back(syntax.read_model(item, false));
    if (all.models.empty()) reader->Fail(models->where, "no models to merge", "list at least one");
  } else {
    reader->Fail(entry.where, fmt::format("the module {} has neither models nor slices", Quoted(entry.key)));
  }
  return module;
}

// --- checks -----------------------------------------------------------------------------------------------

void CheckLengths(const Recipe& recipe, const RecipeSlice& slice) {
  for (const RecipeModel& model : slice.models) {
    if (!model.layers) continue;
    const LayerRange &first = *slice.models.front().layers, &range = *model.layers;
    if (range.size() == first.size()) continue;
    throw RecipeError(recipe, range.where,
                      fmt::format("{} layer{} of {}, but {} of {}: the sources of a slice are merged layer by layer",
                                  range.size(), range.size() == 1 ? "" : "s", Quoted(model.reference), first.size(),
                                  Quoted(slice.models.front().reference)))
        .Hint("give all of them as many layers");
  }
}

// The base among the sources of a slice, where it has to be: which of its layers to take is not said elsewhere. To the
// models of a module it is added.
std::vector<RecipeModel>::iterator FindBase(const MethodInfo& method, const std::string& base, const Recipe& recipe,
                                            RecipeSlice* slice) {
  const auto listed = std::find_if(slice->models.begin(), slice->models.end(),
                                   [&](const RecipeModel& model) { return model.reference == base; });
  if (listed != slice->models.end()) return listed;
  if (slice->models.front().layers)
    throw RecipeError(recipe, slice->where,
                      fmt::format("{} needs the base {} among the sources of each slice", method.name, Quoted(base)))
        .Hint("list it with the layers that go with those of the others");
  return slice->models.insert(listed, RecipeModel{.reference = base, .where = recipe.base_where, .settings = {}});
}

// What the models are compared with is not one of them.
void TakeBase(const MethodInfo& method, const std::string& base, Recipe* recipe, RecipeSlice* slice) {
  const auto listed = FindBase(method, base, *recipe, slice);
  if (!listed->settings.empty())
    recipe->warnings.push_back(
        {fmt::format("parameters of the base model have no effect in {}", method.name), listed->where});
  listed->settings.clear();
  slice->base = std::move(*listed);
  slice->models.erase(listed);
}

void CompleteSlice(const MethodInfo& method, bool relative, const RecipeModule& module, Recipe* recipe,
                   RecipeSlice* slice) {
  CheckListedOnce(*recipe, slice->models);
  CheckLengths(*recipe, *slice);
  const std::optional<std::string>& base = slice->base_reference ? slice->base_reference : recipe->base;
  if (relative) {
    TakeBase(method, *base, recipe, slice);
  } else if (base && method.base == BaseUse::kIsFirst) {
    const auto listed = FindBase(method, *base, *recipe, slice);
    std::rotate(slice->models.begin(), listed, listed + 1);
  } else if (base && method.base == BaseUse::kIsASource && !slice->models.front().layers) {
    AddListedBase(*base, *recipe, &slice->models);
  }
  CheckNumberOfModels(method, *recipe, slice->models, slice->where, relative);
  CheckRequiredParameters(method, *recipe, slice->models, {&slice->settings, &module.settings});
}

}  // namespace

void CheckOneOfModelsSlicesModules(const RecipeReader& reader, const RecipeNode& table, std::string_view place) {
  const RecipeEntry* first = nullptr;
  for (const RecipeEntry& entry : table.entries) {
    if ((entry.key != "models" && entry.key != "slices" && entry.key != "modules") || IsNothing(entry.value)) continue;
    if (first != nullptr)
      reader.Fail(entry.where, fmt::format("both '{}' and '{}' in {}", first->key, entry.key, place),
                  "keep one of them");
    first = &entry;
  }
}

void ReadSlices(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax) {
  reader->recipe().modules.push_back({.name = "", .where = node.where, .slices = ReadSliceList(reader, node, syntax)});
}

void ReadModules(RecipeReader* reader, const RecipeNode& node, const SliceSyntax& syntax) {
  reader->RequireTable(node, "modules");
  for (const RecipeEntry& entry : node.entries) reader->recipe().modules.push_back(ReadModule(reader, entry, syntax));
  if (node.entries.empty()) reader->Fail(node.where, "'modules' names no module");
}

LayerRange ReadLayerRange(const RecipeReader& reader, const RecipeNode& node) {
  LayerRange range{.where = node.where};
  const auto begin = node.items.size() == 2 ? WholeNumber(node.items[0]) : std::nullopt;
  const auto end = node.items.size() == 2 ? WholeNumber(node.items[1]) : std::nullopt;
  if (!begin || !end)
    reader.Fail(node.where, "'layer_range' must be two whole numbers",
                "the first layer and the one behind the last, as in [0, 16]");
  range.begin = *begin, range.end = *end;
  if (range.end <= range.begin)
    reader.Fail(node.where, fmt::format("layer_range [{}, {}] holds no layers", *begin, *end),
                "it begins with its first number and ends before its second");
  return range;
}

void CompleteModules(const MethodInfo& method, Recipe* recipe) {
  const bool relative = method.base == BaseUse::kRequired || (method.base == BaseUse::kOptional && recipe->base);
  for (RecipeModule& module : recipe->modules)
    for (RecipeSlice& slice : module.slices) CompleteSlice(method, relative, module, recipe, &slice);
}

}  // namespace braid
