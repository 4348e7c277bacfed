#include "ops/task_vector_merger.h"

#include <algorithm>
#include <cstring>

#include "ops/non_finite.h"

namespace braid {

const float* TaskVectorAt(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch) {
  DecodeLanesAt(tile.base, start, n, scratch.base);
  DecodeDelta(tile, m, start, n, scratch);
  return scratch.models[m];
}

size_t CollectKeysAt(const LaneTile& tile, size_t m, size_t start, size_t n, uint32_t low, uint32_t high,
                     Scratch& scratch, uint32_t* keys, uint32_t* places, uint64_t* above) {
  const EncodedLanes &base = tile.base, &model = tile.models[m];
  if (base.type != model.type || base.type == DType::kF64)
    return CollectKeys(TaskVectorAt(tile, m, start, n, scratch), n, low, high, keys, places, above);
  const size_t at = start * static_cast<size_t>(LaneBytes(base.type));
  return CollectTaskVectorKeys(base.type, base.bytes + at, model.bytes + at, n, low, high, keys, places, above);
}

TaskVectorMerger::TaskVectorMerger(const MethodInfo& method, const Coefficients& c, uint64_t elements,
                                   Approach approach)
    : rule_(method, method.name == "ties", c), density_(method.IndexOf("density")),
      rescale_(Shared(c, method.IndexOf("rescale"), 0) != 0),
      keep_equals_(Shared(c, method.IndexOf("ties_at_threshold"), 0) != 0),
      signs_(rule_.elects() && Shared(c, method.IndexOf("zero_sign"), 0) != 0), approach_(approach),
      elements_(elements), trims_(c.model.size()) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (WeightOf(c, m) == 0) continue;  // takes no part anywhere in this scope
    ++active_;
    const double density = density_ < 0 ? 1.0 : c.model[m][static_cast<size_t>(density_)];
    trim.keep = KeptCount(density, elements);
    // The paper's code keeps the entries >= the (n - int(density n))-th smallest: one more, and all equals.
    if (keep_equals_ && trim.keep > 0 && density < 1)
      trim.keep = std::min(elements, static_cast<uint64_t>(density * static_cast<double>(elements)) + 1);
    if (trim.keep == 0) trim.cut = {kNanKey, 0};
    else if (trim.keep < elements) trim.asked = trim.keep;
  }
  // rescale needs sums over all entries, which only the histograms' passes take.
  if (rescale_) approach_ = Approach::kPlain;
  // A draft needs to know what a drawn vote elects; its indices are 32 bits wide.
  if (approach_ == Approach::kDraft && (signs_ || elements >= UINT32_MAX)) approach_ = Approach::kPlain;
  ChooseSteps();
}

void TaskVectorMerger::ChooseSteps() {
  bool bins_known = true;
  slots_ = 0;
  ordered_possible_ = false;
  for (Trim& trim : trims_) {
    trim.slot = trim.asked == 0 || trim.found ? -1 : static_cast<int>(slots_++);
    bins_known &= trim.slot < 0 || trim.bin_known;
    ordered_possible_ |= trim.slot < 0 ? trim.quota != kNoQuota : !keep_equals_;
  }
  steps_.clear();
  sampled_by_index_ = approach_ == Approach::kDraft && !keep_equals_;
  if (slots_ > 0) {
    if (approach_ == Approach::kDraft) steps_ = {Step::kSample, Step::kDraft};
    if (approach_ == Approach::kDraft && elements_ <= kFewElements) steps_ = {Step::kDraft};
    if (approach_ == Approach::kSampled) steps_ = {Step::kSample, Step::kInside};
    if (approach_ == Approach::kPlain) steps_ = {Step::kHighHalves, Step::kLowHalves};
    if (approach_ != Approach::kDraft && bins_known) steps_ = {Step::kLowHalves};
  }
  if (signs_) steps_.push_back(Step::kSigns);
  steps_.push_back(Step::kMerge);
}

ModelStatistics TaskVectorMerger::Statistics(size_t m) const {
  const Trim& trim = trims_[m];
  ModelStatistics known{.asked = trim.asked, .keep_equals = keep_equals_};
  if (!trim.found) return known;
  known.has_threshold = true;
  known.all_zero = trim.all_zero;
  known.cut = trim.cut, known.quota = trim.quota, known.kept = trim.keep;
  known.has_norm = known.has_kept_norm = rescale_;
  known.norm = trim.norm, known.kept_norm = trim.kept_norm;
  return known;
}

void TaskVectorMerger::UseStatistics(std::span<const ModelStatistics> known) {
  keep_high_halves_ = true;
  const auto answers = [&](size_t m) {
    return m < known.size() && known[m].has_threshold && known[m].asked == trims_[m].asked &&
           known[m].keep_equals == keep_equals_ && (!rescale_ || (known[m].has_norm && known[m].has_kept_norm));
  };
  bool all = true;
  for (size_t m = 0; m < trims_.size(); ++m) all &= trims_[m].asked == 0 || answers(m);
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.asked == 0 || m >= known.size()) continue;
    const ModelStatistics& its = known[m];
    trim.norm = its.norm;
    if (its.has_bin && (!rescale_ || its.has_norm)) trim.bin_known = true, trim.bin = its.bin;
    // A draft reads everything once in any case, and wants brackets for all or none.
    if (!answers(m) || (approach_ == Approach::kDraft && !all)) continue;
    trim.found = true, trim.all_zero = its.all_zero;
    trim.keep = its.kept, trim.cut = its.cut, trim.quota = its.quota, trim.kept_norm = its.kept_norm;
    if (rescale_) trim.factor = RescaleFactor(trim.norm, trim.kept_norm);
  }
  ChooseSteps();
}

bool TaskVectorMerger::Reads(size_t r, size_t model, const Coefficients& c) const {
  const Trim& trim = trims_[model];
  if (steps_[r] == Step::kHighHalves) return trim.slot >= 0 && !trim.bin_known;
  if (steps_[r] < Step::kDraft) return trim.slot >= 0;
  // Entries of zero add nothing to a vote, nor their weight to its divisor.
  if (trim.slot < 0 && trim.all_zero) return false;
  // With weight 0 in this tensor only (model scope), its entries still use up quota.
  return WeightOf(c, model) != 0 || (trim.slot < 0 ? trim.quota != kNoQuota : ordered_possible_);
}

void TaskVectorMerger::CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch,
                                   uint64_t* claims) const {
  for (size_t m = 0; m < trims_.size(); ++m) {
    if (tile.models[m].bytes == nullptr || trims_[m].quota == kNoQuota) continue;
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      claims[m] += CountKey(TaskVectorAt(tile, m, start, n, scratch), n, trims_[m].cut.key);
    }
  }
}

// Where each model's entries end that stay, for the indices of this tile.
void TaskVectorMerger::FindCuts(const LaneTile& tile, const uint64_t* grants, Scratch& scratch) const {
  scratch.cuts.clear();
  for (const Trim& trim : trims_) scratch.cuts.push_back(trim.cut);
  for (size_t m = 0; m < trims_.size(); ++m) {
    const Trim& trim = trims_[m];
    if (trim.quota == kNoQuota) continue;
    uint64_t& cut = scratch.cuts[m].index;
    cut = grants[m] == kNoQuota ? UINT64_MAX : 0;
    if (cut > 0 || tile.models[m].bytes == nullptr) continue;
    uint64_t left = grants[m];
    for (size_t start = 0; left > 0 && start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      const float* d = TaskVectorAt(tile, m, start, n, scratch);
      const uint64_t here = CountKey(d, n, trim.cut.key);
      if (here < left) {
        left -= here;
        continue;
      }
      for (size_t i = 0; left > 0; ++i)
        if (CountKey(d + i, 1, trim.cut.key) != 0 && --left == 0) cut = tile.first + start + i + 1;
    }
  }
}

void TaskVectorMerger::DecodeBlock(const LaneTile& tile, size_t start, size_t n, Scratch& scratch) const {
  DecodeLanesAt(tile.base, start, n, scratch.base);
  for (size_t m : scratch.voters) DecodeLanesAt(tile.models[m], start, n, scratch.models[m]);
}

TaskVectorBlock TaskVectorMerger::BlockFor(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const {
  TaskVectorBlock block = rule_.BlockFor(c, tile, scratch);
  block.zero_elects_minus = zero_elects_minus_;
  if (!rescale_) return block;
  scratch.factors.clear();
  for (size_t m : scratch.voters) scratch.factors.push_back(trims_[m].factor);
  block.factor = scratch.factors.data();
  return block;
}

void TaskVectorMerger::UseEncoded(const LaneTile& tile, size_t start, Scratch& scratch, TaskVectorBlock* block) const {
  const auto at = [&](const EncodedLanes& source) {
    return source.bytes + start * static_cast<size_t>(LaneBytes(source.type));
  };
  block->base = at(tile.base);
  for (size_t v = 0; v < scratch.voters.size(); ++v) scratch.sources[v] = at(tile.models[scratch.voters[v]]);
}

void TaskVectorMerger::UseLanes(Scratch& scratch, TaskVectorBlock* block) const {
  block->base = scratch.base;
  for (size_t v = 0; v < scratch.voters.size(); ++v) scratch.sources[v] = scratch.models[scratch.voters[v]];
}

// The type of all sources that vote; F64, which has no kernel of its own, when they differ.
DType TaskVectorMerger::CommonType(const LaneTile& tile, const Scratch& scratch) const {
  for (size_t m : scratch.voters)
    if (tile.models[m].type != tile.base.type) return DType::kF64;
  return tile.base.type;
}

// Elements that no model changed: copies the base to `out`, and true. Only where that is what merging gives, which NaN
// and infinities are not. Where a model did change something, the first difference is soon found.
bool TaskVectorMerger::KeepsBase(const LaneTile& tile, size_t start, size_t n, DType from, DType to,
                                 const Scratch& scratch, std::byte* out) const {
  if (from != to || from == DType::kF64) return false;
  const auto size = static_cast<size_t>(LaneBytes(from));
  const std::byte* const base = tile.base.bytes + start * size;
  for (size_t m : scratch.voters)
    if (std::memcmp(tile.models[m].bytes + start * size, base, n * size) != 0) return false;
  NonFinite bad;
  CountNonFinite(from, base, n, &bad);
  if (bad.nan + bad.inf > 0) return false;
  std::memcpy(out, base, n * size);
  return true;
}

void TaskVectorMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                             DType type, std::byte* out, MergeCounts* counts) const {
  TaskVectorBlock block = BlockFor(c, &tile, scratch);
  const DType from = CommonType(tile, scratch);
  FindCuts(tile, grants, scratch);
  VoteCounts votes;
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    ForEachSegment(tile, start, std::min(kBlockLanes, tile.count - start), scratch, [&](size_t at, size_t n) {
      std::byte* const bytes = out + at * static_cast<size_t>(LaneBytes(type));
      if (KeepsBase(tile, at, n, from, type, scratch, bytes)) return;
      UseEncoded(tile, at, scratch, &block);
      if (MergeEncoded(block, from, type, n, bytes, &votes, nullptr)) return;
      DecodeBlock(tile, at, n, scratch);
      UseLanes(scratch, &block);
      MergeTaskVectors(block, n, scratch.room, scratch.out, nullptr, &votes);
      EncodeLanes(type, scratch.out, n, bytes, &counts->non_finite);
    });
  }
  counts->conflicts += votes.conflicts;
}

uint64_t TaskVectorMerger::kept() const {
  uint64_t sum = 0;
  for (const Trim& trim : trims_) sum += trim.keep;
  return sum;
}

}  // namespace braid
