#include "pipeline/plan_phases.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "pipeline/plan_internal.h"

namespace braid {
namespace {

StageFinds FindsOf(const Plan& plan) {
  const std::vector<uint32_t> merged = MergedByName(plan);
  StageFinds finds;
  const auto add = [&](const Merger& merger) {
    const size_t rounds = merger.statistics_rounds();
    if (rounds == 0) return uint64_t{0};
    uint64_t kept = 0;
    for (size_t r = 0; r <= rounds; ++r) kept = std::max<uint64_t>(kept, merger.round(r).kept_bytes);
    finds.ordered |= merger.round(rounds).ordered;
    return kept + Chain::MakingBytes(plan.models.size());
  };
  if (merged.empty()) return finds;
  if (plan.model_scope) {
    const auto merger = plan.method->make(*plan.method, SharedCoefficients(plan, merged),
                                          {.elements = ElementsOfModel(plan)}, Approach::kPlain);
    finds.kept_bytes = add(*merger);
  } else {
    std::map<std::tuple<uint32_t, uint64_t, uint64_t, uint64_t>, uint64_t> seen;   // what one merger keeps
    for (const uint32_t t : merged) {
      const TensorFacts facts = plan.tensors[t].Facts();
      const uint32_t c = plan.tensors[t].coefficients;
      const auto [kept, is_new] = seen.try_emplace({c, facts.elements, facts.row, facts.slice}, 0);
      if (is_new) kept->second = add(*plan.method->make(*plan.method, plan.coefficients[c], facts, Approach::kPlain));
      finds.kept_bytes += kept->second;
    }
  }
  if (plan.measured || (plan.model_scope && finds.kept_bytes > 0)) finds.of = StageFinds::Of::kModels;
  else if (finds.kept_bytes > 0) finds.of = StageFinds::Of::kTensors;
  return finds;
}

}  // namespace

std::vector<StageFinds> FindsOf(const std::vector<Plan>& plans) {
  std::vector<StageFinds> finds;
  for (const Plan& plan : plans) finds.push_back(FindsOf(plan));
  return finds;
}

bool UsesResult(const Plan& plan, int32_t checkpoint) {
  return plan.base == checkpoint ||
         std::count(plan.models.begin(), plan.models.end(), static_cast<uint32_t>(checkpoint)) > 0;
}

// Single tensors have the even phases and whole models the odd ones, until those are left out in which nothing is
// found.
RunPhases PhasesOf(const std::vector<Plan>& plans, const std::vector<StageFinds>& finds,
                   const std::vector<uint32_t>& run, const StageResults& on_the_way) {
  using Of = StageFinds::Of;
  std::vector<bool> before_whole(plans.size());
  std::vector<std::vector<uint32_t>> reads(plans.size());
  for (size_t i = run.size(); i-- > 0;) {
    const uint32_t s = run[i];
    for (const auto& [result, by] : on_the_way)
      if (UsesResult(plans[s], result)) reads[s].push_back(by);
    for (const uint32_t by : reads[s])
      if (finds[s].of == Of::kModels || before_whole[s]) before_whole[by] = true;
  }
  RunPhases phases{.whole = {}, .phase = std::vector<uint32_t>(plans.size(), RunPhases::kNone),
                   .shared = std::vector<bool>(plans.size())};
  std::vector<uint32_t> known(plans.size());   // not before that phase
  uint32_t last = 0;
  for (const uint32_t s : run) {
    for (const uint32_t by : reads[s]) known[s] = std::max(known[s], known[by]);
    const bool whole = finds[s].of == Of::kModels;
    if (whole || (finds[s].of == Of::kTensors && before_whole[s])) {
      known[s] += (known[s] % 2 == 1) != whole;
      phases.phase[s] = known[s];
    }
    if (whole) last = std::max(last, known[s]);
  }
  for (const uint32_t s : run)
    if (finds[s].of == Of::kTensors && !before_whole[s]) last += last % 2;
  std::set<uint32_t> used = {last};
  for (const uint32_t s : run) {
    if (finds[s].of == Of::kTensors && !before_whole[s]) phases.phase[s] = last;
    if (phases.phase[s] != RunPhases::kNone) used.insert(phases.phase[s]);
    phases.shared[s] = last % 2 == 1 || before_whole[s] || plans[s].model_scope;
  }
  for (const uint32_t phase : used) phases.whole.push_back(phase % 2 == 1);
  for (uint32_t& phase : phases.phase)
    if (phase != RunPhases::kNone)
      phase = static_cast<uint32_t>(std::distance(used.begin(), used.find(phase)));
  return phases;
}

void PlanFronts(Plan* plan) {
  const Chain& chain = plan->chain;
  const std::vector<uint32_t> merged = MergedByName(*plan);
  for (uint32_t phase = 0; phase + 1 < chain.whole.size(); ++phase) {
    PlannedScope whole{.tensors = {}, .phase = phase};
    for (const uint32_t t : merged) {
      const ChainTree& tree = chain.trees[plan->tensors[t].coefficients];
      const auto has_rounds = [&](const ChainStep& step) {
        return step.merger != ChainStep::kOwn && chain.mergers[step.merger].phase == phase;
      };
      if (std::none_of(tree.steps.begin(), tree.steps.end(), has_rounds)) continue;
      whole.tensors.push_back(t);
      whole.elements += plan->tensors[t].elements;
      if (chain.whole[phase]) continue;
      plan->fronts.push_back(std::exchange(whole, {.tensors = {}, .phase = phase}));
    }
    if (!whole.tensors.empty()) plan->fronts.push_back(std::move(whole));
  }
}

namespace {

bool ReadsSteps(const ChainStep& step) {
  const auto is_step = [](const ChainInput& input) { return input.kind == ChainInput::Kind::kStep; };
  return is_step(step.base) || std::any_of(step.models.begin(), step.models.end(), is_step);
}

// Makes the members of one scope's merger.
class ChainMembers {
 public:
  ChainMembers(const Plan& plan, const PlannedScope& scope, Approach approach, const std::vector<ChainFinding>* found)
      : plan_(plan), chain_(plan.chain), phase_(scope.phase), whole_(chain_.whole[phase_]), approach_(approach),
        found_(found) {
    for (const uint32_t t : scope.tensors) trees_.push_back(plan.tensors[t].coefficients);
  }

  std::vector<ChainMember> Make() {
    FindReaders();
    if (whole_) {
      for (uint32_t m = 0; m < chain_.mergers.size(); ++m) Add(m, chain_.mergers[m]);
    } else {
      for (const ChainStep& step : chain_.trees[trees_.front()].steps) {
        if (step.merger != ChainStep::kOwn) Add(step.merger, chain_.mergers[step.merger]);
        else Add(ChainStep::kOwn, {.stage = step.stage, .phase = static_cast<uint32_t>(chain_.whole.size() - 1),
                                   .coefficients = step.coefficients, .scope = step.tensor});
      }
    }
    for (const uint32_t t : trees_) FindUses(chain_.trees[t]);
    return std::move(members_);
  }
  const std::vector<uint32_t>& trees() const { return trees_; }

 private:
  // Those of later phases that have the last one's tensors to themselves are not among the members.
  bool IsMember(const ChainStep& step) const { return !whole_ || step.merger != ChainStep::kOwn; }
  size_t IndexOf(const ChainTree& tree, size_t step) const { return whole_ ? tree.steps[step].merger : step; }

  void FindReaders() {
    reads_steps_.resize(whole_ ? chain_.mergers.size() : chain_.trees[trees_.front()].steps.size());
    for (const uint32_t t : trees_) {
      const ChainTree& tree = chain_.trees[t];
      for (size_t s = 0; s < tree.steps.size(); ++s)
        if (IsMember(tree.steps[s]) && ReadsSteps(tree.steps[s])) reads_steps_[IndexOf(tree, s)] = true;
    }
  }

  // What a stage finds of files alone may be found from a sample, as in a merge of its own.
  void Add(uint32_t number, const ChainMaking& making) {
    const PlannedStage& stage = plan_.stages[making.stage];
    ChainMember member{.name = making.stage + 1 == plan_.stages.size() ? std::string_view() : stage.name,
                       .making = number, .now = making.phase == phase_, .finding = {}};
    if (found_ != nullptr && number < found_->size()) member.finding = (*found_)[number];
    if (member.finding.merger == nullptr) {
      const bool samples = approach_ == Approach::kSampled && member.now && !reads_steps_[members_.size()];
      member.finding.merger = stage.method->make(*stage.method, chain_.coefficients[making.coefficients], making.scope,
                                                 samples ? Approach::kSampled : Approach::kPlain);
    }
    member.now &= member.finding.merger->statistics_rounds() > 0;
    members_.push_back(std::move(member));
  }

  // Which members with rounds here each step's lanes depend on.
  void FindUses(const ChainTree& tree) {
    std::vector<uint64_t> used(tree.steps.size());
    for (size_t s = 0; s < tree.steps.size(); ++s) {
      const ChainStep& step = tree.steps[s];
      const auto add = [&](const ChainInput& input) {
        if (input.kind != ChainInput::Kind::kStep || !IsMember(tree.steps[input.index])) return;
        const size_t member = IndexOf(tree, input.index);
        used[s] |= used[input.index];
        if (members_[member].now) used[s] |= uint64_t{1} << member;
      };
      if (!IsMember(step)) continue;
      add(step.base);
      std::for_each(step.models.begin(), step.models.end(), add);
      members_[IndexOf(tree, s)].models = step.models.size();
      members_[IndexOf(tree, s)].used |= used[s];
    }
  }

  const Plan& plan_;
  const Chain& chain_;
  const uint32_t phase_;
  const bool whole_;
  const Approach approach_;
  const std::vector<ChainFinding>* const found_;
  std::vector<uint32_t> trees_;
  std::vector<bool> reads_steps_;   // by member
  std::vector<ChainMember> members_;
};

}  // namespace

std::unique_ptr<Merger> MakeChainMerger(const Plan& plan, const PlannedScope& scope, Approach approach,
                                        const std::vector<ChainFinding>* found) {
  ChainMembers members(plan, scope, approach, found);
  std::vector<ChainMember> made = members.Make();
  return NewChainMerger(plan.chain, std::move(made),
                        {.trees = members.trees(), .whole = plan.chain.whole[scope.phase],
                         .merges = !plan.IsFront(scope),
                         .sources = std::max<size_t>(plan.tensors[scope.tensors.front()].models.size(), 1)});
}

}  // namespace braid
