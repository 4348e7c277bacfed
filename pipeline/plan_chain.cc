#include "pipeline/plan_chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "io/error.h"
#include "pipeline/budget.h"
#include "pipeline/plan_internal.h"

namespace braid {
namespace {

// Rows of one stage and reduction blocks of another must meet within so many elements: tiles are multiples of that, and
// a worker holds so many of each result.
constexpr uint64_t kMostUnit = uint64_t{1} << 20;

bool Uses(const Plan& plan, int32_t checkpoint) {
  return plan.base == checkpoint ||
         std::count(plan.models.begin(), plan.models.end(), static_cast<uint32_t>(checkpoint)) > 0;
}

bool IsWholeRun(const std::vector<Plan>& plans, const std::vector<uint32_t>& run) {
  return run.size() > 1 && std::any_of(run.begin(), run.end(), [&](uint32_t s) { return IsWhole(plans[s]); });
}

// Its merged tensors in the order that whole models are gone through.
std::vector<uint32_t> MergedByName(const Plan& plan) {
  std::vector<uint32_t> merged;
  for (uint32_t t = 0; t < plan.tensors.size(); ++t)
    if (plan.tensors[t].action == TensorAction::kMerge) merged.push_back(t);
  std::sort(merged.begin(), merged.end(),
            [&](uint32_t a, uint32_t b) { return plan.tensors[a].name < plan.tensors[b].name; });
  return merged;
}

uint32_t RoundsOf(const Plan& plan, const Coefficients& c, const TensorFacts& facts) {
  return static_cast<uint32_t>(plan.method->make(*plan.method, c, facts, Approach::kPlain)->statistics_rounds());
}

// Of a merger's making, what its statistics may depend on.
using Facts = std::tuple<uint32_t, uint64_t, uint64_t, uint64_t>;
Facts FactsOf(uint32_t coefficients, const TensorFacts& tensor) {
  return {coefficients, tensor.elements, tensor.row, tensor.slice};
}

// What a stage finds out of single tensors.
struct OfTensors {
  uint64_t sums = 0;   // the most of a round
  bool more = false;
};
OfTensors FindsOut(const Plan& plan) {
  std::set<Facts> seen;
  OfTensors found;
  for (const PlannedTensor& tensor : plan.tensors) {
    if (tensor.action != TensorAction::kMerge) continue;
    if (!seen.insert(FactsOf(tensor.coefficients, tensor.Facts())).second) continue;
    const auto merger = plan.method->make(*plan.method, plan.coefficients[tensor.coefficients], tensor.Facts(),
                                          Approach::kPlain);
    for (size_t r = 0; r < merger->statistics_rounds(); ++r) {
      const RoundSpec spec = merger->round(r);
      found.more |= spec.accumulator_bytes > 0 || spec.ordered;
      found.sums = std::max<uint64_t>(found.sums, spec.sums);
    }
  }
  return found;
}

// Tensors of stages, and where they come from.
class StageTensors {
 public:
  // A tensor of a stage, by the stage's number and its index there.
  using Made = std::pair<uint32_t, uint32_t>;

  StageTensors(const std::vector<Plan>& plans, const StageResults& results) : plans_(plans), results_(results) {}

  const PlannedTensor& Of(Made made) const { return plans_[made.first].tensors[made.second]; }
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
      const PlannedTensor& tensor = Of(*made);
      if (tensor.action != TensorAction::kKeep && tensor.action != TensorAction::kExclude) return source;
      source = tensor.base;
    }
  }
  // All that are merged on the way to one.
  std::set<Made> BehindOf(const PlannedTensor& tensor) const {
    std::set<Made> made;
    if (tensor.action != TensorAction::kCopy) AddInputs(tensor, &made);
    return made;
  }

 private:
  void AddInputs(const PlannedTensor& tensor, std::set<Made>* all) const {
    for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
      const std::optional<Made> made = MadeBy(Follow(tensor.SourceAt(slot)));
      if (made && Of(*made).action == TensorAction::kMerge && all->insert(*made).second) AddInputs(Of(*made), all);
    }
  }

  const std::vector<Plan>& plans_;
  const StageResults& results_;
};

// Resolves the tensors of one plan, the last of a run.
class ChainPlanner {
 public:
  ChainPlanner(std::vector<Plan>* plans, uint32_t last, const StageResults& on_the_way)
      : plans_(*plans), number_(last), last_((*plans)[last]), run_(StagesOfRun(*plans, last, on_the_way)),
        tensors_(*plans, on_the_way), whole_(IsWholeRun(*plans, run_)) {}

  void Run(std::vector<PlannedStage>* stages) {
    for (const Plan& plan : plans_) {
      first_coefficients_.push_back(chain_.coefficients.size());
      chain_.coefficients.insert(chain_.coefficients.end(), plan.coefficients.begin(), plan.coefficients.end());
      most_models_ = std::max(most_models_, plan.most_models);
    }
    if (whole_) MakeWholeMergers();
    for (PlannedTensor& tensor : last_.tensors) ResolveTensor(&tensor);
    last_.coefficients.clear();
    for (size_t t = 0; t < chain_.trees.size(); ++t) last_.coefficients.push_back(chain_.CoefficientsOfTree(t));
    for (const auto& [step, rounds] : rounds_)
      (*stages)[step.first].rounds = std::max((*stages)[step.first].rounds, rounds);
    last_.model_scope = whole_;
    if (whole_) MakeOneScope();
    last_.chain = std::move(chain_);
    last_.most_models = most_models_;
    last_.relative = false;
  }

 private:
  using Made = StageTensors::Made;

  // Of stages that find something out of all their tensors at once.
  void MakeWholeMergers() {
    for (const uint32_t s : run_) {
      const Plan& plan = plans_[s];
      const std::vector<uint32_t> merged = MergedByName(plan);
      if (!plan.model_scope || merged.empty()) continue;
      const auto coefficients = static_cast<uint32_t>(chain_.coefficients.size());
      chain_.coefficients.push_back(SharedCoefficients(plan, merged));
      const TensorFacts scope{.elements = ElementsOfModel(plan)};
      rounds_[{s, coefficients}] = RoundsOf(plan, chain_.coefficients.back(), scope);
      whole_mergers_[s] = static_cast<uint32_t>(chain_.mergers.size());
      chain_.mergers.push_back({.stage = s, .coefficients = coefficients, .scope = scope});
    }
  }

  // Claims lie by source: all have as many.
  void MakeOneScope() {
    const std::vector<uint32_t> merged = MergedByName(last_);
    size_t most = 0;
    for (const uint32_t t : merged) most = std::max(most, last_.tensors[t].models.size());
    for (uint32_t i = 0; i < merged.size(); ++i) {
      last_.tensors[merged[i]].models.resize(most);
      chain_.trees[last_.tensors[merged[i]].coefficients].order = i;
    }
  }

  void ResolveTensor(PlannedTensor* tensor) {
    if (tensor->action == TensorAction::kMerge) return PlanTree(tensor, [&](Building* tree) {
      AddStep({number_, static_cast<uint32_t>(tensor - last_.tensors.data())}, tree);
    });
    if (tensor->action == TensorAction::kCopy) return Flatten(tensor);
    tensor->base = tensors_.Follow(tensor->base);
    const std::optional<Made> made = tensors_.MadeBy(tensor->base);
    if (!made) return;
    if (tensors_.Of(*made).action == TensorAction::kCopy) return Flatten(tensor);
    tensor->action = TensorAction::kMerge;   // as it comes out of the stage
    PlanTree(tensor, [&](Building* tree) { AddStep(*made, tree); });
  }

  // Copied from files that must be equal: those of every stage on the way.
  void Flatten(PlannedTensor* tensor) {
    std::vector<TensorSource> files;
    std::set<Made> followed;
    std::vector<TensorSource> open = tensor->models;
    open.insert(open.begin(), tensor->base);
    while (!open.empty()) {
      const TensorSource source = tensors_.Follow(open.front());
      open.erase(open.begin());
      if (!source.present()) continue;
      if (const std::optional<Made> made = tensors_.MadeBy(source)) {
        if (!followed.insert(*made).second) continue;
        const PlannedTensor& through = tensors_.Of(*made);
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
    const TensorSource source = tensors_.Follow(from);
    const std::optional<Made> made = tensors_.MadeBy(source);
    if (made) return {ChainInput::Kind::kStep, AddStep(*made, building)};
    const size_t index = IndexOf(building->files, source);
    if (index == building->files.size()) building->files.push_back(source);
    return {ChainInput::Kind::kSource, static_cast<uint32_t>(index)};
  }

  uint32_t AddStep(Made made, Building* building) {
    if (const auto known = building->steps.find(made); known != building->steps.end()) return known->second;
    const PlannedTensor tensor = tensors_.Of(made);   // a copy: that of the last stage is being changed
    ChainStep step{.stage = made.first,
                   .coefficients = static_cast<uint32_t>(first_coefficients_[made.first]) + tensor.coefficients,
                   .tensor = tensor.Facts(), .type = tensor.type};
    step.base = InputOf(tensor.base, building);
    for (const TensorSource& model : tensor.models) step.models.push_back(InputOf(model, building));
    const auto index = static_cast<uint32_t>(building->tree.steps.size());
    if (index == ChainTree::kMostSteps)
      throw Error(ErrorCode::kIncompatible, fmt::format("more than {} merges make it", ChainTree::kMostSteps))
          .Tensor(tensor.name)
          .Hint("merge in two runs, with dtype = \"float32\" in the first recipe");
    step.merger = whole_ ? MergerOf(step) : index;
    if (!whole_) CountRounds(step);
    building->tree.steps.push_back(std::move(step));
    building->steps.emplace(made, index);
    return index;
  }

  // Of all tensors, or one that finds nothing out and is for all that are alike, or the tensor's own.
  uint32_t MergerOf(const ChainStep& step) {
    if (const auto its = whole_mergers_.find(step.stage); its != whole_mergers_.end()) return its->second;
    const Facts facts = FactsOf(step.coefficients, step.tensor);
    if (const auto known = shared_mergers_.find(facts); known != shared_mergers_.end()) return known->second;
    const auto merger = static_cast<uint32_t>(chain_.mergers.size());
    chain_.mergers.push_back(
        {.stage = step.stage, .whole = false, .coefficients = step.coefficients, .scope = step.tensor});
    const auto [rounds, is_new] = own_rounds_.try_emplace(facts, 0);
    if (is_new) rounds->second = RoundsOf(plans_[step.stage], chain_.coefficients[step.coefficients], step.tensor);
    if (rounds->second == 0) shared_mergers_.emplace(facts, merger);
    uint32_t& most = rounds_[{step.stage, step.coefficients}];
    most = std::max(most, rounds->second);
    return merger;
  }

  void CountRounds(const ChainStep& step) {
    const auto [rounds, is_new] = rounds_.try_emplace({step.stage, step.coefficients}, 0);
    if (is_new) rounds->second = RoundsOf(plans_[step.stage], chain_.coefficients[step.coefficients], step.tensor);
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
  const uint32_t number_;
  Plan& last_;
  const std::vector<uint32_t> run_;
  const StageTensors tensors_;
  const bool whole_;   // all tensors are one scope
  Chain chain_;
  std::vector<size_t> first_coefficients_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> rounds_;   // by stage and coefficients
  std::map<uint32_t, uint32_t> whole_mergers_;                 // by stage
  std::map<Facts, uint32_t> shared_mergers_, own_rounds_;
  size_t most_models_ = 0;
};

}  // namespace

bool IsWhole(const Plan& plan) { return plan.model_scope || plan.measured; }

std::vector<uint32_t> StagesOfRun(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way) {
  std::vector<bool> in_run(plans.size());
  in_run[last] = true;
  for (uint32_t s = last + 1; s-- > 0;)   // a stage uses earlier ones only
    for (const auto& [result, by] : on_the_way)
      if (in_run[s] && Uses(plans[s], result)) in_run[by] = true;
  std::vector<uint32_t> run;
  for (uint32_t s = 0; s < plans.size(); ++s)
    if (in_run[s]) run.push_back(s);
  return run;
}

std::string WhyNotChained(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way) {
  const std::vector<uint32_t> run = StagesOfRun(plans, last, on_the_way);
  if (!IsWholeRun(plans, run)) return "";
  const auto name_of = [&](uint32_t s) {
    const std::string& name = plans[s].recipe.name;
    return name.empty() ? "the last stage" : fmt::format("the stage '{}'", Printable(name));
  };
  std::unordered_map<std::string_view, uint64_t> units, blocks;   // by tensor
  uint64_t most_sums = 0;
  std::vector<bool> finds_out(plans.size());
  for (const uint32_t s : run) {
    const OfTensors of_tensors = plans[s].model_scope ? OfTensors() : FindsOut(plans[s]);
    finds_out[s] = plans[s].model_scope || of_tensors.sums > 0;
    most_sums = std::max(most_sums, of_tensors.sums);
    if (plans[s].measured) return name_of(s) + " is measured before it is merged";
    if (of_tensors.more) return name_of(s) + " finds thresholds of each tensor";
    for (const PlannedTensor& tensor : plans[s].tensors) {
      uint64_t& its_blocks = blocks[tensor.name];
      its_blocks = std::max(its_blocks, plans[s].SumBlocks(tensor));
      uint64_t& unit = units.try_emplace(tensor.name, kReductionBlock).first->second;
      unit = std::lcm(unit, std::max<uint64_t>(plans[s].TileUnit(tensor), 1));
      if (unit > kMostUnit && tensor.elements > kMostUnit)
        return fmt::format("the rows or columns of '{}' are too long", Printable(tensor.name));
    }
  }
  uint64_t sums_bytes = 0;
  for (const auto& [name, its] : blocks) sums_bytes += its * most_sums * sizeof(double);
  if (sums_bytes > plans[last].memory.budget / 4)
    return fmt::format("the sums of all tensors would take {} of memory", SizeText(sums_bytes));
  const auto counted = std::count_if(run.begin(), run.end(), [&](uint32_t s) { return plans[s].model_scope; });
  if (static_cast<size_t>(counted) > ChainTree::kMostSteps) return "there are too many stages";
  const StageTensors tensors(plans, on_the_way);
  std::vector<size_t> seen(plans.size());
  for (const PlannedTensor& tensor : plans[last].tensors)
    for (const StageTensors::Made& made : tensors.BehindOf(tensor)) {
      if (!finds_out[made.first]) continue;
      ++seen[made.first];
      if (tensors.Of(made).name != tensor.name)
        return fmt::format("'{}' of {} comes out under another name", Printable(tensors.Of(made).name),
                           name_of(made.first));
    }
  for (const uint32_t s : run)
    if (s != last && plans[s].model_scope && seen[s] != MergedByName(plans[s]).size())
      return fmt::format("not every tensor that {} merges comes out merged", name_of(s));
  return "";
}

void PlanChain(std::vector<Plan>* plans, uint32_t last, const StageResults& on_the_way,
               std::vector<PlannedStage>* stages) {
  ChainPlanner(plans, last, on_the_way).Run(stages);
}

namespace {

// The whole members with statistics that a step's lanes depend on.
uint64_t UsedBy(const ChainStep& step, const ChainTree& tree, const std::vector<uint64_t>& used_by_steps,
                const std::vector<ChainMember>& members) {
  uint64_t used = 0;
  const auto add = [&](const ChainInput& input) {
    if (input.kind != ChainInput::Kind::kStep) return;
    const uint32_t member = tree.steps[input.index].merger;
    used |= used_by_steps[input.index];
    if (members[member].whole && members[member].merger->statistics_rounds() > 0) used |= uint64_t{1} << member;
  };
  add(step.base);
  std::for_each(step.models.begin(), step.models.end(), add);
  return used;
}

}  // namespace

// What a stage finds of files alone may be found from a sample, as in a merge of its own.
std::unique_ptr<Merger> MakeChainMerger(const Plan& plan, const PlannedScope& scope, Approach approach) {
  std::vector<uint32_t> trees;
  for (const uint32_t t : scope.tensors) trees.push_back(plan.tensors[t].coefficients);
  std::vector<ChainMaking> makings = plan.chain.mergers;
  if (makings.empty())
    for (const ChainStep& step : plan.chain.trees[trees.front()].steps)
      makings.push_back({.stage = step.stage, .coefficients = step.coefficients, .scope = step.tensor});
  std::vector<bool> reads_steps(makings.size());
  for (const uint32_t t : trees)
    for (const ChainStep& step : plan.chain.trees[t].steps) {
      const auto is_step = [](const ChainInput& input) { return input.kind == ChainInput::Kind::kStep; };
      if (is_step(step.base) || std::any_of(step.models.begin(), step.models.end(), is_step))
        reads_steps[step.merger] = true;
    }
  std::vector<ChainMember> members;
  for (size_t k = 0; k < makings.size(); ++k) {
    const PlannedStage& stage = plan.stages[makings[k].stage];
    const bool samples = approach == Approach::kSampled && makings[k].whole && !reads_steps[k];
    members.push_back({.name = makings[k].stage + 1 == plan.stages.size() ? std::string_view() : stage.name,
                       .merger = stage.method->make(*stage.method, plan.chain.coefficients[makings[k].coefficients],
                                                    makings[k].scope, samples ? Approach::kSampled : Approach::kPlain),
                       .models = 0,
                       .group = plan.chain.mergers.empty() ? static_cast<uint32_t>(k) : makings[k].stage,
                       .whole = makings[k].whole, .used = 0});
  }
  std::vector<uint64_t> used;
  for (const uint32_t t : trees) {
    const ChainTree& tree = plan.chain.trees[t];
    used.clear();
    for (const ChainStep& step : tree.steps) {
      ChainMember& member = members[step.merger];
      member.models = step.models.size();
      used.push_back(UsedBy(step, tree, used, members));
      member.used |= used.back();
    }
  }
  return NewChainMerger(plan.chain, std::move(members), trees, plan.tensors[scope.tensors.front()].models.size());
}

}  // namespace braid
