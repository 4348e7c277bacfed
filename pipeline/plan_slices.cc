#include "pipeline/plan_slices.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "io/layer_config.h"
#include "pipeline/module_names.h"
#include "pipeline/recipe_node.h"

namespace braid {
namespace {

constexpr uint64_t kMostOutputLayers = 10'000;

bool HasComponent(std::string_view name, std::string_view component) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    if (name.substr(begin, end - begin) == component) return true;
    begin = end + 1;
  }
  return false;
}

// "encoder.block (12 layers), decoder.block (6 layers)", cut short.
std::string StacksText(const LayerStacks& stacks) {
  constexpr size_t kMost = 6;
  std::vector<std::string> texts;
  for (const auto& [stack, layers] : stacks.all()) {
    if (texts.size() == kMost) {
      texts.push_back("...");
      break;
    }
    const uint64_t count = LayerStacks::Count(layers);
    texts.push_back(fmt::format("{} ({} layer{})", Printable(StackText(stack)), count, count == 1 ? "" : "s"));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

// Stacks whose names differ in nothing but "encoder" and "decoder", and that have as many layers.
bool AreHalvesOfOne(const LayerStacks& stacks, const std::vector<std::string>& names) {
  if (names.size() != 2) return false;
  std::string a = names[0], b = names[1];
  if (LayerStacks::Count(*stacks.Find(a)) != LayerStacks::Count(*stacks.Find(b))) return false;
  if (HasComponent(a, "encoder")) std::swap(a, b);
  if (!HasComponent(a, "decoder") || !HasComponent(b, "encoder")) return false;
  b.replace(b.find("encoder"), 2, "de");
  return a == b;
}

// How much of two dotted names is the same, in whole components with their dots.
size_t CommonComponents(std::string_view a, std::string_view b) {
  size_t common = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i)
    if (a[i] == '.') common = i + 1;
  return common;
}

// A tower beside the layers, such as the vision part of a multimodal model: something that has numbered layers of its
// own, none of which are stacked.
bool IsInAnotherTower(std::string_view name, const std::vector<std::string>& stacked, const LayerStacks& stacks) {
  return std::all_of(stacked.begin(), stacked.end(), [&](const std::string& stack) {
    const size_t common = CommonComponents(name, stack);
    const std::string_view tower = name.substr(0, std::min(name.find('.', common), name.size() - 1) + 1);
    const auto in_it = stacks.all().lower_bound(tower);
    return !stack.starts_with(tower) && in_it != stacks.all().end() && in_it->first.starts_with(tower);
  });
}

// Embeddings of tokens and positions, and what belongs to them, and what makes the first states of pictures and sound,
// by the names that architectures give them. Everything else outside the layers is taken to be behind them: final
// norms, poolers, heads.
bool IsEmbedding(std::string_view name) {
  constexpr auto kNames = std::to_array<std::string_view>({"wte", "wpe", "shared", "project_in", "patch_conv", "conv1",
                                                           "conv2", "ln_pre", "pre_layrnorm", "pre_layernorm"});
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view component = name.substr(begin, end - begin);
    if (std::find(kNames.begin(), kNames.end(), component) != kNames.end()) return true;
    const bool is_head = component == "embed_out" || component.find("unembed") != std::string_view::npos;
    if (!is_head && component.find("emb") != std::string_view::npos) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

std::string WantedTensor::NameIn(const SourceGroup::Source& source) const {
  if (!layer) return name;
  return NameInLayer(*ParseLayerName(name), source.model->layers->begin + *layer);
}

struct SlicedModel::Module {
  const RecipeModule* recipe = nullptr;
  std::vector<SourceGroup> groups;   // per slice
  std::vector<std::string> stacks;   // whose layers are rearranged; none when the slices have no layers

  bool rearranged() const { return !stacks.empty(); }
  bool Stacks(std::string_view stack) const { return std::find(stacks.begin(), stacks.end(), stack) != stacks.end(); }
  std::vector<const SourceGroup*> GroupsAround(bool before) const {
    if (groups.size() == 1) return {&groups.front()};
    if (before) return {&groups.front(), &groups.back()};
    return {&groups.back(), &groups.front()};
  }
};

SlicedModel::SlicedModel(const Plan& plan) : plan_(plan) {
  const auto source_of = [&](const RecipeModel& model) {
    const auto found =
        std::find_if(plan.checkpoints.begin(), plan.checkpoints.end(),
                     [&](const Checkpoint& checkpoint) { return checkpoint.reference == model.reference; });
    const auto index = static_cast<uint32_t>(found - plan.checkpoints.begin());
    if (!stacks_.contains(index)) stacks_.emplace(index, std::make_unique<LayerStacks>(*found));
    return SourceGroup::Source{index, &model};
  };
  for (const RecipeModule& recipe : plan.recipe.modules) {
    Module& module = *modules_.emplace_back(std::make_unique<Module>());
    module.recipe = &recipe;
    for (const RecipeSlice& slice : recipe.slices) {
      SourceGroup& group = module.groups.emplace_back();
      if (slice.base) group.base = source_of(*slice.base);
      for (const RecipeModel& model : slice.models) group.models.push_back(source_of(model));
      group.settings = {&slice.settings, &recipe.settings};
    }
  }
  CheckModules();
  for (const auto& module : modules_) {
    if (!module->recipe->slices.front().leader().layers) continue;
    ChooseStacks(module.get());
    CheckRanges(*module);
  }
}

SlicedModel::~SlicedModel() = default;

const SlicedModel::Module& SlicedModel::ModuleOf(std::string_view tensor) const {
  if (modules_.size() == 1 && modules_.front()->recipe->name.empty()) return *modules_.front();
  std::vector<std::string_view> names;
  for (const auto& module : modules_) names.push_back(module->recipe->name);
  if (const auto owner = OwnerOf(tensor, names)) return *modules_[*owner];
  throw RecipeError(
      plan_.recipe, modules_.front()->recipe->where,
      fmt::format("no module takes the tensor '{}': the modules are {}", Printable(tensor), fmt::join(names, ", ")))
      .Hint("name a module after a part of the tensor's name, or 'default' for all that is left");
}

// A module that nothing belongs to has a name that is not understood.
void SlicedModel::CheckModules() const {
  std::set<const Module*> without;
  for (const auto& module : modules_) without.insert(module.get());
  for (const Checkpoint& checkpoint : plan_.checkpoints)
    for (size_t t = 0; t < checkpoint.tensors.size() && !without.empty(); ++t)
      without.erase(&ModuleOf(checkpoint.tensors[t].info.name));
  for (const auto& module : modules_) {
    if (!without.contains(module.get())) continue;
    const SourceGroup::Source& leader = module->groups.front().leader();
    const LayerStacks& stacks = StacksOf(leader.checkpoint);
    throw RecipeError(plan_.recipe, module->recipe->where,
                      fmt::format("no tensor belongs to the module {}: the layers of {} are {}",
                                  Quoted(module->recipe->name), Printable(CheckpointOf(leader).reference),
                                  stacks.all().empty() ? "not numbered" : StacksText(stacks)))
        .Hint("name a module after a part of its tensors' names");
  }
}

// Which of a model's stacks the layers of slices are: its only one, or those of which its config.json gives the number.
void SlicedModel::ChooseStacks(Module* module) const {
  const SourceGroup::Source& leader = module->groups.front().leader();
  const LayerStacks& stacks = StacksOf(leader.checkpoint);
  const Checkpoint& checkpoint = CheckpointOf(leader);
  for (const auto& [stack, layers] : stacks.all())
    if (&ModuleOf(stack) == module) module->stacks.push_back(stack);
  const std::string name = Printable(checkpoint.reference);
  if (module->stacks.empty())
    throw RecipeError(
        plan_.recipe, module->recipe->where,
        fmt::format(
            "{} has no numbered layers to slice{}: {}", name, module->recipe->name.empty() ? "" : " in this module",
            stacks.all().empty() ? "none of its tensors has a number in its name" : "it has " + StacksText(stacks)));
  if (module->stacks.size() == 1) return;
  const std::vector<uint64_t> declared = DeclaredLayerCounts(checkpoint.config);
  std::vector<std::string> chosen;
  for (const std::string& stack : module->stacks)
    if (std::find(declared.begin(), declared.end(), LayerStacks::Count(*stacks.Find(stack))) != declared.end())
      chosen.push_back(stack);
  if (!chosen.empty()) module->stacks = std::move(chosen);
  if (module->stacks.size() == 1 || AreHalvesOfOne(stacks, module->stacks)) return;
  throw RecipeError(
      plan_.recipe, module->recipe->where,
      fmt::format("which layers are meant cannot be told from the names: {} has {}", name, StacksText(stacks)))
      .Hint("say it with modules: each is named after a part of these names, and has slices or models of its own");
}

void SlicedModel::CheckRanges(const Module& module) const {
  uint64_t all = 0;
  for (const SourceGroup& group : module.groups) {
    for (const std::string& stack : module.stacks) {
      CheckRange(group.leader(), stack);
      for (const SourceGroup::Source& source : group.models) CheckRange(source, stack);
    }
    all += group.leader().model->layers->size();
  }
  if (all > kMostOutputLayers)
    throw RecipeError(plan_.recipe, module.recipe->where,
                      fmt::format("{} layers are more than the {} that a model may have", all, kMostOutputLayers));
}

void SlicedModel::CheckRange(const SourceGroup::Source& source, std::string_view stack) const {
  const LayerRange& range = *source.model->layers;
  const LayerStacks& stacks = StacksOf(source.checkpoint);
  const LayerStacks::Layers* layers = stacks.Find(stack);
  const std::string name = Printable(CheckpointOf(source).reference), stack_name = Printable(StackText(stack));
  if (layers == nullptr)
    throw RecipeError(plan_.recipe, source.model->where,
                      fmt::format("{} has no layers named {}.N: {}", name, stack_name,
                                  stacks.all().empty() ? "none of its tensors has a number in its name"
                                                       : "it has " + StacksText(stacks)))
        .Hint("only models of one architecture can be merged");
  const uint64_t count = LayerStacks::Count(*layers);
  if (range.end > count)
    throw RecipeError(plan_.recipe, range.where,
                      fmt::format("layer_range [{}, {}] reaches beyond the layers of {}: {} has {}, numbered 0 to {}",
                                  range.begin, range.end, name, stack_name, count, count - 1));
  uint64_t next = range.begin;
  for (auto layer = layers->lower_bound(range.begin); layer != layers->end() && layer->first == next; ++layer) ++next;
  if (next < range.end)
    throw RecipeError(plan_.recipe, range.where, fmt::format("{} has no layer {}.{}", name, stack_name, next));
}

void SlicedModel::ForEach(const std::function<void(WantedTensor)>& visit) const {
  std::vector<uint32_t> order;   // checkpoints, the one that the output's order is of in front
  const auto add = [&](const SourceGroup::Source& source) {
    if (std::find(order.begin(), order.end(), source.checkpoint) == order.end()) order.push_back(source.checkpoint);
  };
  for (const auto& module : modules_)
    for (const SourceGroup& group : module->groups) {
      add(group.leader());
      for (const SourceGroup::Source& source : group.models) add(source);
    }
  std::vector<std::string_view> names;
  for (uint32_t c : order)
    for (const CheckpointTensor& tensor : plan_.checkpoints[c].tensors) names.push_back(tensor.info.name);
  const LayerPositions positions(names);

  std::set<std::string_view> seen;   // names outside of rearranged stacks, and those stacks
  for (uint32_t c : order) {
    const std::vector<CheckpointTensor>& tensors = plan_.checkpoints[c].tensors;
    for (uint32_t t = 0; t < tensors.size(); ++t) {
      const std::string& name = tensors[t].info.name;
      const Module& module = ModuleOf(name);
      const auto layer = ParseLayerName(name);
      if (layer && module.Stacks(layer->stack)) {
        if (seen.insert(layer->stack).second) VisitStack(module, std::string(layer->stack), visit);
        continue;
      }
      if (!seen.insert(name).second) continue;
      const bool before = IsEmbedding(name) ||
                          IsInAnotherTower(name, module.stacks, StacksOf(module.groups.front().leader().checkpoint));
      const double position = module.rearranged() ? 0 : positions.Of(name);
      visit({.name = name, .groups = module.GroupsAround(before), .position = position, .depth = position, .guess = t});
    }
  }
}

void SlicedModel::VisitStack(const Module& module, const std::string& stack,
                             const std::function<void(WantedTensor)>& visit) const {
  uint64_t output = 0, all = 0;
  for (const SourceGroup& group : module.groups) all += group.leader().model->layers->size();
  for (const SourceGroup& group : module.groups)
    for (uint64_t layer = 0; layer < group.leader().model->layers->size(); ++layer)
      VisitLayer(group, stack, layer, output++, all, visit);
}

// What the leader has in its layer, in its order, then what only others have.
void SlicedModel::VisitLayer(const SourceGroup& group, std::string_view stack, uint64_t layer, uint64_t output,
                             uint64_t all, const std::function<void(WantedTensor)>& visit) const {
  const auto among = [](uint64_t i, uint64_t count) {
    return count == 1 ? 1 : static_cast<double>(i) / static_cast<double>(count - 1);
  };
  const double position = among(layer, group.leader().model->layers->size()), depth = among(output, all);
  std::set<std::string_view> seen;
  const auto add = [&](const SourceGroup::Source& source) {
    for (uint32_t t : StacksOf(source.checkpoint).Find(stack)->at(source.model->layers->begin + layer)) {
      const LayerName name = *ParseLayerName(CheckpointOf(source).tensors[t].info.name);
      if (!seen.insert(name.rest).second) continue;
      visit({.name = NameInLayer(name, output), .groups = {&group}, .position = position, .depth = depth,
             .layer = layer, .guess = t});
    }
  };
  add(group.leader());
  for (const SourceGroup::Source& source : group.models) add(source);
}

std::vector<StackedLayers> SlicedModel::Stacks() const {
  std::vector<StackedLayers> stacks;
  for (const auto& module : modules_)
    for (const std::string& stack : module->stacks) {
      StackedLayers& stacked =
          stacks.emplace_back(StackedLayers{.stack = stack, .layers = {}, .where = module->recipe->where});
      for (const SourceGroup& group : module->groups)
        for (uint64_t layer = 0; layer < group.leader().model->layers->size(); ++layer)
          stacked.layers.push_back({group.leader().checkpoint, group.leader().model->layers->begin + layer});
    }
  return stacks;
}

std::vector<uint32_t> SlicedModel::Models() const {
  std::vector<uint32_t> models;
  for (const auto& module : modules_)
    for (const SourceGroup& group : module->groups)
      for (const SourceGroup::Source& source : group.models)
        if (std::find(models.begin(), models.end(), source.checkpoint) == models.end())
          models.push_back(source.checkpoint);
  return models;
}

uint64_t SlicedModel::LayersOf(const Checkpoint& checkpoint, std::string_view stack) const {
  const auto index = static_cast<uint32_t>(&checkpoint - plan_.checkpoints.data());
  const auto count = [&](const LayerStacks& stacks) {
    const LayerStacks::Layers* layers = stacks.Find(stack);
    return layers == nullptr ? 0 : LayerStacks::Count(*layers);
  };
  const auto known = stacks_.find(index);
  return known == stacks_.end() ? count(LayerStacks(checkpoint)) : count(*known->second);
}

std::vector<RecipeWarning> SlicedModel::Differences() const {
  std::vector<RecipeWarning> warnings;
  if (plan_.recipe.syntax != Syntax::kYaml) return warnings;
  for (const auto& module : modules_) {
    const size_t first = module->groups.front().models.size(), last = module->groups.back().models.size();
    if (last > first)
      warnings.push_back(
          {fmt::format(
               "for the tensors behind the layers (final norm, head) mergekit passes over {} of the {} sources of "
               "the last slice; here all are merged",
               last - first, last + module->groups.back().base.has_value()),
           module->recipe->slices.back().where});
  }
  return warnings;
}

}  // namespace braid
