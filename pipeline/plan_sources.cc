// Which tensors come out of a merge, and where each source keeps its part. methods.md, "Rules for all".

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "io/hf_cache.h"
#include "io/input_stream.h"
#include "io/layer_config.h"
#include "pipeline/plan_internal.h"
#include "pipeline/plan_slices.h"
#include "pipeline/vocabulary.h"
#include "pipeline/vocabulary_tensors.h"

namespace braid {
namespace {

// Streams are opened before the header of any is read: whoever writes several of them may wait for all to be opened.
class Opener {
 public:
  Opener(Plan* plan, const std::atomic<int>* interrupt) : plan_(*plan) {
    ForEachSource([&](const std::string& reference, Location where) {
      const std::string path = ExpandHome(reference);
      if (IsOpen(reference) || streams_.contains(reference) || !InputStream::IsNamedBy(path)) return;
      Located(where, [&] { streams_[reference] = std::make_shared<InputStream>(path, interrupt); });
    });
  }

  void OpenAll() {
    const Recipe& recipe = plan_.recipe;
    if (recipe.base) plan_.base = static_cast<int32_t>(Open(*recipe.base, recipe.base_where));
    for (const RecipeModel& model : recipe.models) plan_.models.push_back(Open(model.reference, model.where));
    ForEachSourceOfSlices([&](const RecipeModel& model) {   // each source once
      const uint32_t opened = Open(model.reference, model.where);
      const bool known = std::find(plan_.models.begin(), plan_.models.end(), opened) != plan_.models.end();
      if (!known && static_cast<int32_t>(opened) != plan_.base) plan_.models.push_back(opened);
    });
  }

 private:
  template <typename Visit>
  void ForEachSource(Visit visit) const {
    const Recipe& recipe = plan_.recipe;
    if (recipe.base) visit(*recipe.base, recipe.base_where);
    for (const RecipeModel& model : recipe.models) visit(model.reference, model.where);
    ForEachSourceOfSlices([&](const RecipeModel& model) { visit(model.reference, model.where); });
  }
  template <typename Visit>
  void ForEachSourceOfSlices(Visit visit) const {
    for (const RecipeModule& module : plan_.recipe.modules)
      for (const RecipeSlice& slice : module.slices) {
        if (slice.base) visit(*slice.base);
        for (const RecipeModel& model : slice.models) visit(model);
      }
  }

  // By an earlier stage, perhaps.
  bool IsOpen(const std::string& reference) const {
    return std::any_of(plan_.checkpoints.begin(), plan_.checkpoints.end(),
                       [&](const Checkpoint& checkpoint) { return checkpoint.reference == reference; });
  }

  // `where`: the first place in the recipe that names it.
  uint32_t Open(const std::string& reference, Location where) {
    std::vector<Checkpoint>& opened = plan_.checkpoints;
    for (size_t i = 0; i < opened.size(); ++i)
      if (opened[i].reference == reference) return static_cast<uint32_t>(i);
    const bool delta = plan_.applies() && plan_.base >= 0;   // behind the base
    Located(where, [&] {
      opened.push_back((delta ? OpenDelta : OpenCheckpoint)(reference, streams_[reference]));
    });
    for (const std::string& warning : opened.back().warnings) plan_.warnings.push_back(warning);
    return static_cast<uint32_t>(opened.size() - 1);
  }

  // A broken file is no fault of the recipe.
  template <typename Body>
  void Located(Location where, Body body) const {
    try {
      body();
    } catch (const Error& error) {
      if (plan_.applies()) throw;   // no recipe asked for it
      if (error.code() == ErrorCode::kUsage || error.code() == ErrorCode::kIncompatible)
        throw AskedForAt(error, plan_.recipe, where);
      throw;
    }
  }

  Plan& plan_;
  std::map<std::string, std::shared_ptr<InputStream>> streams_;
};

// --- tied output heads ------------------------------------------------------------------------------------

// A head of its own: stored, and not declared tied (a client ties whatever the config declares tied).
bool HasOwnHead(const Checkpoint& checkpoint, std::string_view head) {
  return checkpoint.Find(head) && checkpoint.config.tie_word_embeddings != true;
}

// Whether two shapes are the same but for the number of rows.
bool DifferInRowsOnly(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  return !a.empty() && !b.empty() && std::equal(a.begin() + 1, a.end(), b.begin() + 1, b.end());
}

std::string ShapeHint(std::string_view name, const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  if ((IsEmbedding(name) || IsOutputHead(name)) && DifferInRowsOnly(a, b))
    return "the models have different vocabularies: align them with 'tokenizer_source' (in TOML 'tokenizer'), the "
           "base's with \"base\", all of them with \"union\"";
  return "only models of one architecture can be merged";
}

// --- finding sources --------------------------------------------------------------------------------------

class TensorPlanner {
 public:
  TensorPlanner(Plan* plan, const Vocabulary* vocabulary)
      : plan_(*plan), vocabulary_(vocabulary), relative_(plan->relative), layers_(AllNames()) {}

  void Run() {
    plan_.model_scope = IsModelScope();
    if (plan_.recipe.modules.empty()) PlanModels();
    else PlanSlices();
    CheckFilters(plan_.recipe, names_, &plan_.recipe.warnings);
    CheckSomethingIsMerged();
    CheckModelScope();
    ChooseConfigType();
  }

 private:
  const std::vector<std::string_view>& AllNames();
  void PlanModels();
  void PlanSlices();
  void RearrangeConfig(const SlicedModel& sliced);
  bool IsTiedEverywhere(std::string_view name);
  bool HasSource(const WantedTensor& wanted, const SourceGroup& group);
  void PlanOne(const WantedTensor& wanted, const SourceGroup& sources);
  bool IsModelScope() const;
  SourceGroup Widened(const SourceGroup& group) const;
  SourceGroup::Source LenderOf(const SourceGroup& group) const;
  void PlanExcluded(const WantedTensor& wanted, const SourceGroup& group);
  DType TypeByDelta(const PlannedTensor& tensor) const {
    const TensorSource& source = tensor.models.front();
    return plan_.checkpoints[static_cast<size_t>(source.checkpoint)].delta->types[source.tensor];
  }
  void CheckSomethingIsMerged() const;
  TensorSource Find(uint32_t checkpoint, const std::string& name, uint32_t guess);
  TensorSource LentByBase(const SourceGroup& group, const PlannedTensor& tensor);
  bool HandleMissing(const WantedTensor& wanted, const SourceGroup& group, PlannedTensor* tensor);
  void CheckShapesAndTypes(const SourceGroup& group, PlannedTensor* tensor);
  void Resolve(const WantedTensor& wanted, const SourceGroup& group, PlannedTensor* tensor);
  uint32_t Intern(Coefficients c);
  void CheckModelScope();
  void ChooseConfigType();
  const std::string& ReferenceOf(const TensorSource& source) const {
    return plan_.checkpoints[static_cast<size_t>(source.checkpoint)].reference;
  }
  Location PlaceOf(const SourceGroup::Source& source) const {
    return source.model != nullptr ? source.model->where : plan_.recipe.base_where;
  }
  // Of sources that do not fit together: the place of the one that is blamed.
  Error Unfit(const std::string& tensor, std::string message, std::string hint, Location where) const {
    return AskedForAt(Error(ErrorCode::kIncompatible, std::move(message)).Tensor(tensor).Hint(std::move(hint)),
                      plan_.recipe, where);
  }

  Plan& plan_;
  const Vocabulary* vocabulary_;
  bool relative_;
  std::vector<std::string_view> names_;
  LayerPositions layers_;
  std::unordered_multimap<size_t, uint32_t> interned_;
  std::vector<double> skip_weight_;
  std::vector<uint32_t> whole_models_;   // of slices with scope = "model": their checkpoints, as the recipe lists them
};

// The base's tensors in its file order (without a base, the first model's), then what only others have. Fine-tunes
// mostly have the tensors of their base in its order, so the same place is the first guess for each.
const std::vector<std::string_view>& TensorPlanner::AllNames() {
  std::vector<const Checkpoint*> added;
  const auto add = [&](const Checkpoint& checkpoint) {
    for (uint32_t i = 0; i < checkpoint.tensors.size(); ++i) {
      const std::string_view name = checkpoint.tensors[i].info.name;
      const auto has_it = [&](const Checkpoint* earlier) { return earlier->Find(name, i).has_value(); };
      if (std::none_of(added.begin(), added.end(), has_it)) names_.push_back(name);
    }
    added.push_back(&checkpoint);
  };
  if (plan_.base >= 0) add(plan_.checkpoints[static_cast<size_t>(plan_.base)]);
  for (uint32_t model : plan_.models) add(plan_.checkpoints[model]);
  return names_;
}

void TensorPlanner::PlanModels() {
  SourceGroup group;
  if (relative_) group.base = SourceGroup::Source{static_cast<uint32_t>(plan_.base), nullptr};
  for (size_t m = 0; m < plan_.models.size(); ++m) group.models.push_back({plan_.models[m], &plan_.recipe.models[m]});
  plan_.most_models = group.models.size();
  for (uint32_t place = 0; place < names_.size(); ++place) {
    const std::string name(names_[place]);
    if (IsTiedEverywhere(name)) continue;
    const double position = layers_.Of(name);
    PlanOne({.name = name, .groups = {}, .position = position, .depth = position, .guess = place}, group);
  }
}

bool TensorPlanner::IsModelScope() const {
  Coefficients c;
  for (const ParameterSpec& spec : plan_.method->parameters)
    c.shared.push_back(spec.scope == ParameterScope::kRecipe ? ResolveParameter(plan_.recipe, nullptr, spec, "", 0)
                                                             : 0);
  return plan_.method->IsModelScope(c);
}

// Where statistics are of whole models, each of them has a place of its own, whichever slices it is a source of: all
// that comes into the output from it is its task vector. Where a slice does not have it, it is like a model that lacks
// the tensor (on_missing = "skip").
SourceGroup TensorPlanner::Widened(const SourceGroup& group) const {
  SourceGroup wide = group;
  if (whole_models_.empty()) return wide;
  wide.models.assign(whole_models_.size(), {});
  for (const SourceGroup::Source& source : group.models) {
    const auto place = std::find(whole_models_.begin(), whole_models_.end(), source.checkpoint) - whole_models_.begin();
    wide.models[static_cast<size_t>(place)] = source;
  }
  return wide;
}

void TensorPlanner::PlanSlices() {
  const SlicedModel sliced(plan_);
  if (plan_.model_scope) whole_models_ = sliced.Models();
  sliced.ForEach([&](const WantedTensor& wanted) {
    if (!wanted.layer && IsTiedEverywhere(wanted.name)) return;
    const auto group = std::find_if(wanted.groups.begin(), wanted.groups.end(),
                                    [&](const SourceGroup* candidate) { return HasSource(wanted, *candidate); });
    if (group != wanted.groups.end()) return PlanOne(wanted, **group);
    plan_.warnings.push_back(fmt::format("{} is left out: neither the first nor the last slice has a source with it",
                                         Printable(wanted.name)));
  });
  for (const PlannedTensor& tensor : plan_.tensors) names_.push_back(tensor.name);   // for filters on what comes out
  for (RecipeWarning& warning : sliced.Differences()) plan_.recipe.warnings.push_back(std::move(warning));
  RearrangeConfig(sliced);
}

// The config that the merge begins with: the donor's, with the number of layers that come out.
void TensorPlanner::RearrangeConfig(const SlicedModel& sliced) {
  const ModelConfig donor = plan_.donor_config;
  for (const StackedLayers& stacked : sliced.Stacks()) {
    std::vector<LayerOrigin> origins;
    for (const auto& [checkpoint, layer] : stacked.layers)
      origins.push_back({&plan_.checkpoints[checkpoint].config, layer});
    plan_.donor_config.text = ConfigWithLayers(donor, std::move(plan_.donor_config.text), stacked.stack,
                                               sliced.LayersOf(plan_.Donor(), stacked.stack), origins, &plan_.warnings);
  }
}

bool TensorPlanner::IsTiedEverywhere(std::string_view name) {
  if (!IsOutputHead(name)) return false;
  if (plan_.base >= 0 && HasOwnHead(plan_.checkpoints[static_cast<size_t>(plan_.base)], name)) return false;
  for (uint32_t model : plan_.models)
    if (HasOwnHead(plan_.checkpoints[model], name)) return false;
  plan_.warnings.push_back(fmt::format(
      "{} is not written: every config.json ties it to the embedding, which is merged once", Printable(name)));
  return true;
}

bool TensorPlanner::HasSource(const WantedTensor& wanted, const SourceGroup& group) {
  const auto has_it = [&](const SourceGroup::Source& source) {
    return Find(source.checkpoint, wanted.NameIn(source), wanted.guess).present();
  };
  return (group.base && has_it(*group.base)) || std::any_of(group.models.begin(), group.models.end(), has_it);
}

TensorSource TensorPlanner::Find(uint32_t index, const std::string& name, uint32_t guess) {
  const Checkpoint& checkpoint = plan_.checkpoints[index];
  std::optional<uint32_t> found = checkpoint.Find(name, guess);
  // A delta that lacks a head adds nothing to it.
  const bool tied = !checkpoint.delta && checkpoint.config.tie_word_embeddings.value_or(!found);
  if (IsOutputHead(name) && tied) {  // a tied head is its embedding
    if (const auto embedding = FindEmbedding(checkpoint)) {
      found = embedding;
      plan_.untie_head = true;
    }
  }
  if (!found) return {};
  return {static_cast<int32_t>(index), *found};
}

// Who lends what is not merged: the base, wherever it stands among the sources; else the first of them.
SourceGroup::Source TensorPlanner::LenderOf(const SourceGroup& group) const {
  if (group.base) return *group.base;
  const auto is_base = [&](const SourceGroup::Source& source) {
    return static_cast<int32_t>(source.checkpoint) == plan_.base;
  };
  const auto base = std::find_if(group.models.begin(), group.models.end(), is_base);
  if (base != group.models.end()) return *base;
  if (plan_.base >= 0 && plan_.recipe.modules.empty()) return {static_cast<uint32_t>(plan_.base), nullptr};
  return group.models.front();
}

// Copied byte for byte, so that its type stays, whatever `dtype` says.
void TensorPlanner::PlanExcluded(const WantedTensor& wanted, const SourceGroup& group) {
  const SourceGroup::Source lender = LenderOf(group);
  const TensorSource source = Find(lender.checkpoint, wanted.NameIn(lender), wanted.guess);
  if (!source.present()) {
    plan_.warnings.push_back(fmt::format("{} is left out: the recipe excludes it, and {} does not have it",
                                         Printable(wanted.name),
                                         Printable(plan_.checkpoints[lender.checkpoint].reference)));
    return;
  }
  const TensorInfo& info = plan_.Info(source);
  plan_.tensors.push_back({.name = wanted.name, .shape = info.shape, .elements = info.elements, .type = info.dtype,
                           .action = TensorAction::kExclude, .base = source,
                           .models = std::vector<TensorSource>(group.models.size()), .bytes = info.bytes});
}

void TensorPlanner::CheckSomethingIsMerged() const {
  const Recipe& recipe = plan_.recipe;
  if (recipe.only.empty() && recipe.exclude.empty()) return;
  const auto takes_part = [](const PlannedTensor& tensor) { return tensor.action != TensorAction::kExclude; };
  if (std::any_of(plan_.tensors.begin(), plan_.tensors.end(), takes_part)) return;
  throw RecipeError(recipe, (recipe.only.empty() ? recipe.exclude : recipe.only).front().where,
                    "only and exclude leave no tensor to merge");
}

void TensorPlanner::PlanOne(const WantedTensor& wanted, const SourceGroup& sources) {
  if (!IsMerged(plan_.recipe, wanted.name)) return PlanExcluded(wanted, sources);
  const SourceGroup group = Widened(sources);
  const auto find = [&](const SourceGroup::Source& source) {
    return Find(source.checkpoint, wanted.NameIn(source), wanted.guess);
  };
  // What a delta does not have is the base's, whatever it is.
  if (plan_.applies() && !find(group.models.front()).present()) return PlanExcluded(wanted, sources);
  PlannedTensor tensor;
  tensor.name = wanted.name;
  if (group.base) tensor.base = find(*group.base);
  for (const SourceGroup::Source& source : group.models)
    tensor.models.push_back(source.model == nullptr ? TensorSource{} : find(source));
  skip_weight_.assign(group.models.size(), 1);
  if (!HandleMissing(wanted, group, &tensor)) return;
  CheckShapesAndTypes(group, &tensor);
  if (vocabulary_ != nullptr) vocabulary_->Align(&tensor);
  Resolve(wanted, group, &tensor);
  plan_.most_models = std::max(plan_.most_models, tensor.models.size());
  plan_.tensors.push_back(std::move(tensor));
}

// Where layers are rearranged, the base's tensor for a layer is that of its layer in the slice, if it is in the slice.
TensorSource TensorPlanner::LentByBase(const SourceGroup& group, const PlannedTensor& tensor) {
  if (plan_.recipe.modules.empty()) return Find(static_cast<uint32_t>(plan_.base), tensor.name, 0);
  for (size_t m = 0; m < group.models.size(); ++m)
    if (group.models[m].model != nullptr && group.models[m].checkpoint == static_cast<uint32_t>(plan_.base))
      return tensor.models[m];
  return {};
}

// Applies on_missing. False: the tensor does not come out.
bool TensorPlanner::HandleMissing(const WantedTensor& wanted, const SourceGroup& group, PlannedTensor* tensor) {
  const auto missing = [&](const SourceGroup::Source& source, std::string hint) {
    const std::string name = wanted.NameIn(source);
    const std::string what = name == wanted.name ? "it" : fmt::format("its source {}", Printable(name));
    return Unfit(tensor->name, fmt::format("{} does not have {}", plan_.checkpoints[source.checkpoint].reference, what),
                 std::move(hint), PlaceOf(source));
  };
  const OnMissing policy = plan_.recipe.on_missing;
  if (relative_ && !tensor->base.present()) {
    if (policy == OnMissing::kBase) {
      plan_.warnings.push_back(fmt::format("{} is left out: the base does not have it", Printable(tensor->name)));
      return false;
    }
    throw missing(*group.base,
                  "a task vector needs the base's tensor; on_missing = \"base\" leaves such tensors out");
  }
  // Who lends a missing tensor: the base of the method, or in linear the base among the sources.
  TensorSource lender = tensor->base;
  if (!relative_ && plan_.base >= 0) lender = LentByBase(group, *tensor);
  size_t present = 0;
  for (size_t m = 0; m < tensor->models.size(); ++m) {
    if (tensor->models[m].present()) {
      ++present;
    } else if (group.models[m].model == nullptr) {
      skip_weight_[m] = 0;
    } else if (policy == OnMissing::kError) {
      throw missing(group.models[m],
                    "on_missing = \"base\" takes the base's tensor for it, \"skip\" merges the others without it");
    } else if (policy == OnMissing::kBase) {
      if (!lender.present())
        throw missing(group.models[m], "the base does not have it either; on_missing = \"skip\" merges the others");
      tensor->models[m] = lender;
    } else {
      skip_weight_[m] = 0;
    }
  }
  if (present == 0 && !relative_ && policy == OnMissing::kSkip) return false;
  return true;
}

void TensorPlanner::CheckShapesAndTypes(const SourceGroup& group, PlannedTensor* tensor) {
  std::vector<TensorSource> sources;
  std::vector<Location> places;
  const auto add = [&](const TensorSource& source, const SourceGroup::Source& of) {
    if (source.present()) sources.push_back(source), places.push_back(PlaceOf(of));
  };
  if (group.base) add(tensor->base, *group.base);
  for (size_t m = 0; m < group.models.size(); ++m) add(tensor->models[m], group.models[m]);
  const TensorInfo& first = plan_.Info(sources.front());
  tensor->shape = first.shape;
  tensor->elements = first.elements;
  bool all_lanes = true;
  std::optional<DType> promoted;
  const bool by_token = vocabulary_ != nullptr && vocabulary_->Covers(*tensor);
  for (size_t s = 0; s < sources.size(); ++s) {
    const TensorInfo& info = plan_.Info(sources[s]);
    if (by_token ? !DifferInRowsOnly(info.shape, first.shape) : info.shape != first.shape)
      throw Unfit(tensor->name,
                  fmt::format("its shape is {} in {} but {} in {}", ShapeText(first.shape),
                              ReferenceOf(sources.front()), ShapeText(info.shape), ReferenceOf(sources[s])),
                  ShapeHint(tensor->name, info.shape, first.shape), places[s]);
    if (IsLaneType(info.dtype)) promoted = promoted ? PromoteLaneTypes(*promoted, info.dtype) : info.dtype;
    else all_lanes = false;
  }
  if (all_lanes) {
    const Recipe& recipe = plan_.recipe;
    tensor->type = plan_.applies()    ? TypeByDelta(*tensor)
                   : recipe.out_dtype ? *recipe.out_dtype
                   : recipe.dtype     ? *recipe.dtype
                                      : *promoted;
    tensor->bytes = tensor->elements * static_cast<uint64_t>(LaneBytes(tensor->type));
    return;
  }
  for (size_t s = 0; s < sources.size(); ++s)
    if (const DType type = plan_.Info(sources[s]).dtype; type != first.dtype)
      throw Unfit(tensor->name,
                  fmt::format("its type is {} in {} but {} in {}", DTypeName(first.dtype), ReferenceOf(sources.front()),
                              DTypeName(type), ReferenceOf(sources[s])),
                  "tensors that are not floating point must be the same in all sources", places[s]);
  tensor->action = TensorAction::kCopy;
  tensor->type = first.dtype;
  tensor->bytes = first.bytes;
}

void TensorPlanner::Resolve(const WantedTensor& wanted, const SourceGroup& group, PlannedTensor* tensor) {
  const std::vector<ParameterSpec>& specs = plan_.method->parameters;
  Coefficients c;
  c.shared.assign(specs.size(), 0);
  c.model.assign(group.models.size(), std::vector<double>(specs.size(), 0));
  for (size_t p = 0; p < specs.size(); ++p) {
    if (specs[p].scope != ParameterScope::kModel) {
      c.shared[p] = ResolveParameter(plan_.recipe, nullptr, specs[p], wanted.name, wanted.position, group.settings);
      continue;
    }
    for (size_t m = 0; m < c.model.size(); ++m) {
      const SourceGroup::Source& source = group.models[m];
      if (source.model == nullptr) continue;
      c.model[m][p] = ResolveParameter(plan_.recipe, source.model, specs[p], wanted.NameIn(source), wanted.position,
                                       group.settings);
      if (specs[p].name == "weight") c.model[m][p] *= skip_weight_[m];
    }
  }
  if (plan_.recipe.layer_scale) c.layer = wanted.depth;
  if (plan_.method->check != nullptr && tensor->action == TensorAction::kMerge)
    if (const std::string wrong = plan_.method->check(*plan_.method, c); !wrong.empty())
      throw RecipeError(plan_.recipe, plan_.recipe.method_where,
                        fmt::format("for tensor '{}' {}", Printable(tensor->name), wrong));
  tensor->coefficients = Intern(std::move(c));
}

uint32_t TensorPlanner::Intern(Coefficients c) {
  size_t hash = 0;
  const auto mix = [&](double v) { hash = hash * 1099511628211u ^ std::hash<double>()(v); };
  mix(c.layer);
  for (double v : c.shared) mix(v);
  for (const auto& model : c.model)
    for (double v : model) mix(v);
  const auto [begin, end] = interned_.equal_range(hash);
  for (auto it = begin; it != end; ++it)
    if (plan_.coefficients[it->second] == c) return it->second;
  plan_.coefficients.push_back(std::move(c));
  const auto index = static_cast<uint32_t>(plan_.coefficients.size() - 1);
  interned_.emplace(hash, index);
  return index;
}

// One threshold over the whole model needs one density, and one rescale, per model.
void TensorPlanner::CheckModelScope() {
  plan_.model_scope &= !plan_.coefficients.empty();
  if (!plan_.model_scope) return;
  const int parameter = plan_.method->IndexOf("rescale");
  if (parameter < 0) return;
  const auto rescale = static_cast<size_t>(parameter);
  for (const Coefficients& c : plan_.coefficients)
    if (c.shared[rescale] != plan_.coefficients.front().shared[rescale])
      throw RecipeError(plan_.recipe, plan_.recipe.method_where,
                        "with scope = \"model\", rescale must be the same for all tensors");
}

// config.json names one type: that of most parameters.
void TensorPlanner::ChooseConfigType() {
  std::array<uint64_t, 32> parameters{};
  for (const PlannedTensor& tensor : plan_.tensors)
    if (tensor.action == TensorAction::kMerge || (tensor.action == TensorAction::kExclude && IsLaneType(tensor.type)))
      parameters[static_cast<size_t>(tensor.type)] += tensor.elements;
  const auto most = std::max_element(parameters.begin(), parameters.end());
  if (*most > 0) plan_.config_type = static_cast<DType>(most - parameters.begin());
}

}  // namespace

// Of a donor that is a stream, what is not weights comes from the first other source that has it.
void ChooseDonorFiles(Plan* plan) {
  std::vector<const Checkpoint*> candidates = {&plan->Donor()};
  if (plan->Donor().shards.front().stream != nullptr)
    for (uint32_t model : plan->models) candidates.push_back(&plan->checkpoints[model]);
  const auto found = std::find_if(candidates.begin(), candidates.end(),
                                  [](const Checkpoint* candidate) { return !candidate->directory.empty(); });
  if (found != candidates.end()) {
    plan->donor_directory = (*found)->directory;
    plan->donor_config = (*found)->config;
  } else if (candidates.size() > 1) {
    plan->warnings.push_back(
        "the output has weights alone: no source is a directory that config and tokenizer could come from");
  }
}

void OpenSources(Plan* plan, const std::atomic<int>* interrupt) {
  Opener(plan, interrupt).OpenAll();
  ChooseDonorFiles(plan);
}

void PlanTensors(Plan* plan, const Vocabulary* vocabulary) {
  TensorPlanner(plan, vocabulary).Run();
  // The head only comes loose where the donor's config says that it is tied, or leaves it to the default.
  if (plan->donor_config.tie_word_embeddings == false) plan->untie_head = false;
}

}  // namespace braid
