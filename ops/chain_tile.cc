// One tile on its way through the steps of a chain.
#include <stdexcept>
#include <utility>

#include "ops/chain_internal.h"

namespace braid {

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
  const ChainMerger::Member& member = chain_.MemberOf(step);
  const LaneTile part = Inputs(chain_.MergeOf(step), begin, end);
  const uint64_t* const grants = member.ordered() ? GrantsOf(step, part) : nullptr;
  NamingStage(member, [&] {
    member.merger().Merge(chain_.CoefficientsOf(step), part, grants, scratch_, type, out, counts);
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
  const ChainMerger::Member& member = chain_.MemberOf(step);
  const QuotaEnd here{tree_.order, part.first};
  if (member.settled) {
    for (size_t i = 0; i < member.claims; ++i) {
      const QuotaEnd& end = member.finding.ends[i];
      const bool last = end.order == here.order && end.first == here.first;
      granted_[i] = last ? end.granted : here < end ? Merger::kNoQuota : 0;
    }
    return granted_;
  }
  if (!handed_out_) throw std::logic_error("a claim that depends on one of the same round");
  GrantPart(member.merger(), chain_.CoefficientsOf(step), part, scratch_, {left_ + member.claims_begin, member.claims},
            granted_);
  for (size_t i = 0; ends_ != nullptr && i < member.claims; ++i) {
    QuotaEnd& end = ends_[member.claims_begin + i];
    if (granted_[i] > 0) end = std::max(end, {here.order, here.first, granted_[i]});
  }
  return granted_;
}

}  // namespace braid
