#include "ops/chain_merger.h"

#include <array>
#include <utility>

#include "ops/chain_internal.h"

namespace braid {
namespace {

// Of a round that settles quotas: what its member counts, and where they end, by claim.
class SettlingRound : public Accumulator {
 public:
  SettlingRound(std::unique_ptr<Accumulator> member, size_t claims) : counted(std::move(member)), ends(claims) {}

  void Add(Accumulator* other) override {
    auto& its = static_cast<SettlingRound&>(*other);
    if (counted != nullptr) counted->Add(its.counted.get());
    for (size_t i = 0; i < ends.size(); ++i) ends[i] = std::max(ends[i], its.ends[i]);
  }
  bool Travels() const override { return counted == nullptr || counted->Travels(); }
  void Save(const Put& put) const override {
    if (counted != nullptr) counted->Save(put);
    put(ends.data(), ends.size() * sizeof(QuotaEnd));
  }
  void Load(const Get& get) override {
    if (counted != nullptr) counted->Load(get);
    for (QuotaEnd& end : ends) {
      QuotaEnd its;
      get(&its, sizeof its);
      end = std::max(end, its);
    }
  }

  std::unique_ptr<Accumulator> counted;   // null: it counts nothing
  std::vector<QuotaEnd> ends;
};

}  // namespace

ChainMerger::ChainMerger(const Chain& chain, std::vector<ChainMember> members, ChainScope scope)
    : chain_(chain), scope_(std::move(scope)) {
  for (ChainMember& given : members) {
    Member member(std::move(given));
    member.now &= member.rounds() > 0;
    member.settled = !member.now;
    if (member.now) {
      active_.push_back(members_.size());
      member.claims_begin = claims_;
      member.claims = member.models * member.merger().claims_per_model();
      member.finding.ends.resize(member.claims);
      claims_ += member.claims;
    } else {
      member.claims = member.finding.ends.size();
    }
    most_claims_ = std::max(most_claims_, member.claims);
    for (size_t r = 0; r <= member.rounds(); ++r)
      methods_workspace_ = std::max(methods_workspace_, Aligned(member.merger().round(r).scratch_bytes));
    members_.push_back(std::move(member));
  }
  for (uint32_t t : scope_.trees) {
    const ChainTree& tree = chain.trees[t];
    // The last step's, too: what it makes may be another stage's, whose quotas are handed out before.
    size_t bytes = 0;
    for (const ChainStep& step : tree.steps) bytes += BufferBytes(tree, step);
    if (scope_.merges && scope_.trees.size() == 1) bytes -= BufferBytes(tree, tree.steps.back());
    for (const ChainStep& step : tree.steps) most_models_ = std::max(most_models_, step.models.size());
    buffer_bytes_ = std::max(buffer_bytes_, bytes);
  }
}

size_t ChainMerger::RoomBytes(bool with_buffers) const {
  return Aligned(most_models_ * sizeof(EncodedLanes)) + Aligned(claims_ * sizeof(uint64_t)) +
         Aligned(most_claims_ * sizeof(uint64_t)) + (with_buffers ? buffer_bytes_ : 0);
}

size_t ChainMerger::statistics_rounds() const {
  size_t rounds = HasQuotasTurn() ? 1 : 0;
  for (size_t k : active_) rounds += members_[k].rounds();
  return rounds;
}

ChainMerger::Turn ChainMerger::TurnOf(size_t r) const {
  for (size_t k : active_) {
    if (r < members_[k].rounds()) return {Turn::Kind::kStatistics, k, r};
    r -= members_[k].rounds();
  }
  return {r == 0 && HasQuotasTurn() ? Turn::Kind::kQuotas : Turn::Kind::kMerge};
}

// Before others have their rounds, or are merged, in other scopes. It stays so when they are handed out.
bool ChainMerger::HasQuotasTurn() const {
  if (scope_.merges) return false;
  return std::any_of(active_.begin(), active_.end(), [&](size_t k) {
    const auto uses_it = [&](size_t other) { return Has(members_[other].used, k); };
    return members_[k].ordered() && std::none_of(active_.begin(), active_.end(), uses_it);
  });
}

ChainMerger::Task ChainMerger::TaskOf(const ChainTree& tree, const Turn& turn) const {
  if (turn.has_member()) return {StepOf(tree, turn.member), turn.round, false};
  return turn.kind == Turn::Kind::kMerge && scope_.merges ? MergeOf(tree.steps.back()) : Task();
}

uint64_t ChainMerger::SettledIn(const Turn& turn) const {
  if (turn.kind == Turn::Kind::kMerge && !scope_.merges) return 0;
  uint64_t settled = 0;
  for (size_t k : active_) {
    const bool merged = !turn.has_member() || Has(members_[turn.member].used, k);
    if (merged && !members_[k].settled && members_[k].ordered()) settled |= Bit(k);
  }
  return settled;
}

// What its member asks for.
RoundSpec ChainMerger::SpecOf(const Turn& turn) const {
  if (turn.has_member()) return members_[turn.member].merger().round(turn.round);
  return {.name = turn.kind == Turn::Kind::kQuotas ? "quotas" : "merge"};
}

RoundSpec ChainMerger::round(size_t r) const {
  const Turn turn = TurnOf(r);
  RoundSpec spec = SpecOf(turn);
  if (SettledIn(turn) != 0) {
    spec.ordered = true;
    if (turn.kind != Turn::Kind::kMerge) spec.accumulator_bytes += sizeof(SettlingRound) + claims_ * sizeof(QuotaEnd);
  }
  spec.scratch_bytes = RoomBegin(turn) + RoomBytes(!spec.sample);
  // Until the last merge, all that any of them keeps.
  spec.kept_bytes = 0;
  for (size_t k : active_) {
    const bool now = turn.has_member() && turn.member == k;
    size_t most = 0;
    for (size_t q = 0; q <= (now ? turn.round : members_[k].rounds()); ++q)
      most = std::max(most, members_[k].merger().round(q).kept_bytes);
    spec.kept_bytes += most;
    if (now) break;
  }
  return spec;
}

const ChainStep* ChainMerger::StepOf(const ChainTree& tree, size_t member) const {
  const auto step = std::find_if(tree.steps.begin(), tree.steps.end(),
                                 [&](const ChainStep& candidate) { return IndexOf(candidate) == member; });
  return step == tree.steps.end() ? nullptr : &*step;
}

bool ChainMerger::ReadsInput(const Task& task, size_t model) const {
  const ChainStep& step = *task.step;
  return step.models[model].kind != ChainInput::Kind::kNone &&
         MemberOf(step).merger().Reads(task.round, model, CoefficientsOf(step));
}

bool ChainMerger::ReadsAny(const Task& task) const {
  for (size_t m = 0; m < task.step->models.size(); ++m)
    if (ReadsInput(task, m)) return true;
  return false;
}

uint64_t ChainMerger::InputSteps(const Task& task) const {
  uint64_t steps = 0;
  const auto add = [&](const ChainInput& input) {
    if (input.kind == ChainInput::Kind::kStep) steps |= Bit(input.index);
  };
  for (size_t m = 0; m < task.step->models.size(); ++m)
    if (ReadsInput(task, m)) add(task.step->models[m]);
  if (ReadsBase(task)) add(task.step->base);
  return steps;
}

uint64_t ChainMerger::WithTheirInputs(const ChainTree& tree, uint64_t steps) const {
  for (size_t s = tree.steps.size(); s-- > 0;)
    if (Has(steps, s)) steps |= InputSteps(MergeOf(tree.steps[s]));
  return steps;
}

// Those that a turn merges on the way, also where it only counts claims on what others settle.
uint64_t ChainMerger::StepsOf(const ChainTree& tree, const Turn& turn) const {
  const Task task = TaskOf(tree, turn);
  uint64_t steps = task.step == nullptr ? 0 : InputSteps(task);
  const auto add = [&](size_t k) {
    const ChainStep* const step = StepOf(tree, k);
    if (step != nullptr && step != task.step) steps |= Bit(static_cast<size_t>(step - tree.steps.data()));
  };
  ForEachBit(SettledIn(turn), add);
  // No merge: what the round before it may yet turn out to need, for those that have to read that at once.
  if (turn.kind == Turn::Kind::kMerge && !scope_.merges) std::for_each(active_.begin(), active_.end(), add);
  return WithTheirInputs(tree, steps);
}

bool ChainMerger::Reads(size_t r, size_t source, const Coefficients& c) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(r);
  const auto is_it = [&](const ChainInput& input) {
    return input.kind == ChainInput::Kind::kSource && input.index == source;
  };
  const auto reads = [&](const Task& task) {
    for (size_t m = 0; m < task.step->models.size(); ++m)
      if (is_it(task.step->models[m]) && ReadsInput(task, m)) return true;
    return is_it(task.step->base) && ReadsBase(task);
  };
  const Task task = TaskOf(tree, turn);
  bool found = task.step != nullptr && reads(task);
  ForEachBit(StepsOf(tree, turn), [&](size_t s) { found |= reads(MergeOf(tree.steps[s])); });
  return found;
}

std::unique_ptr<Accumulator> ChainMerger::NewAccumulator(size_t r) const {
  const Turn turn = TurnOf(r);
  std::unique_ptr<Accumulator> counted;
  if (turn.has_member()) counted = members_[turn.member].merger().NewAccumulator(turn.round);
  if (SettledIn(turn) == 0) return counted;
  return std::make_unique<SettlingRound>(std::move(counted), claims_);
}

void ChainMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                             Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(r);
  const Task task = TaskOf(tree, turn);
  std::byte* const room = scratch.workspace + RoomBegin(turn);
  const bool claims = TakesClaims(turn), counts = task.step != nullptr && ReadsAny(task);
  QuotaEnd* ends = nullptr;
  if (SettledIn(turn) != 0) {
    auto& settling = static_cast<SettlingRound&>(*accumulator);
    ends = settling.ends.data(), accumulator = settling.counted.get();
  }
  const uint64_t steps = StepsOf(tree, turn);
  ChainTile work(*this, tree, tile, claims || ends != nullptr ? grants : nullptr, ends, scratch, room);
  work.ForEachPart(steps, steps == 0 ? tile.count : ChunkLanes(tree), [&](size_t begin, size_t end) {
    if (!counts) return;
    const LaneTile part = work.Inputs(task, begin, end);
    const uint64_t* const granted = claims ? work.GrantsOf(*task.step, part) : nullptr;
    MemberOf(*task.step).merger().Accumulate(turn.round, CoefficientsOf(*task.step), part, granted, scratch,
                                             accumulator, sums);
  });
}

void ChainMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  const Turn turn = TurnOf(r);
  if (const uint64_t settled = SettledIn(turn); settled != 0) {
    auto& settling = static_cast<SettlingRound&>(*accumulator);
    ForEachBit(settled, [&](size_t k) {
      Member& member = members_[k];
      std::copy_n(settling.ends.data() + member.claims_begin, member.claims, member.finding.ends.data());
      member.settled = true;
    });
    accumulator = settling.counted.get();
  }
  current_ = r + 1;
  if (!turn.has_member()) return;
  const Member& member = members_[turn.member];
  NamingStage(member, [&] { member.merger().Finish(turn.round, accumulator, sums); });
}

// On what is settled in the round, and the round's own.
void ChainMerger::CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(current_);
  std::array<Task, ChainTree::kMostSteps> claiming;
  size_t count = 0;
  uint64_t steps = 0;
  const auto add = [&](const Task& task) {
    claiming[count++] = task;
    steps |= InputSteps(task);
  };
  ForEachBit(SettledIn(turn), [&](size_t k) {
    if (const ChainStep* const step = StepOf(tree, k)) add(MergeOf(*step));
  });
  if (const Task task = TaskOf(tree, turn); TakesClaims(turn) && task.step != nullptr) add(task);
  ChainTile work(*this, tree, tile, nullptr, nullptr, scratch, scratch.workspace + methods_workspace_);
  steps = WithTheirInputs(tree, steps);
  work.ForEachPart(steps, steps == 0 ? tile.count : ChunkLanes(tree), [&](size_t begin, size_t end) {
    for (const Task& task : std::span(claiming).first(count)) {
      const Member& member = MemberOf(*task.step);
      member.merger().CountClaims(CoefficientsOf(*task.step), work.Inputs(task, begin, end), scratch,
                                  claims + member.claims_begin);
    }
  });
}

uint64_t ChainMerger::Quota(size_t claim) const {
  const Turn turn = TurnOf(current_);
  const uint64_t settled = SettledIn(turn);
  for (size_t k : active_) {
    const Member& member = members_[k];
    if (claim < member.claims_begin || claim >= member.claims_begin + member.claims) continue;
    const bool handed_out = Has(settled, k) || (TakesClaims(turn) && turn.member == k);
    return handed_out ? member.merger().Quota(claim - member.claims_begin) : kNoQuota;
  }
  return kNoQuota;
}

void ChainMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                        DType type, std::byte* out, MergeCounts* counts) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = {Turn::Kind::kMerge};
  ChainTile work(*this, tree, tile, SettledIn(turn) != 0 ? grants : nullptr, nullptr, scratch,
                 scratch.workspace + methods_workspace_);
  work.ForEachPart(StepsOf(tree, turn), PieceLanes(tree), [&](size_t begin, size_t end) {
    work.MergeInto(tree.steps.back(), begin, end, type, out + begin * static_cast<size_t>(LaneBytes(type)), counts);
  });
}

void ChainMerger::KeepFindings(std::vector<ChainFinding>* findings) const {
  for (size_t k : active_)
    if (members_[k].making != ChainStep::kOwn) (*findings)[members_[k].making] = members_[k].finding;
}

uint64_t Chain::MemoryBytes() const {
  uint64_t bytes = 0;
  for (const Coefficients& c : coefficients) bytes += 128 + (c.model.size() + 1) * (48 + c.shared.size() * 8);
  for (const ChainTree& tree : trees) {
    bytes += sizeof(ChainTree) + 32;
    for (const ChainStep& step : tree.steps) bytes += sizeof(ChainStep) + 16 + step.models.size() * sizeof(ChainInput);
  }
  for (const ChainMaking& making : mergers) bytes += MakingBytes(coefficients[making.coefficients].model.size());
  return bytes;
}

std::unique_ptr<Merger> NewChainMerger(const Chain& chain, std::vector<ChainMember> members, ChainScope scope) {
  return std::make_unique<ChainMerger>(chain, std::move(members), std::move(scope));
}

void KeepFindings(const Merger& chain_merger, std::vector<ChainFinding>* findings) {
  static_cast<const ChainMerger&>(chain_merger).KeepFindings(findings);
}

}  // namespace braid
