// What chain_merger.cc and chain_tile.cc share. Private to them.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/chain_merger.h"
#include "ops/mergers_internal.h"

namespace braid {

// Merged at once: what three stages make of it stays in L2.
constexpr uint64_t kPieceLanes = 16 * kBlockLanes;

// What a round accumulates at once.
inline uint64_t ChunkLanes(const ChainTree& tree) {
  return tree.unit == 0 ? kReductionBlock
                        : std::min(tree.unit, std::max<uint64_t>(tree.steps.back().tensor.elements, 1));
}
inline uint64_t PieceLanes(const ChainTree& tree) { return tree.unit == 0 ? kPieceLanes : ChunkLanes(tree); }

inline size_t BufferBytes(const ChainTree& tree, const ChainStep& step) {
  return Aligned(ChunkLanes(tree) * static_cast<size_t>(LaneBytes(step.type)));
}

constexpr uint64_t Bit(size_t index) { return uint64_t{1} << index; }
inline bool Has(uint64_t set, size_t index) { return (set >> index & 1) != 0; }

template <typename Visit>
void ForEachBit(uint64_t set, Visit visit) {
  for (; set != 0; set &= set - 1) visit(static_cast<size_t>(std::countr_zero(set)));
}

// What a method says of its elements, with the stage that it is in.
template <typename Body>
void NamingStage(const ChainMember& member, Body body) {
  try {
    body();
  } catch (const NoMerge& none) {
    if (member.name.empty()) throw;
    throw NoMerge(none.what() + (", in the stage '" + std::string(member.name) + "'"));
  }
}

class ChainMerger : public Merger {
 public:
  ChainMerger(const Chain& chain, std::vector<ChainMember> members, ChainScope scope);

  size_t statistics_rounds() const override;
  RoundSpec round(size_t r) const override;
  bool Reads(size_t r, size_t source, const Coefficients& c) const override;
  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override;
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override;
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override;
  size_t claims_per_model() const override { return (claims_ + scope_.sources - 1) / scope_.sources; }
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override;
  uint64_t Quota(size_t claim) const override;
  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override;
  uint64_t entries() const override { return Reported() == nullptr ? 0 : Reported()->entries(); }
  uint64_t kept() const override { return Reported() == nullptr ? 0 : Reported()->kept(); }

  void KeepFindings(std::vector<ChainFinding>* findings) const;

 private:
  friend class ChainTile;

  struct Member : ChainMember {
    explicit Member(ChainMember&& given) : ChainMember(std::move(given)) {}

    Merger& merger() const { return *finding.merger; }
    size_t rounds() const { return merger().statistics_rounds(); }
    bool ordered() const { return merger().round(rounds()).ordered; }

    size_t claims_begin = 0, claims = 0;   // that are handed out here
    bool settled = false;                  // where its quotas end is known
  };
  // A round of the chain: one of a member's; or one that only hands quotas out; or at last the merge, of whatever makes
  // a tensor.
  struct Turn {
    enum class Kind : uint8_t { kStatistics, kQuotas, kMerge };
    Kind kind = Kind::kStatistics;
    size_t member = 0, round = 0;
    bool has_member() const { return kind == Kind::kStatistics; }
  };
  // What a step does in some turn: a round of its member.
  struct Task {
    const ChainStep* step = nullptr;   // null: nothing, the tensor has none
    size_t round = 0;
    bool merges = false;
  };
  size_t IndexOf(const ChainStep& step) const {
    return scope_.whole ? step.merger : static_cast<size_t>(&step - chain_.trees[scope_.trees.front()].steps.data());
  }
  const Member& MemberOf(const ChainStep& step) const { return members_[IndexOf(step)]; }
  const Merger* Reported() const {
    return scope_.merges ? &MemberOf(chain_.trees[scope_.trees.front()].steps.back()).merger() : nullptr;
  }
  Turn TurnOf(size_t r) const;
  bool HasQuotasTurn() const;
  RoundSpec SpecOf(const Turn& turn) const;
  Task TaskOf(const ChainTree& tree, const Turn& turn) const;
  Task MergeOf(const ChainStep& step) const { return {&step, MemberOf(step).rounds(), true}; }
  // The members whose quotas are handed out in a turn, because it is the first that merges them.
  uint64_t SettledIn(const Turn& turn) const;
  bool TakesClaims(const Turn& turn) const {
    return turn.has_member() && members_[turn.member].merger().round(turn.round).ordered;
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
    const RoundSpec spec = SpecOf(turn);
    return spec.sample ? Aligned(spec.scratch_bytes) : methods_workspace_;
  }
  size_t RoomBytes(bool with_buffers) const;

  const Chain& chain_;
  const ChainScope scope_;
  std::vector<Member> members_;
  std::vector<size_t> active_;     // of them, those with rounds here, in their order
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

}  // namespace braid
