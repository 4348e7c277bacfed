#include "ops/chain_merger.h"

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <mutex>
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

// Where the quota of one claim ended: entries before this piece have all that they claim, those behind it nothing.
struct QuotaEnd {
  struct Place {
    uint64_t order = UINT64_MAX, first = UINT64_MAX;   // of the tensor; of the piece in it
    auto operator<=>(const Place&) const = default;
  };
  Place place;
  uint64_t granted = 0;   // in this piece
};

struct Member : ChainMember {
  size_t claims_begin = 0, claims = 0;
  bool settled = false;          // where its quotas end is known
  mutable std::vector<QuotaEnd> ends;   // per claim

  bool ordered() const { return merger->round(merger->statistics_rounds()).ordered; }
};

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
  uint64_t entries() const override { return members_.back().merger->entries(); }
  uint64_t kept() const override { return members_.back().merger->kept(); }

 private:
  friend class ChainTile;

  // A round of the chain: one of a member's.
  struct Turn {
    size_t member = 0, round = 0;
    bool merges = false;
  };
  Turn TurnOf(size_t r) const;
  // The members whose quotas are handed out in a turn, because it is the first that merges them.
  uint64_t SettledIn(const Turn& turn) const;
  bool TakesClaims(const Turn& turn) const {
    return members_[turn.member].merger->round(turn.round).ordered;
  }
  const ChainStep* StepOf(const ChainTree& tree, size_t member) const;
  // The steps that a step's round reads; then, with those that these are merged from.
  uint64_t InputSteps(const ChainStep& step, const Turn& turn) const;
  uint64_t WithTheirInputs(const ChainTree& tree, uint64_t steps) const;
  uint64_t StepsOf(const ChainTree& tree, const Turn& turn) const;
  bool ReadsInput(const ChainStep& step, const Turn& turn, size_t model) const;
  bool ReadsAny(const ChainStep& step, const Turn& turn) const;
  Turn MergeOf(const ChainStep& step) const {
    return {step.merger, members_[step.merger].merger->statistics_rounds(), true};
  }
  const Coefficients& CoefficientsOf(const ChainStep& step) const { return chain_.coefficients[step.coefficients]; }
  size_t RoomBytes() const;

  const Chain& chain_;
  std::vector<Member> members_;
  size_t sources_;
  size_t claims_ = 0, most_models_ = 0, most_claims_ = 0;
  size_t methods_workspace_ = 0, buffer_bytes_ = 0;
  size_t current_ = 0;   // round
  mutable std::mutex mutex_;   // of the ends while they are being found
};

// One tile on its way through the steps that a turn needs.
class ChainTile {
 public:
  // `grants`: of the chain's claims in this tile; null where none are handed out yet.
  ChainTile(const ChainMerger& chain, const ChainTree& tree, const LaneTile& tile, const uint64_t* grants,
            Scratch& scratch);

  // visit(begin, end) for part after part of at most `lanes`, once `steps` are merged there.
  template <typename Visit>
  void ForEachPart(uint64_t steps, uint64_t lanes, Visit visit) {
    if (steps == 0) return visit(size_t{0}, tile_.count);
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
  // What a step's turn reads there. Valid until the next call.
  LaneTile Inputs(const ChainStep& step, const ChainMerger::Turn& turn, size_t begin, size_t end);
  // A member's share of the tile's grants; parts come in order. Valid until the next call.
  const uint64_t* Share(const Member& member, const ChainStep& step, const LaneTile& part);

 private:
  std::byte* BufferOf(size_t step) const;
  EncodedLanes Lanes(const ChainInput& input, size_t begin) const;
  void MergeStep(size_t s, size_t begin, size_t end);
  const uint64_t* GrantsOf(const Member& member, const ChainStep& step, const LaneTile& part);

  const ChainMerger& chain_;
  const ChainTree& tree_;
  const LaneTile& tile_;
  Scratch& scratch_;
  size_t part_ = 0;   // where the buffers begin in the tile
  EncodedLanes* models_;
  uint64_t *left_, *granted_;
  std::byte* buffers_;
  bool handed_out_;
};

ChainTile::ChainTile(const ChainMerger& chain, const ChainTree& tree, const LaneTile& tile, const uint64_t* grants,
                     Scratch& scratch)
    : chain_(chain), tree_(tree), tile_(tile), scratch_(scratch), handed_out_(grants != nullptr) {
  std::byte* at = scratch.workspace + chain.methods_workspace_;
  const auto take = [&](size_t bytes) { return std::exchange(at, at + Aligned(bytes)); };
  models_ = reinterpret_cast<EncodedLanes*>(take(chain.most_models_ * sizeof(EncodedLanes)));
  left_ = reinterpret_cast<uint64_t*>(take(chain.claims_ * sizeof(uint64_t)));
  granted_ = reinterpret_cast<uint64_t*>(take(chain.most_claims_ * sizeof(uint64_t)));
  buffers_ = at;
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

LaneTile ChainTile::Inputs(const ChainStep& step, const ChainMerger::Turn& turn, size_t begin, size_t end) {
  for (size_t m = 0; m < step.models.size(); ++m)
    models_[m] = chain_.ReadsInput(step, turn, m) ? Lanes(step.models[m], begin) : EncodedLanes{};
  return {.first = tile_.first + begin, .count = end - begin, .tensor = step.tensor,
          .base = turn.merges || chain_.ReadsAny(step, turn) ? Lanes(step.base, begin) : EncodedLanes{},
          .models = {models_, step.models.size()}};
}

void ChainTile::MergeStep(size_t s, size_t begin, size_t end) {
  const ChainStep& step = tree_.steps[s];
  const Member& member = chain_.members_[step.merger];
  const LaneTile part = Inputs(step, chain_.MergeOf(step), begin, end);
  MergeCounts uncounted;
  const uint64_t* const grants = member.ordered() ? GrantsOf(member, step, part) : nullptr;
  try {
    member.merger->Merge(chain_.CoefficientsOf(step), part, grants, scratch_, step.type,
                         BufferOf(s) + (begin - part_) * static_cast<size_t>(LaneBytes(step.type)), &uncounted);
  } catch (const NoMerge& none) {
    throw NoMerge(std::string(none.what()) + ", in the stage '" + std::string(member.name) + "'");
  }
}

const uint64_t* ChainTile::Share(const Member& member, const ChainStep& step, const LaneTile& part) {
  GrantPart(*member.merger, chain_.CoefficientsOf(step), part, scratch_, {left_ + member.claims_begin, member.claims},
            granted_);
  return granted_;
}

// Of a merge on the way: known, or found out now.
const uint64_t* ChainTile::GrantsOf(const Member& member, const ChainStep& step, const LaneTile& part) {
  const QuotaEnd::Place here{tree_.order, part.first};
  if (member.settled) {
    for (size_t i = 0; i < member.claims; ++i) {
      const QuotaEnd& end = member.ends[i];
      granted_[i] = here < end.place ? Merger::kNoQuota : here == end.place ? end.granted : 0;
    }
    return granted_;
  }
  if (!handed_out_) throw std::logic_error("a claim that depends on one of the same round");
  std::fill_n(granted_, member.claims, 0);
  bool over = true;
  {
    std::lock_guard lock(chain_.mutex_);
    for (const QuotaEnd& end : member.ends) over &= end.place < here;
  }
  if (over) return granted_;
  member.merger->CountClaims(chain_.CoefficientsOf(step), part, scratch_, granted_);
  uint64_t* const left = left_ + member.claims_begin;
  std::lock_guard lock(chain_.mutex_);
  for (size_t i = 0; i < member.claims; ++i) {
    const uint64_t claimed = granted_[i];
    granted_[i] = std::min(claimed, left[i]);
    left[i] -= granted_[i];
    QuotaEnd& end = member.ends[i];
    if (granted_[i] < claimed && here < end.place) end = {here, granted_[i]};
  }
  return granted_;
}

// --- the merger -------------------------------------------------------------------------------------------

ChainMerger::ChainMerger(const Chain& chain, std::vector<ChainMember> members, const std::vector<uint32_t>& trees,
                         size_t sources)
    : chain_(chain), sources_(std::max<size_t>(sources, 1)) {
  for (ChainMember& given : members) {
    Member member;
    static_cast<ChainMember&>(member) = std::move(given);
    member.claims_begin = claims_;
    member.claims = member.models * member.merger->claims_per_model();
    member.ends.resize(member.claims);
    claims_ += member.claims;
    most_claims_ = std::max(most_claims_, member.claims);
    for (size_t r = 0; r <= member.merger->statistics_rounds(); ++r)
      methods_workspace_ = std::max(methods_workspace_, Aligned(member.merger->round(r).scratch_bytes));
    members_.push_back(std::move(member));
  }
  for (uint32_t t : trees) {
    const ChainTree& tree = chain.trees[t];
    size_t bytes = 0;
    for (size_t s = 0; s + 1 < tree.steps.size(); ++s) bytes += BufferBytes(tree, tree.steps[s]);
    for (const ChainStep& step : tree.steps) most_models_ = std::max(most_models_, step.models.size());
    buffer_bytes_ = std::max(buffer_bytes_, bytes);
  }
}

size_t ChainMerger::RoomBytes() const {
  return Aligned(most_models_ * sizeof(EncodedLanes)) + Aligned(claims_ * sizeof(uint64_t)) +
         Aligned(most_claims_ * sizeof(uint64_t)) + buffer_bytes_;
}

size_t ChainMerger::statistics_rounds() const {
  size_t rounds = 0;
  for (const Member& member : members_) rounds += member.merger->statistics_rounds();
  return rounds;
}

ChainMerger::Turn ChainMerger::TurnOf(size_t r) const {
  for (size_t k = 0; k < members_.size(); ++k) {
    const size_t rounds = members_[k].merger->statistics_rounds();
    if (r < rounds) return {k, r, false};
    r -= rounds;
  }
  return {members_.size() - 1, members_.back().merger->statistics_rounds(), true};
}

uint64_t ChainMerger::SettledIn(const Turn& turn) const {
  uint64_t settled = 0;
  ForEachBit(members_[turn.member].used, [&](size_t j) {
    if (!members_[j].settled && members_[j].ordered()) settled |= Bit(j);
  });
  return settled;
}

RoundSpec ChainMerger::round(size_t r) const {
  const Turn turn = TurnOf(r);
  RoundSpec spec = members_[turn.member].merger->round(turn.round);
  spec.ordered |= SettledIn(turn) != 0;
  spec.scratch_bytes = methods_workspace_ + RoomBytes();
  // Until the last merge, all that any of them keeps.
  size_t kept = 0;
  for (size_t k = 0; k <= turn.member; ++k) {
    size_t most = 0;
    for (size_t q = 0; q <= (k == turn.member ? turn.round : members_[k].merger->statistics_rounds()); ++q)
      most = std::max(most, members_[k].merger->round(q).kept_bytes);
    kept += most;
  }
  spec.kept_bytes = kept;
  return spec;
}

const ChainStep* ChainMerger::StepOf(const ChainTree& tree, size_t member) const {
  const auto step = std::find_if(tree.steps.begin(), tree.steps.end(),
                                 [&](const ChainStep& candidate) { return candidate.merger == member; });
  return step == tree.steps.end() ? nullptr : &*step;
}

bool ChainMerger::ReadsInput(const ChainStep& step, const Turn& turn, size_t model) const {
  return step.models[model].kind != ChainInput::Kind::kNone &&
         members_[turn.member].merger->Reads(turn.round, model, CoefficientsOf(step));
}

bool ChainMerger::ReadsAny(const ChainStep& step, const Turn& turn) const {
  for (size_t m = 0; m < step.models.size(); ++m)
    if (ReadsInput(step, turn, m)) return true;
  return false;
}

uint64_t ChainMerger::InputSteps(const ChainStep& step, const Turn& turn) const {
  uint64_t steps = 0;
  const auto add = [&](const ChainInput& input) {
    if (input.kind == ChainInput::Kind::kStep) steps |= Bit(input.index);
  };
  for (size_t m = 0; m < step.models.size(); ++m)
    if (ReadsInput(step, turn, m)) add(step.models[m]);
  if (turn.merges || ReadsAny(step, turn)) add(step.base);
  return steps;
}

uint64_t ChainMerger::WithTheirInputs(const ChainTree& tree, uint64_t steps) const {
  for (size_t s = tree.steps.size(); s-- > 0;)
    if (Has(steps, s)) steps |= InputSteps(tree.steps[s], MergeOf(tree.steps[s]));
  return steps;
}

uint64_t ChainMerger::StepsOf(const ChainTree& tree, const Turn& turn) const {
  uint64_t steps = 0;
  if (const ChainStep* target = StepOf(tree, turn.member)) steps |= InputSteps(*target, turn);
  ForEachBit(SettledIn(turn), [&](size_t j) {
    if (const ChainStep* step = StepOf(tree, j)) steps |= Bit(static_cast<size_t>(step - tree.steps.data()));
  });
  return WithTheirInputs(tree, steps);
}

bool ChainMerger::Reads(size_t r, size_t source, const Coefficients& c) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(r);
  const auto is_it = [&](const ChainInput& input) {
    return input.kind == ChainInput::Kind::kSource && input.index == source;
  };
  const auto reads = [&](const ChainStep& step, const Turn& its) {
    for (size_t m = 0; m < step.models.size(); ++m)
      if (is_it(step.models[m]) && ReadsInput(step, its, m)) return true;
    return is_it(step.base) && (its.merges || ReadsAny(step, its));
  };
  const ChainStep* const target = StepOf(tree, turn.member);
  bool found = target != nullptr && reads(*target, turn);
  ForEachBit(StepsOf(tree, turn), [&](size_t s) { found |= reads(tree.steps[s], MergeOf(tree.steps[s])); });
  return found;
}

std::unique_ptr<Accumulator> ChainMerger::NewAccumulator(size_t r) const {
  const Turn turn = TurnOf(r);
  return members_[turn.member].merger->NewAccumulator(turn.round);
}

void ChainMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                             Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(r);
  const Member& member = members_[turn.member];
  const ChainStep* const target = StepOf(tree, turn.member);
  const bool claims = TakesClaims(turn), counts = target != nullptr && ReadsAny(*target, turn);
  ChainTile work(*this, tree, tile, claims || SettledIn(turn) != 0 ? grants : nullptr, scratch);
  work.ForEachPart(StepsOf(tree, turn), ChunkLanes(tree), [&](size_t begin, size_t end) {
    if (!counts) return;
    const LaneTile part = work.Inputs(*target, turn, begin, end);
    const uint64_t* const granted = claims ? work.Share(member, *target, part) : nullptr;
    member.merger->Accumulate(turn.round, CoefficientsOf(*target), part, granted, scratch, accumulator, sums);
  });
}

void ChainMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  const Turn turn = TurnOf(r);
  ForEachBit(SettledIn(turn), [&](size_t j) { members_[j].settled = true; });
  try {
    members_[turn.member].merger->Finish(turn.round, accumulator, sums);
  } catch (const NoMerge& none) {
    if (turn.member + 1 == members_.size()) throw;
    throw NoMerge(std::string(none.what()) + ", in the stage '" + std::string(members_[turn.member].name) + "'");
  }
  current_ = r + 1;
}

// Of the round's own claims, and of those that are settled in it.
void ChainMerger::CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const Turn turn = TurnOf(current_);
  std::array<std::pair<const ChainStep*, Turn>, ChainTree::kMostSteps> claiming;
  size_t count = 0;
  uint64_t steps = 0;
  const auto add = [&](size_t member, const Turn& its) {
    const ChainStep* const step = StepOf(tree, member);
    if (step == nullptr) return;
    claiming[count++] = {step, its};
    steps |= InputSteps(*step, its);
  };
  ForEachBit(SettledIn(turn), [&](size_t j) {
    add(j, {j, members_[j].merger->statistics_rounds(), true});
  });
  if (TakesClaims(turn)) add(turn.member, turn);
  ChainTile work(*this, tree, tile, nullptr, scratch);
  work.ForEachPart(WithTheirInputs(tree, steps), ChunkLanes(tree), [&](size_t begin, size_t end) {
    for (const auto& [step, its] : std::span(claiming).first(count)) {
      const Member& member = members_[its.member];
      member.merger->CountClaims(CoefficientsOf(*step), work.Inputs(*step, its, begin, end), scratch,
                                 claims + member.claims_begin);
    }
  });
}

uint64_t ChainMerger::Quota(size_t claim) const {
  const Turn turn = TurnOf(current_);
  const uint64_t settled = SettledIn(turn);
  for (size_t k = 0; k < members_.size(); ++k) {
    const Member& member = members_[k];
    if (claim < member.claims_begin || claim >= member.claims_begin + member.claims) continue;
    const bool handed_out = Has(settled, k) || (k == turn.member && TakesClaims(turn));
    return handed_out ? member.merger->Quota(claim - member.claims_begin) : kNoQuota;
  }
  return kNoQuota;
}

void ChainMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                        DType type, std::byte* out, MergeCounts* counts) const {
  const ChainTree& tree = chain_.TreeOf(c);
  const ChainStep& root = tree.steps.back();
  const Member& member = members_.back();
  const Turn turn = MergeOf(root);
  const bool claims = member.ordered();
  ChainTile work(*this, tree, tile, claims || SettledIn(turn) != 0 ? grants : nullptr, scratch);
  work.ForEachPart(StepsOf(tree, turn), PieceLanes(tree), [&](size_t begin, size_t end) {
    const LaneTile part = work.Inputs(root, turn, begin, end);
    const uint64_t* const granted = claims ? work.Share(member, root, part) : nullptr;
    member.merger->Merge(CoefficientsOf(root), part, granted, scratch, type,
                         out + begin * static_cast<size_t>(LaneBytes(type)), counts);
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
  return bytes;
}

std::unique_ptr<Merger> NewChainMerger(const Chain& chain, std::vector<ChainMember> members,
                                       const std::vector<uint32_t>& trees, size_t sources) {
  return std::make_unique<ChainMerger>(chain, std::move(members), trees, sources);
}

}  // namespace braid
