#include "ops/sparse_merger.h"

#include "ops/sparsify.h"
#include "ops/task_vector_merger.h"

namespace braid {

SparseMerger::SparseMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope,
                           bool by_rows)
    : rule_(method, elect, c), parts_(c.model.size()), elements_(scope.elements), row_(std::max<size_t>(scope.row, 1)),
      by_rows_(by_rows), rescale_(c.shared[method.At("rescale")] != 0) {
  const auto density = method.At("density");
  for (size_t m = 0; m < parts_.size(); ++m) {
    parts_[m] = {.density = c.model[m][density], .active = rule_.WeightOf(c, m) != 0, .slot = sparse_models_};
    sparse_models_ += sparse(m);
  }
}

RoundSpec SparseMerger::round(size_t r) const {
  const bool merges = r == statistics_rounds();
  return {.name = merges ? "merge" : "norms", .sums = merges ? 0 : 2 * parts_.size(),
          .ordered = ordered() && !(merges && decisions_), .scratch_bytes = scratch_bytes()};
}

bool SparseMerger::Reads(size_t r, size_t model, const Coefficients&) const {
  return r == statistics_rounds() ? active(model) : sparse(model);
}

// Sums are taken per row, or per reduction block; quantities are, model by model, the norm before and after.
void SparseMerger::SumNorms(const LaneTile& tile, size_t m, const LaneUnit& unit, Scratch& scratch,
                            BlockSums sums) const {
  const size_t part = by_rows_ ? row_ : kReductionBlock;
  for (size_t begin = unit.start, end; begin < unit.start + unit.count; begin = end) {
    end = std::min(begin + part, unit.start + unit.count);
    double all[kSumLanes] = {}, kept[kSumLanes] = {};
    for (size_t start = begin; start < end; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, end - start);
      TaskVectorAt(tile, m, start, n, scratch);
      AddMagnitudes(scratch.models[m], n, -1, all);
      Keep(tile, m, unit, start, n, scratch, scratch.models[m]);
      AddMagnitudes(scratch.models[m], n, -1, kept);
      if (decisions_) FindNonZeros(scratch.models[m], n, DecisionsAt(m, tile.first + start));
    }
    double* const to = sums.data + (tile.first + begin) / part;
    to[2 * m * sums.stride] = FoldSums(all), to[(2 * m + 1) * sums.stride] = FoldSums(kept);
  }
}

void SparseMerger::Accumulate(size_t, const Coefficients&, const LaneTile& tile, const uint64_t* grants,
                              Scratch& scratch, Accumulator*, BlockSums sums) const {
  ForEachUnit(tile, [&](const LaneUnit& unit) {
    Prepare(tile, grants, unit, scratch);
    for (size_t m = 0; m < parts_.size(); ++m)
      if (tile.models[m].bytes != nullptr && sparse(m)) SumNorms(tile, m, unit, scratch, sums);
  });
}

void SparseMerger::Finish(size_t, Accumulator*, std::span<const double> sums) {
  for (size_t m = 0; m < parts_.size(); ++m)
    if (sparse(m)) parts_[m].factor = RescaleFactor(sums[2 * m], sums[2 * m + 1]);
}

uint64_t SparseMerger::DecisionBytes() const {
  const bool whole_words = !by_rows_ || row_ % 64 == 0;   // tiles are written side by side
  return norms_ && whole_words ? sparse_models_ * WordsPerModel() * sizeof(uint64_t) : 0;
}

// Left as it is until the norms are summed: memory that nobody has touched takes none.
void SparseMerger::KeepDecisions() {
  decisions_ = std::make_unique_for_overwrite<uint64_t[]>(sparse_models_ * WordsPerModel());
}

TaskVectorBlock SparseMerger::BlockOf(const Coefficients& c, const LaneTile* tile, Scratch& scratch) const {
  static constexpr float kZeros[kBlockLanes + kLanePadding] = {};
  TaskVectorBlock block = rule_.BlockFor(c, tile, scratch);
  scratch.factors.clear();
  for (size_t m : scratch.voters) scratch.factors.push_back(parts_[m].factor);
  block.base = kZeros;
  block.factor = rescale_ ? scratch.factors.data() : nullptr;
  for (size_t v = 0; v < scratch.voters.size(); ++v) scratch.sources[v] = scratch.models[scratch.voters[v]];
  return block;
}

void SparseMerger::MergeLanes(const TaskVectorBlock& block, size_t n, Scratch& scratch, DType type, std::byte* out,
                              VoteCounts* votes, NonFinite* non_finite) const {
  MergeTaskVectors(block, n, scratch.room, scratch.out, nullptr, votes);
  AddTaskVector(scratch.base, scratch.out, n, scratch.out);
  EncodeLanes(type, scratch.out, n, out, non_finite);
}

void SparseMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                         DType type, std::byte* out, MergeCounts* counts) const {
  const TaskVectorBlock block = BlockOf(c, &tile, scratch);
  VoteCounts votes;
  ForEachUnit(tile, [&](const LaneUnit& unit) {
    if (!decisions_) Prepare(tile, grants, unit, scratch);
    for (size_t start = unit.start, n; start < unit.start + unit.count; start += n) {
      n = std::min(kBlockLanes, unit.start + unit.count - start);
      DecodeLanesAt(tile.base, start, n, scratch.base);
      for (size_t m : scratch.voters) {
        DecodeDelta(tile, m, start, n, scratch);
        if (sparse(m) && decisions_) KeepBits(DecisionsAt(m, tile.first + start), 0, n, scratch.models[m]);
        else if (sparse(m)) Keep(tile, m, unit, start, n, scratch, scratch.models[m]);
      }
      MergeLanes(block, n, scratch, type, out + start * static_cast<size_t>(LaneBytes(type)), &votes,
                 &counts->non_finite);
    }
  });
  counts->conflicts += votes.conflicts;
}

}  // namespace braid
