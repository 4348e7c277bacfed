// Several merges planned as one. Each stage is planned by itself, in order, as a merge of its own would be; its result is
// then a checkpoint without files, which has the names, shapes and types that the merge would write, and the config. In
// the end every tensor of the last stage is resolved: sources that are results become steps of a tree (ChainTree), whose
// leaves are files; tensors that a stage copies as they are become what it copies.
//
// What a stage finds out of whole models, a stage that reads it cannot wait for on the way. Such stages are spilled, and so
// is what they read of others: each has a plan of its own.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "io/model_files.h"
#include "pipeline/plan_internal.h"
#include "pipeline/plan_lent.h"
#include "pipeline/recipe_stages.h"

namespace braid {
namespace {

// Rows of one stage and reduction blocks of another must meet within so many elements: tiles are multiples of that, and
// a worker holds so many of each result.
constexpr uint64_t kMostUnit = uint64_t{1} << 20;

std::string OfStage(const PlannedStage& stage, std::string_view text) {
  return stage.name.empty() ? std::string(text) : fmt::format("stage '{}': {}", stage.name, text);
}

// What a merge would write, as far as headers go.
Checkpoint ResultOf(const Plan& plan, const std::string& name, uint64_t number) {
  Checkpoint result;
  result.reference = StageReference(name);
  result.directory = plan.donor_directory;
  if (!plan.donor_config.path.empty())
    result.config =
        ParseModelConfig(MergedConfig(plan.donor_config, plan.config_type, plan.untie_head), plan.donor_config.path);
  Shard shard;
  shard.identity.device = UINT64_MAX;   // no file's, so that its tensors are none that a file has
  shard.identity.inode = number;
  result.shards.push_back(std::move(shard));
  uint64_t offset = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    result.tensors.push_back({.info = {.name = tensor.name, .dtype = tensor.type, .shape = tensor.shape,
                                       .elements = tensor.elements, .offset = offset, .bytes = tensor.bytes}});
    offset += tensor.bytes;
  }
  result.by_name.resize(result.tensors.size());
  std::iota(result.by_name.begin(), result.by_name.end(), 0u);
  std::sort(result.by_name.begin(), result.by_name.end(), [&](uint32_t a, uint32_t b) {
    return result.tensors[a].info.name < result.tensors[b].info.name;
  });
  return result;
}

// Resolves the tensors of one plan, the last of a chain.
class ChainPlanner {
 public:
  // `results`: which checkpoint is whose result, of the stages that are merged on the way.
  ChainPlanner(std::vector<Plan>* plans, uint32_t last, std::map<int32_t, uint32_t> results)
      : plans_(*plans), number_(last), last_((*plans)[last]), results_(std::move(results)) {}

  // Counts each stage's rounds, too.
  void Run(std::vector<PlannedStage>* stages) {
    for (const Plan& plan : plans_) {
      first_coefficients_.push_back(chain_.coefficients.size());
      chain_.coefficients.insert(chain_.coefficients.end(), plan.coefficients.begin(), plan.coefficients.end());
    }
    most_models_ = 0;
    for (const Plan& plan : plans_) most_models_ = std::max(most_models_, plan.most_models);
    for (PlannedTensor& tensor : last_.tensors) ResolveTensor(&tensor);
    last_.coefficients.clear();
    for (size_t t = 0; t < chain_.trees.size(); ++t) last_.coefficients.push_back(chain_.CoefficientsOfTree(t));
    for (const auto& [step, rounds] : rounds_)
      (*stages)[step.first].rounds = std::max((*stages)[step.first].rounds, rounds);
    last_.chain = std::move(chain_);
    last_.most_models = most_models_;
    last_.relative = false;
  }

 private:
  // A tensor of a stage, by the stage's number and its index there.
  using Made = std::pair<uint32_t, uint32_t>;

  const PlannedTensor& TensorOf(Made made) const { return plans_[made.first].tensors[made.second]; }
  std::optional<Made> MadeBy(const TensorSource& source) const {
    const auto result = results_.find(source.checkpoint);
    if (result == results_.end()) return std::nullopt;
    return Made{result->second, source.tensor};
  }
  // Past stages that leave the tensor as it is.
  TensorSource Follow(TensorSource source) const {
    for (;;) {
      const std::optional<Made> made = MadeBy(source);
      if (!made) return source;
      const PlannedTensor& tensor = TensorOf(*made);
      if (tensor.action != TensorAction::kKeep && tensor.action != TensorAction::kExclude) return source;
      source = tensor.base;
    }
  }

  void ResolveTensor(PlannedTensor* tensor) {
    if (tensor->action == TensorAction::kMerge) return PlanTree(tensor, [&](Building* tree) {
      AddStep({number_, static_cast<uint32_t>(tensor - last_.tensors.data())}, tree);
    });
    if (tensor->action == TensorAction::kCopy) return Flatten(tensor);
    tensor->base = Follow(tensor->base);
    const std::optional<Made> made = MadeBy(tensor->base);
    if (!made) return;
    if (TensorOf(*made).action == TensorAction::kCopy) return Flatten(tensor);
    tensor->action = TensorAction::kMerge;   // as it comes out of the stage
    PlanTree(tensor, [&](Building* tree) { AddStep(*made, tree); });
  }

  // Copied from files that must be equal: those of every stage on the way.
  void Flatten(PlannedTensor* tensor) {
    std::vector<TensorSource> files;
    std::vector<TensorSource> open = tensor->models;
    open.insert(open.begin(), tensor->base);
    while (!open.empty()) {
      const TensorSource source = Follow(open.front());
      open.erase(open.begin());
      if (!source.present()) continue;
      if (const std::optional<Made> made = MadeBy(source)) {
        const PlannedTensor& through = TensorOf(*made);
        open.push_back(through.base);
        open.insert(open.end(), through.models.begin(), through.models.end());
      } else if (!Contains(files, source)) {
        files.push_back(source);
      }
    }
    tensor->action = TensorAction::kCopy;
    tensor->base = {};
    tensor->models = std::move(files);
    most_models_ = std::max(most_models_, tensor->models.size());
  }

  struct Building {
    ChainTree tree;
    std::map<Made, uint32_t> steps;
    std::vector<TensorSource> files;
  };

  template <typename Add>
  void PlanTree(PlannedTensor* tensor, Add add) {
    Building building;
    add(&building);
    tensor->base = {};
    tensor->models = std::move(building.files);
    most_models_ = std::max(most_models_, tensor->models.size());
    SetUnits(*tensor, &building.tree);
    tensor->coefficients = static_cast<uint32_t>(chain_.trees.size());
    chain_.trees.push_back(std::move(building.tree));
  }

  static bool Contains(const std::vector<TensorSource>& files, const TensorSource& source) {
    return IndexOf(files, source) < files.size();
  }
  static size_t IndexOf(const std::vector<TensorSource>& files, const TensorSource& source) {
    const auto is_it = [&](const TensorSource& file) {
      return file.checkpoint == source.checkpoint && file.tensor == source.tensor;
    };
    return static_cast<size_t>(std::find_if(files.begin(), files.end(), is_it) - files.begin());
  }

  ChainInput InputOf(const TensorSource& from, Building* building) {
    if (!from.present()) return {};
    const TensorSource source = Follow(from);
    if (const std::optional<Made> made = MadeBy(source)) return {ChainInput::Kind::kStep, AddStep(*made, building)};
    const size_t index = IndexOf(building->files, source);
    if (index == building->files.size()) building->files.push_back(source);
    return {ChainInput::Kind::kSource, static_cast<uint32_t>(index)};
  }

  uint32_t AddStep(Made made, Building* building) {
    if (const auto known = building->steps.find(made); known != building->steps.end()) return known->second;
    const PlannedTensor tensor = TensorOf(made);   // a copy: that of the last stage is being changed
    ChainStep step{.stage = made.first,
                   .coefficients = static_cast<uint32_t>(first_coefficients_[made.first]) + tensor.coefficients,
                   .tensor = tensor.Facts(), .type = tensor.type};
    step.base = InputOf(tensor.base, building);
    for (const TensorSource& model : tensor.models) step.models.push_back(InputOf(model, building));
    const auto index = static_cast<uint32_t>(building->tree.steps.size());
    if (index == ChainTree::kMostSteps)
      throw Error(ErrorCode::kIncompatible, fmt::format("more than {} merges make it", ChainTree::kMostSteps))
          .Tensor(tensor.name);
    step.merger = index;
    CountRounds(step);
    building->tree.steps.push_back(std::move(step));
    building->steps.emplace(made, index);
    return index;
  }

  void CountRounds(const ChainStep& step) {
    const auto [rounds, is_new] = rounds_.try_emplace({step.stage, step.coefficients}, 0);
    if (!is_new) return;
    const MethodInfo& method = *plans_[step.stage].method;
    rounds->second = static_cast<uint32_t>(
        method.make(method, chain_.coefficients[step.coefficients], step.tensor, Approach::kPlain)->statistics_rounds());
  }

  void SetUnits(const PlannedTensor& tensor, ChainTree* tree) const {
    const auto unit_of = [&](const ChainStep& step) {
      return plans_[step.stage].method->TileUnit(chain_.coefficients[step.coefficients], step.tensor);
    };
    const auto blocks = [&](uint64_t unit) { return (tensor.elements + unit - 1) / unit; };
    for (const ChainStep& step : tree->steps) {
      const uint64_t unit = unit_of(step);
      tree->sum_blocks = std::max(tree->sum_blocks, blocks(unit == 0 ? kReductionBlock : unit));
      if (unit > 0) tree->unit = std::lcm(std::max<uint64_t>(tree->unit, 1), unit);
    }
    if (tree->unit == 0) return;
    const auto without = [&](const ChainStep& step) { return unit_of(step) == 0; };
    if (std::any_of(tree->steps.begin(), tree->steps.end(), without))
      tree->unit = std::lcm(tree->unit, uint64_t{kReductionBlock});
    if (tree->unit > kMostUnit && tensor.elements > kMostUnit)
      throw Error(ErrorCode::kIncompatible,
                  "its rows, or columns, are so long that a method by rows cannot be chained with another")
          .Tensor(tensor.name)
          .Hint("merge in two runs, with dtype = \"float32\" in the first recipe");
  }

  std::vector<Plan>& plans_;
  uint32_t number_;
  Plan& last_;
  std::map<int32_t, uint32_t> results_;
  Chain chain_;
  std::vector<size_t> first_coefficients_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> rounds_;   // by stage and coefficients
  size_t most_models_ = 0;
};

void CheckStage(const Recipe& recipe, bool last) {
  if (recipe.tokenizer)
    throw RecipeError(recipe, recipe.tokenizer->where, "a stage cannot align vocabularies")
        .Hint("align them in a merge before, with a recipe of its own");
  if (recipe.chat_template && !last)
    throw RecipeError(recipe, recipe.chat_template->where, "only the last stage has a chat template");
}

PlannedStage StageOf(const Plan& plan, const Recipe& recipe) {
  PlannedStage stage{.name = recipe.name, .method = plan.method, .base = plan.base, .models = plan.models};
  stage.type = recipe.out_dtype ? recipe.out_dtype : recipe.dtype;
  return stage;
}

bool Uses(const Plan& plan, int32_t checkpoint) {
  return plan.base == checkpoint ||
         std::count(plan.models.begin(), plan.models.end(), static_cast<uint32_t>(checkpoint)) > 0;
}

// Stages but the last: those that find something out of whole models, and those that such a stage reads.
std::vector<bool> ChooseSpills(const std::vector<Plan>& plans, const std::map<int32_t, uint32_t>& results) {
  std::vector<bool> spilled(plans.size());
  for (size_t s = 0; s < plans.size(); ++s) {
    if (!plans[s].model_scope && !plans[s].measured) continue;
    spilled[s] = s + 1 < plans.size();
    for (const auto& [result, by] : results)
      if (Uses(plans[s], result)) spilled[by] = true;
  }
  return spilled;
}

// Of a stage that has a plan of its own.
void CountRounds(const Plan& plan, PlannedStage* stage) {
  for (const Coefficients& c : plan.coefficients)
    for (const PlannedTensor& tensor : plan.tensors) {
      if (tensor.action != TensorAction::kMerge || &plan.coefficients[tensor.coefficients] != &c) continue;
      const auto merger = plan.method->make(*plan.method, c, tensor.Facts(), Approach::kPlain);
      stage->rounds = std::max(stage->rounds, static_cast<uint32_t>(merger->statistics_rounds()) + plan.measured);
      break;
    }
}

}  // namespace

void PlanStages(Plan* plan, Recipe recipe, const PlanOptions& options) {
  std::vector<Plan> plans;
  std::vector<PlannedStage> stages;
  std::map<int32_t, uint32_t> results;
  std::vector<std::string> warnings;
  for (size_t s = 0; s <= recipe.stages.size(); ++s) {
    const bool last = s == recipe.stages.size();
    Recipe own = last ? recipe : recipe.stages[s];
    own.warnings.clear();
    CheckStage(own, last);
    if (!last && !own.dtype && !own.out_dtype) own.out_dtype = DType::kF32;
    Plan next;
    next.memory.budget = plan->memory.budget;
    if (s > 0) next.checkpoints = std::move(plans.back().checkpoints), next.reading = std::move(plans.back().reading);
    PlanOneMerge(&next, own, options);
    stages.push_back(StageOf(next, last ? recipe : recipe.stages[s]));
    for (const std::string& warning : next.warnings) warnings.push_back(OfStage(stages[s], warning));
    for (RecipeWarning& warning : next.recipe.warnings) recipe.warnings.push_back(std::move(warning));
    if (!last) {
      next.checkpoints.push_back(ResultOf(next, recipe.stages[s].name, s));
      next.reading.push_back({ReadBackend::kMapped, "made on the way"});
      results.emplace(static_cast<int32_t>(next.checkpoints.size() - 1), static_cast<uint32_t>(s));
    }
    plans.push_back(std::move(next));
  }
  const std::vector<bool> spilled = ChooseSpills(plans, results);
  std::map<int32_t, uint32_t> on_the_way;
  std::erase_if(results, [&](const auto& result) {
    if (!spilled[result.second]) on_the_way.insert(result);
    return !spilled[result.second];
  });
  std::vector<SpilledStage> spills;
  for (uint32_t s = 0; s < plans.size(); ++s) {
    if (!spilled[s] && s + 1 < plans.size()) continue;
    const bool chained = std::any_of(on_the_way.begin(), on_the_way.end(),
                                     [&](const auto& result) { return Uses(plans[s], result.first); });
    if (chained) ChainPlanner(&plans, s, on_the_way).Run(&stages);
    else CountRounds(plans[s], &stages[s]);
    if (s + 1 < plans.size()) spills.push_back({.stage = s});
  }
  for (SpilledStage& spill : spills) {
    spill.plan = std::make_shared<Plan>(std::move(plans[spill.stage]));
    spill.plan->stages = stages;
    for (const auto& [result, by] : results)
      if (by == spill.stage) spill.checkpoint = result;
  }
  const uint64_t budget = plan->memory.budget;
  *plan = std::move(plans.back());
  plan->memory.budget = budget;
  plan->recipe = std::move(recipe);
  plan->warnings = std::move(warnings);
  plan->stages = std::move(stages);
  plan->spills = std::move(spills);
  for (const auto& [result, by] : on_the_way) {   // nothing reads it any more
    Checkpoint& checkpoint = plan->checkpoints[static_cast<size_t>(result)];
    checkpoint.shards.clear();
    checkpoint.tensors = {}, checkpoint.by_name = {};
  }
}

// One file each, whose every byte has its place.
void LayOutSpills(Plan* plan, const PlanOptions& options) {
  for (const SpilledStage& spill : plan->spills) {
    PlanOptions own = options;
    own.single_file = own.pipe = false, own.shard_bytes = UINT64_MAX;
    PlanLayout(spill.plan.get(), own);
    Checkpoint& result = plan->checkpoints[static_cast<size_t>(spill.checkpoint)];
    for (size_t t = 0; t < result.tensors.size(); ++t) result.tensors[t].info.offset = spill.plan->tensors[t].offset;
    Shard& shard = result.shards.front();
    shard.name = spill.plan->shards.front().name;
    shard.identity.size = spill.plan->shards.front().bytes;
    shard.data_offset = spill.plan->shards.front().header.size();
  }
}

void PlanSpills(Plan* plan, const PlanOptions& options) {
  if (plan->spills.empty()) return;
  uint64_t all = PlanBytes(*plan);
  for (const SpilledStage& spill : plan->spills) {
    PlanScopes(spill.plan.get());
    all += PlanBytes(*spill.plan);
  }
  for (SpilledStage& spill : plan->spills) {
    spill.plan->memory.budget = plan->memory.budget;
    spill.plan->memory.other_plans = all;
    const LentCheckpoints lent(plan, spill.plan.get());
    PlanMemory(spill.plan.get(), options);
    spill.fingerprint = PlanFingerprint(*spill.plan);
  }
  plan->memory.other_plans = all;
}

LentCheckpoints::LentCheckpoints(Plan* from, Plan* to) : from_(*from), to_(*to) {
  std::swap(from_.checkpoints, to_.checkpoints), std::swap(from_.reading, to_.reading);
}

LentCheckpoints::~LentCheckpoints() {
  std::swap(from_.checkpoints, to_.checkpoints), std::swap(from_.reading, to_.reading);
}

std::unique_ptr<Merger> MakeChainMerger(const Plan& plan, const PlannedScope& scope) {
  const PlannedTensor& tensor = plan.tensors[scope.tensors.front()];
  const ChainTree& tree = plan.chain.TreeOf(plan.coefficients[tensor.coefficients]);
  std::vector<ChainMember> members;
  for (const ChainStep& step : tree.steps) {
    const PlannedStage& stage = plan.stages[step.stage];
    ChainMember member{.name = stage.name,
                       .merger = stage.method->make(*stage.method, plan.chain.coefficients[step.coefficients],
                                                    step.tensor, Approach::kPlain),
                       .models = step.models.size()};
    const auto use = [&](const ChainInput& input) {
      if (input.kind == ChainInput::Kind::kStep) member.used |= members[input.index].used | uint64_t{1} << input.index;
    };
    use(step.base);
    std::for_each(step.models.begin(), step.models.end(), use);
    members.push_back(std::move(member));
  }
  return NewChainMerger(plan.chain, std::move(members), {tensor.coefficients}, tensor.models.size());
}

}  // namespace braid
