#include "ops/chain_merger.h"

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <map>
#include <utility>

#include "ops/mergers_internal.h"

namespace braid {
namespace {

// Merged at once: what three stages make of it stays in L2.
constexpr uint64_t kPieceLanes = 16 * kBlockLanes;

// What a round accumulates at once.
uint64_t ChunkLanes(const ChainTree& tree) {
  return tree.unit == 0 ? kReductionBlock
                        : std::min(tree.unit, std::max<uint64_t>(tree.steps.back().tensor.elements, 1));
}
uint64_t PieceLanes(const ChainTree& tree) { return tree.unit == 0 ? kPieceLanes : ChunkLanes(tree); }

size_t BufferBytes(const ChainTree& tree, const ChainStep& step) {
  return Aligned(ChunkLanes(tree) * static_cast<size_t>(LaneBytes(step.type)));
}

constexpr uint64_t Bit(size_t index) { return uint64_t{1} << index; }
bool Has(uint64_t set, size_t index) { return (set >> index & 1) != 0; }

template <typename Visit>
void ForEachBit(uint64_t set, Visit visit) {
  for (; set != 0; set &= set - 1) visit(static_cast<size_t>(std::countr_zero(set)));
}

// Where the quota of one claim ends in the order of the index: the last piece that is granted any. Those before it have
// all that they claim, those behind it nothing.
struct QuotaEnd {
  uint64_t order = 0, first = 0;   // of the tensor; of the piece in it
  uint64_t granted = 0;            // to it
  auto operator<=>(const QuotaEnd&) const = default;
};

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

struct Member : ChainMember {
  size_t claims_begin = 0, claims = 0;
  bool settled = false;         // where its quotas end is known
  std::vector<QuotaEnd> ends;   // per claim

  size_t turns = 0;             // index into the groups; of one without statistics none

  size_t rounds() const { return merger->statistics_rounds(); }
  bool ordered() const { return merger->round(rounds()).ordered; }
};

// What a method says of its elements, with the stage that it is in.
template <typename Body>
void NamingStage(const ChainMember& member, size_t tensor, Body body) {
  try {
    body();
  } catch (const NoMerge& none) {
    const std::string stage = member.name.empty() ? "" : ", in the stage '" + std::string(member.name) + "'";
    throw NoMerge(none.what() + stage, tensor);
  }
}

class ChainMerger : public Merger {
 public:
  ChainMerger(const Chain& chain, std::vector<ChainMember> members, const std::vector<uint32_t>& trees, size_t sources);

  size_t statistics_rounds() const override;
  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t source, const Coefficients& c) const override;
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  size_t claims_per_model() const override { return (claims_ + sources_ - 1) / sources_; }
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  uint64_t Quota(size_t claim) const override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;
  uint64_t entries() const override { return members_[reported_].merger->entries(); }
  uint64_t kept() const override { return members_[reported_].merger->kept(); }

 private:
  friend class ChainTile;

  // Members that have their statistics at the same time: one that is whole, or one per tensor.
  struct Group {
    std::vector<size_t> members;
    uint64_t used = 0;     // by any
    size_t rounds = 0;     // of members that are not whole, whose rounds stay as many
    bool whole = false;
  };
  // A round of the chain: one of a group's, or at last the merge, of whatever makes a tensor.
  struct Turn {
    size_t group = 0, round = 0;
    bool merges = false;
  };
  // What a step does in some turn: a round of its member.
  struct Task {
    const ChainStep* step = nullptr;   // null: nothing, the tensor has none
    size_t round = 0;
    bool merges = false;
  };
  size_t RoundsOf(const Group& group) const {
    return group.whole ? members_[group.members.front()].rounds() : group.rounds;
  }
  Turn TurnOf(size_t r) const;
  // Of the turn's whole member; null: it has none.
  const Merger* WholeOf(const Turn& turn) const {
    if (turn.merges || !groups_[turn.group].whole) return nullptr;
    return members_[groups_[turn.group].members.front()].merger.get();
  }
  RoundSpec SpecOf(const Turn& turn) const;
  Task TaskOf(const ChainTree& tree, const Turn& turn) const;
  Task MergeOf(const ChainStep& step) const { return {&step, members_[step.merger].rounds(), true}; }
  // The members whose quotas are handed out in a turn, because it is the first that merges them.
  uint64_t SettledIn(const Turn& turn) const;
  bool TakesClaims(const Turn& turn) const {
    const Merger* const whole = WholeOf(turn);
    return whole != nullptr && whole->round(turn.round).ordered;
  }
  const ChainStep* StepOf(const ChainTree& tree, size_t member) const;
  // The steps that a task reads; then, with those that these are merged from.
  uint64_t InputSteps(const Task& task) const;
  uint64_t WithTheirInputs(const ChainTree& tree, uint64_t steps) const;
  uint64_t StepsOf(const ChainTree& tree, const Turn& turn) const;
  bool ReadsInput(const Task& task, size_t model) const;
  bool ReadsAny(const Task& task) const;
  bool ReadsBase(const Task& task) const { return task.merges || ReadsAny(task); }
  const Coefficients& CoefficientsOf(const ChainStep& step) const { return chain_.coefficients[step.coefficients]; }
  // Where the chain's own part of the workspace begins in a turn, and what it takes. A sample is merged with nothing,
  // and taken by threads that have no more than they need.
  size_t RoomBegin(const Turn& turn) const {
    const Merger* const whole = WholeOf(turn);
    const RoundSpec spec = whole == nullptr ? RoundSpec() : whole->round(turn.round);
    return spec.sample ? Aligned(spec.scratch_bytes) : methods_workspace_;
  }
  size_t RoomBytes(bool with_buffers) const;

  const Chain& chain_;
  std::vector<Member> members_;
  std::vector<uint32_t> trees_;    // of the scope, in its order
  std::vector<Group> groups_;      // those with statistics
  std::vector<size_t> wholes_;     // of the members, the whole ones with statistics: only they hand anything out
  size_t sources_, reported_ = 0;
  size_t claims_ = 0, most_models_ = 0, most_claims_ = 0;
  size_t methods_workspace_ = 0, buffer_bytes_ = 0;
  size_t current_ = 0;   // round
};

// One tile on its way through the steps that a turn needs.
class ChainTile {
 public:
  // `grants`: of the chain's claims in this tile; null where none are handed out. `ends`: gets where quotas end, if it
  // is to be known in later rounds. `room`: the chain's part of the workspace.
  ChainTile(const ChainMerger& chain, const ChainTree& tree, const LaneTile& tile, const uint64_t* grants,
            QuotaEnd* ends, Scratch& scratch, std::byte* room);

  // visit(begin, end) for part after part of at most `lanes`, once `steps` are merged there.
  template <typename Visit>
  void ForEachPart(uint64_t steps, uint64_t lanes, Visit visit) {
    for (size_t begin = 0, end; begin < tile_.count; begin = end) {
      end = static_cast<size_t>(std::min<uint64_t>(begin + lanes, tile_.count));
      part_ = begin;
      for (size_t at = begin, next; at < end; at = next) {
        next = static_cast<size_t>(std::min<uint64_t>(at + PieceLanes(tree_), end));
        ForEachBit(steps, [&](size_t s) { MergeStep(s, at, next); });
      }
      visit(begin, end);
    }
  }
  // What a task reads there. Valid until the next call.
  LaneTile Inputs(const ChainMerger::Task& task, size_t begin, size_t end);
  // The share of a step's member in the tile's grants; parts come in order. Valid until the next call.
  const uint64_t* GrantsOf(const ChainStep& step, const LaneTile& part);
  void MergeInto(const ChainStep& step, size_t begin, size_t end, DType type, std::byte* out, MergeCounts* counts);

 private:
  std::byte* BufferOf(size_t step) const;
  EncodedLanes Lanes(const ChainInput& input, size_t begin) const;
  void MergeStep(size_t s, size_t begin, size_t end);

  const ChainMerger& chain_;
  const ChainTree& tree_;
  const LaneTile& tile_;
  Scratch& scratch_;
  size_t part_ = 0;   // where the buffers begin in the tile
  EncodedLanes* models_;
  uint64_t *left_, *granted_;
  std::byte* buffers_;
  const bool handed_out_;
  QuotaEnd* const ends_;
};

ChainTile::ChainTile(const ChainMerger& chain, const ChainTree& tree, const LaneTile& tile, const uint64_t* grants,
                     QuotaEnd* ends, Scratch& scratch, std::byte* room)
    : chain_(chain), tree_(tree), tile_(tile), scratch_(scratch), handed_out_(grants != nullptr), ends_(ends) {
  const auto take = [&](size_t bytes) { return std::exchange(room, room + Aligned(bytes)); };
  models_ = reinterpret_cast<EncodedLanes*>(take(chain.most_models_ * sizeof(EncodedLanes)));
  left_ = reinterpret_cast<uint64_t*>(take(chain.claims_ * sizeof(uint64_t)));
  granted_ = reinterpret_cast<uint64_t*>(take(chain.most_claims_ * sizeof(uint64_t)));
  buffers_ = room;
  if (handed_out_) std::copy_n(grants, chain.claims_, left_);
}

std::byte* ChainTile::BufferOf(size_t step) const {
  std::byte* at = buffers_;
  for (size_t s = 0; s < step; ++s) at += BufferBytes(tree_, tree_.steps[s]);
  return at;
}

EncodedLanes ChainTile::Lanes(const ChainInput& input, size_t begin) const {
  if (input.kind == ChainInput::Kind::kNone) return {};
  if (input.kind == ChainInput::Kind::kSource) {
    EncodedLanes lanes = tile_.models[input.index];
    if (lanes.bytes != nullptr) lanes.bytes += begin * static_cast<size_t>(LaneBytes(lanes.type));
    return lanes;
  }
  const DType type = tree_.steps[input.index].type;
  return {type, BufferOf(input.index) + (begin - part_) * static_cast<size_t>(LaneBytes(type))};
}

LaneTile ChainTile::Inputs(const ChainMerger::Task& task, size_t begin, size_t end) {
  const ChainStep& step = *task.step;
  for (size_t m = 0; m < step.models.size(); ++m)
    models_[m] = chain_.ReadsInput(task, m) ? Lanes(step.models[m], begin) : EncodedLanes{};
  return {.first = tile_.first + begin, .count = end - begin, .tensor = step.tensor,
          .base = chain_.ReadsBase(task) ? Lanes(step.base, begin) : EncodedLanes{},
          .models = {models_, step.models.size()}};
}

void ChainTile::MergeInto(const ChainStep& step, size_t begin, size_t end, DType type, std::byte* out,
                          MergeCounts* counts) {
  const Member& member = chain_.members_[step.merger];
  const LaneTile part = Inputs(chain_.MergeOf(step), begin, end);
  const uint64_t* const grants = member.ordered() ? GrantsOf(step, part) : nullptr;
  NamingStage(member, 0, [&] {
    member.merger->Merge(chain_.CoefficientsOf(step), part, grants, scratch_, type, out, counts);
  });
}

void ChainTile::MergeStep(size_t s, size_t begin, size_t end) {
  const DType type = tree_.steps[s].type;
  MergeCounts uncounted;
  MergeInto(tree_.steps[s], begin, end, type,
            BufferOf(s) + (begin - part_) * static_cast<size_t>(LaneBytes(type)), &uncounted);
}

// Known, or handed out now.
const uint64_t* ChainTile::GrantsOf(const ChainStep& step, const LaneTile& part) {
  const Member& member = chain_.members_[step.merger];
  const QuotaEnd here{tree_.order, part.first};
  if (member.settled) {
    for (size_t i = 0; i < member.claims; ++i) {
      const QuotaEnd& end = member.ends[i];
      const bool last = end.order == here.order && end.first == here.first;
      granted_[i] = last ? end.granted : here < end ? Merger::kNoQuota : 0;
    }
    return granted_;
  }
  if (!handed_out_) throw std::logic_error("a claim that depends on one of the same round");
  GrantPart(*member.merger, chain_.CoefficientsOf(step), part, scratch_, {left_ + member.claims_begin, member.claims},
            granted_);
  for (size_t i = 0; ends_ != nullptr && i < member.claims; ++i) {
    QuotaEnd& end = ends_[member.claims_begin + i];
    if (granted_[i] > 0) end = std::max(end, {here.order, here.first, granted_[i]});
  }
  return granted_;
}

// --- the merger -------------------------------------------------------------------------------------------

ChainMerger::ChainMerger(const Chain& chain, std::vector<ChainMember> members, const std::vector<uint32_t>& trees,
                         size_t sources)
    : chain_(chain), trees_(trees), sources_(std::max<size_t>(sources, 1)),
      reported_(chain.trees[trees.front()].steps.back().merger) {
  std::map<uint32_t, Group> groups;
  for (ChainMember& given : members) {
    Member member;
    static_cast<ChainMember&>(member) = std::move(given);
    if (member.rounds() > 0) {
      Group& group = groups[member.group];
      group.members.push_back(members_.size());
      group.used |= member.used, group.whole = member.whole;
      group.rounds = std::max(group.rounds, member.rounds());
    }
    if (member.rounds() > 0 && member.whole) {
      wholes_.push_back(members_.size());
      member.claims_begin = claims_;
      member.claims = member.models * member.merger->claims_per_model();
      member.ends.resize(member.claims);
      claims_ += member.claims;
      most_claims_ = std::max(most_claims_, member.claims);
    }
    for (size_t r = 0; r <= member.rounds(); ++r)
      methods_workspace_ = std::max(methods_workspace_, Aligned(member.merger->round(r).scratch_bytes));
    members_.push_back(std::move(member));
  }
  for (auto& [number, group] : groups) {
    for (const size_t k : group.members) members_[k].turns = groups_.size();
    groups_.push_back(std::move(group));
  }
  for (uint32_t t : trees) {
    const ChainTree& tree = chain.trees[t];
    size_t bytes = 0;
    for (size_t s = 0; s + 1 < tree.steps.size(); ++s) bytes += BufferBytes(tree, tree.steps[s]);
    for (const ChainStep& step : tree.steps) most_models_ = std::max(most_models_, step.models.size());
    buffer_bytes_ = std::max(buffer_bytes_, bytes);
  }
}

size_t ChainMerger::RoomBytes(bool with_buffers) const {
  return Aligned(most_models_ * sizeof(EncodedLanes)) + Aligned(claims_ * sizeof(uint64_t)) +
         Aligned(most_claims_ * sizeof(uint64_t)) + (with_buffers ? buffer_bytes_ : 0);
}

size_t ChainMerger::statistics_rounds() const {
  size_t rounds = 0;
  for (const Group& group : groups_) rounds += RoundsOf(group);
  return rounds;
}

ChainMerger::Turn ChainMerger::TurnOf(size_t r) const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (r < RoundsOf(groups_[g])) return {g, r, false};
    r -= RoundsOf(groups_[g]);
  }
  return {.merges = true};
}

ChainMerger::Task ChainMerger::TaskOf(const ChainTree& tree, const Turn& turn) const {
  if (turn.merges) return MergeOf(tree.steps.back());
  const auto step = std::find_if(tree.steps.begin(), tree.steps.end(), [&](const ChainStep& candidate) {
    const Member& member = members_[candidate.merger];
    return member.turns == turn.group && member.rounds() > turn.round;
  });
  return {step == tree.steps.end() ? nullptr : &*step, turn.round, false};
}

uint64_t ChainMerger::SettledIn(const Turn& turn) const {
  uint64_t settled = 0;
  for (size_t k : wholes_) {
    const bool merged = turn.merges || Has(groups_[turn.group].used, k);
    if (merged && !members_[k].settled && members_[k].ordered()) settled |= Bit(k);
  }
  return settled;
}

// What its members ask for.
RoundSpec ChainMerger::SpecOf(const Turn& turn) const {
  if (turn.merges) return {.name = "merge"};
  if (const Merger* const whole = WholeOf(turn)) return whole->round(turn.round);
  RoundSpec spec = {.name = "sums", .sums_by_tensor = true};
  for (const size_t k : groups_[turn.group].members)
    if (members_[k].rounds() > turn.round) spec.sums = std::max(spec.sums, members_[k].merger->round(turn.round).sums);
  return spec;
}

RoundSpec ChainMerger::round(size_t r) const {
  const Turn turn = TurnOf(r);
  RoundSpec spec = SpecOf(turn);
  if (SettledIn(turn) != 0) {
    spec.ordered = true;
    if (!turn.merges) spec.accumulator_bytes += sizeof(SettlingRound) + claims_ * sizeof(QuotaEnd);
  }
  spec.scratch_bytes = RoomBegin(turn) + RoomBytes(!spec.sample);
  // Until the last merge, all that any of them keeps.
  spec.kept_bytes = 0;
  for (size_t k : wholes_) {
    const bool now = !turn.merges && members_[k].turns == turn.group;
    size_t most = 0;
    for (size_t q = 0; q <= (now ? turn.round : members_[k].rounds()); ++q)
      most = std::max(most, members_[k].merger->round(q).kept_bytes);
    spec.kept_bytes += most;
    if (now) break;
  }
  return spec;
}

const ChainStep* ChainMerger::StepOf(const ChainTree& tree, size_t member) const {
  const auto step = std::find_if(tree.steps.begin(), tree.steps.end(),
                                 [&](const ChainStep& candidate) { return candidate.merger == member; });
  return step == tree.steps.end() ? nullptr : &*step;
}

bool ChainMerger::ReadsInput(const Task& task, size_t model) const {
  const ChainStep& step = *task.step;
  return step.models[model].kind != ChainInput::Kind::kNone &&
         members_[step.merger].merger->Reads(task.round, model, CoefficientsOf(step));
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
  ForEachBit(SettledIn(turn), [&](size_t k) {
    const ChainStep* const step = StepOf(tree, k);
    if (step != nullptr && step != task.step) steps |= Bit(static_cast<size_t>(step - tree.steps.data()));
  });
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
  if (const Merger* const whole = WholeOf(turn)) counted = whole->NewAccumulator(turn.round);
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
    members_[task.step->merger].merger->Accumulate(turn.round, CoefficientsOf(*task.step), part, granted, scratch,
                                                   accumulator, sums);
  });
}

void ChainMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  const Turn turn = TurnOf(r);
  if (const uint64_t settled = SettledIn(turn); settled != 0) {
    auto& settling = static_cast<SettlingRound&>(*accumulator);
    ForEachBit(settled, [&](size_t k) {
      Member& member = members_[k];
      std::copy_n(settling.ends.data() + member.claims_begin, member.claims, member.ends.data());
      member.settled = true;
    });
    accumulator = settling.counted.get();
  }
  current_ = r + 1;
  if (groups_[turn.group].whole) {
    const Member& member = members_[groups_[turn.group].members.front()];
    return NamingStage(member, 0, [&] { member.merger->Finish(turn.round, accumulator, sums); });
  }
  const size_t quantities = sums.size() / trees_.size();
  for (size_t t = 0; t < trees_.size(); ++t) {
    const Task task = TaskOf(chain_.trees[trees_[t]], turn);
    if (task.step == nullptr || task.step->tensor.elements == 0) continue;
    const Member& member = members_[task.step->merger];
    const size_t its = member.merger->round(turn.round).sums;
    NamingStage(member, t, [&] { member.merger->Finish(turn.round, nullptr, sums.subspan(t * quantities, its)); });
  }
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
      const Member& member = members_[task.step->merger];
      member.merger->CountClaims(CoefficientsOf(*task.step), work.Inputs(task, begin, end), scratch,
                                 claims + member.claims_begin);
    }
  });
}

uint64_t ChainMerger::Quota(size_t claim) const {
  const Turn turn = TurnOf(current_);
  const uint64_t settled = SettledIn(turn);
  for (size_t k : wholes_) {
    const Member& member = members_[k];
    if (claim < member.claims_begin || claim >= member.claims_begin + member.claims) continue;
    const bool handed_out = Has(settled, k) || (TakesClaims(turn) && member.turns == turn.group);
    return handed_out ? member.merger->Quota(claim - member.claims_begin) : kNoQuota;
  }
  return kNoQuota;
}

void ChainMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                        DType type, std::byte* out, MergeCounts* counts) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = {.merges = true};
  ChainTile work(*this, tree, tile, SettledIn(turn) != 0 ? grants : nullptr, nullptr, scratch,
                 scratch.workspace + methods_workspace_);
  work.ForEachPart(StepsOf(tree, turn), PieceLanes(tree), [&](size_t begin, size_t end) {
    work.MergeInto(tree.steps.back(), begin, end, type, out + begin * static_cast<size_t>(LaneBytes(type)), counts);
  });
}

}  // namespace

uint64_t Chain::MemoryBytes() const {
  uint64_t bytes = 0;
  for (const Coefficients& c : coefficients) bytes += 128 + (c.model.size() + 1) * (48 + c.shared.size() * 8);
  for (const ChainTree& tree : trees) {
    bytes += sizeof(ChainTree) + 32;
    for (const ChainStep& step : tree.steps) bytes += sizeof(ChainStep) + 16 + step.models.size() * sizeof(ChainInput);
  }
  for (const ChainMaking& making : mergers)   // and the mergers themselves, twice while they are planned
    bytes += sizeof(ChainMaking) + 2 * (1024 + coefficients[making.coefficients].model.size() * 256);
  return bytes;
}

std::unique_ptr<Merger> NewChainMerger(const Chain& chain, std::vector<ChainMember> members,
                                       const std::vector<uint32_t>& trees, size_t sources) {
  return std::make_unique<ChainMerger>(chain, std::move(members), trees, sources);
}

}  // namespace braid
