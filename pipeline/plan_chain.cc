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

bool FindsOfWhole(const std::vector<StageFinds>& finds, const std::vector<uint32_t>& run) {
  return run.size() > 1 &&
         std::any_of(run.begin(), run.end(), [&](uint32_t s) { return finds[s].of == StageFinds::Of::kModels; });
}

uint32_t RoundsOf(const Plan& plan, const Coefficients& c, const TensorFacts& facts) {
  return static_cast<uint32_t>(plan.method->make(*plan.method, c, facts, Approach::kPlain)->statistics_rounds());
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
  ChainPlanner(std::vector<Plan>* plans, const std::vector<StageFinds>& finds, uint32_t last,
               const StageResults& on_the_way)
      : plans_(*plans), number_(last), last_((*plans)[last]), run_(StagesOfRun(*plans, last, on_the_way)),
        tensors_(*plans, on_the_way), phases_(PhasesOf(*plans, finds, run_, on_the_way)) {}

  void Run(std::vector<PlannedStage>* stages) {
    for (const Plan& plan : plans_) {
      first_coefficients_.push_back(chain_.coefficients.size());
      chain_.coefficients.insert(chain_.coefficients.end(), plan.coefficients.begin(), plan.coefficients.end());
      most_models_ = std::max(most_models_, plan.most_models);
    }
    MakeWholeMergers();
    for (PlannedTensor& tensor : last_.tensors) ResolveTensor(&tensor);
    last_.coefficients.clear();
    for (size_t t = 0; t < chain_.trees.size(); ++t) last_.coefficients.push_back(chain_.CoefficientsOfTree(t));
    for (const auto& [step, rounds] : rounds_)
      (*stages)[step.first].rounds = std::max((*stages)[step.first].rounds, rounds);
    last_.model_scope = phases_.whole.back();
    chain_.whole = phases_.whole;
    if (std::count(chain_.whole.begin(), chain_.whole.end(), true) > 0) OrderTensors();
    last_.chain = std::move(chain_);
    last_.most_models = most_models_;
    last_.relative = false;
  }

 private:
  using Made = StageTensors::Made;
  // Of a merger's making, what its statistics may depend on.
  using Facts = std::tuple<uint32_t, uint64_t, uint64_t, uint64_t>;
  static constexpr uint32_t kNever = UINT32_MAX;   // a phase

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
      chain_.mergers.push_back(
          {.stage = s, .phase = phases_.phase[s], .coefficients = coefficients, .scope = scope});
    }
  }

  // Claims lie by source: all have as many.
  void OrderTensors() {
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
    if (phases_.shared[step.stage]) step.merger = MergerOf(step);
    else CountRounds(step);
    building->tree.steps.push_back(std::move(step));
    building->steps.emplace(made, index);
    return index;
  }

  // Of all tensors, or one that finds nothing out and is for all that are alike, or the tensor's own.
  uint32_t MergerOf(const ChainStep& step) {
    if (const auto its = whole_mergers_.find(step.stage); its != whole_mergers_.end()) return its->second;
    const Facts facts{step.coefficients, step.tensor.elements, step.tensor.row, step.tensor.slice};
    if (const auto known = alike_.find(facts); known != alike_.end()) return known->second;
    const auto merger = static_cast<uint32_t>(chain_.mergers.size());
    const auto [rounds, is_new] = own_rounds_.try_emplace(facts, 0);
    if (is_new) rounds->second = RoundsOf(plans_[step.stage], chain_.coefficients[step.coefficients], step.tensor);
    chain_.mergers.push_back({.stage = step.stage, .phase = rounds->second == 0 ? kNever : phases_.phase[step.stage],
                              .coefficients = step.coefficients, .scope = step.tensor});
    if (rounds->second == 0) alike_.emplace(facts, merger);
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
  const RunPhases phases_;
  Chain chain_;
  std::vector<size_t> first_coefficients_;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> rounds_;   // by stage and coefficients
  std::map<uint32_t, uint32_t> whole_mergers_;                 // by stage
  std::map<Facts, uint32_t> alike_, own_rounds_;               // mergers without rounds; rounds
  size_t most_models_ = 0;
};

}  // namespace

std::vector<uint32_t> StagesOfRun(const std::vector<Plan>& plans, uint32_t last, const StageResults& on_the_way) {
  std::vector<bool> in_run(plans.size());
  in_run[last] = true;
  for (uint32_t s = last + 1; s-- > 0;)   // a stage uses earlier ones only
    for (const auto& [result, by] : on_the_way)
      if (in_run[s] && UsesResult(plans[s], result)) in_run[by] = true;
  std::vector<uint32_t> run;
  for (uint32_t s = 0; s < plans.size(); ++s)
    if (in_run[s]) run.push_back(s);
  return run;
}

std::string WhyNotChained(const std::vector<Plan>& plans, const std::vector<StageFinds>& finds, uint32_t last,
                          const StageResults& on_the_way) {
  const std::vector<uint32_t> run = StagesOfRun(plans, last, on_the_way);
  if (!FindsOfWhole(finds, run)) return "";
  const auto name_of = [&](uint32_t s) {
    const std::string& name = plans[s].recipe.name;
    return name.empty() ? "the last stage" : fmt::format("the stage '{}'", Printable(name));
  };
  const RunPhases phases = PhasesOf(plans, finds, run, on_the_way);
  std::unordered_map<std::string_view, uint64_t> units;   // by tensor
  uint64_t kept_bytes = 0;
  size_t whole = 0;
  for (const uint32_t s : run) {
    if (plans[s].measured) return name_of(s) + " is measured before it is merged";
    whole += plans[s].model_scope;
    if (phases.phase[s] < phases.last()) kept_bytes += finds[s].kept_bytes;
    for (const PlannedTensor& tensor : plans[s].tensors) {
      uint64_t& unit = units.try_emplace(tensor.name, kReductionBlock).first->second;
      unit = std::lcm(unit, std::max<uint64_t>(plans[s].TileUnit(tensor), 1));
      if (unit > kMostUnit && tensor.elements > kMostUnit)
        return fmt::format("the rows or columns of '{}' are too long", Printable(tensor.name));
    }
  }
  if (kept_bytes > plans[last].memory.budget / 4)
    return fmt::format("what is found of single tensors before would take {} of memory", SizeText(kept_bytes));
  if (whole > ChainTree::kMostSteps) return "there are too many stages";
  const StageTensors tensors(plans, on_the_way);
  std::vector<size_t> seen(plans.size());
  for (const PlannedTensor& tensor : plans[last].tensors)
    for (const StageTensors::Made& made : tensors.BehindOf(tensor)) {
      if (finds[made.first].of != StageFinds::Of::kModels) continue;
      ++seen[made.first];
      if (tensors.Of(made).name != tensor.name)
        return fmt::format("'{}' of {} comes out under another name", Printable(tensors.Of(made).name),
                           name_of(made.first));
    }
  for (const uint32_t s : run)
    if (s != last && finds[s].of == StageFinds::Of::kModels && seen[s] != MergedByName(plans[s]).size())
      return fmt::format("not every tensor that {} merges comes out merged", name_of(s));
  return "";
}

void PlanChain(std::vector<Plan>* plans, const std::vector<StageFinds>& finds, uint32_t last,
               const StageResults& on_the_way, std::vector<PlannedStage>* stages) {
  ChainPlanner(plans, finds, last, on_the_way).Run(stages);
}

}  // namespace braid
