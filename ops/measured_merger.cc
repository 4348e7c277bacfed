#include "ops/measured_merger.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "ops/mergers_internal.h"
#include "ops/task_vector_parts.h"

namespace braid {
namespace {

void DropNonFinite(float* lanes, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const bool finite = (std::bit_cast<uint32_t>(lanes[i]) & 0x7fffffff) < 0x7f800000;
    lanes[i] = finite ? lanes[i] : 0.0f;
  }
}

// Adds up the magnitudes of a tile, piece by piece, and leaves a sum per unit.
class UnitNorms {
 public:
  // `sums`: from the tile's first unit on. Each is divided by `divisor`.
  UnitNorms(uint64_t unit, double divisor, double* sums) : unit_(unit), divisor_(divisor), sums_(sums) {}

  // Lanes of one unit, behind those that were added before. What is not finite is set to 0.
  void Add(float* lanes, size_t n) {
    DropNonFinite(lanes, n);
    AddMagnitudes(lanes, n, -1, partial_);
    added_ += n;
    if (added_ == unit_) Close();
  }
  // At the end of the tile: the end of a tensor's last unit.
  void Close() {
    if (added_ == 0) return;
    *sums_++ = FoldSums(partial_) / divisor_;
    std::fill_n(partial_, kSumLanes, 0.0);
    added_ = 0;
  }

 private:
  uint64_t unit_;
  double divisor_;
  double* sums_;
  uint64_t added_ = 0;
  double partial_[kSumLanes] = {};
};

// visit(start, n) for lanes begin .. end of a tile: pieces of at most a block, each within one unit.
template <typename Visit>
void ForEachPiece(size_t begin, size_t end, uint64_t unit, Visit visit) {
  for (size_t start = begin, n; start < end; start += n) {
    n = static_cast<size_t>(std::min<uint64_t>({kBlockLanes, end - start, unit - start % unit}));
    visit(start, n);
  }
}

class MeasuredMerger : public TaskVectorParts {
 public:
  MeasuredMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part, std::unique_ptr<Merger> merger)
      : TaskVectorParts(method, num_models, largest_part, std::move(merger)), weight_(method.IndexOf("weight")) {}

  size_t statistics_rounds() const override { return NormsRound() + 1; }
  RoundSpec round(size_t r) const override {
    const RoundSpec spec = merger().round(std::min(r, NormsRound()));
    if (r != NormsRound()) return spec;
    return WithRoom({.name = "norms", .sums = 2, .ordered = spec.ordered, .scratch_bytes = spec.scratch_bytes});
  }
  bool Reads(size_t r, size_t m, const Coefficients& c) const override {
    return merger().Reads(std::min(r, NormsRound()), m, c) || (r == NormsRound() && HasWeight(m, c));
  }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override {
    return r == NormsRound() ? nullptr : merger().NewAccumulator(r);
  }
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override {
    if (r == NormsRound()) Measure(c, tile, grants, scratch, sums);
    else TaskVectorParts::Accumulate(r, c, tile, grants, scratch, accumulator, sums);
  }
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override {
    if (r == NormsRound()) norms_ = {.mean = sums[0], .merged = sums[1]};
    else TaskVectorParts::Finish(r, accumulator, sums);
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    merger().Merge(c, tile, grants, scratch, type, out, counts);
  }
  TaskVectorNorms norms() const override { return norms_; }

 private:
  // Behind those of the method, which may become more.
  size_t NormsRound() const { return merger().statistics_rounds(); }
  bool HasWeight(size_t m, const Coefficients& c) const {
    return weight_ < 0 || c.model[m][static_cast<size_t>(weight_)] != 0;
  }
  void Measure(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
               BlockSums sums) const;

  int weight_;   // index of the parameter; -1: the method has none
  TaskVectorNorms norms_;
};

void MeasuredMerger::Measure(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                             BlockSums sums) const {
  const uint64_t tile_unit = method().TileUnit(c, tile.tensor), unit = tile_unit == 0 ? kReductionBlock : tile_unit;
  const auto is_meant = [&](size_t m) { return tile.models[m].bytes != nullptr && HasWeight(m, c); };
  size_t meant = 0;
  for (size_t m = 0; m < num_models(); ++m) meant += is_meant(m);
  double* const first = sums.data + tile.first / unit;
  UnitNorms mean(unit, static_cast<double>(meant), first), merged(unit, 1, first + sums.stride);
  ForEachPart(c, tile, grants, scratch, [&](const LaneTile& part, size_t begin, const PartRoom& room) {
    const size_t end = begin + part.count;
    if (meant > 0) {
      ForEachPiece(begin, end, unit, [&](size_t start, size_t n) {
        scratch.present.clear(), scratch.weights.clear();
        for (size_t m = 0; m < num_models(); ++m) {
          if (!is_meant(m)) continue;
          scratch.present.push_back(room.DeltasOf(m) + (start - begin));
          scratch.weights.push_back(1.0f);
        }
        WeightedSum(scratch.present.data(), meant, scratch.weights.data(), false, 1.0f, n, scratch.out);
        mean.Add(scratch.out, n);
      });
    }
    MergeCounts uncounted;
    merger().Merge(c, part, room.granted, scratch, DType::kF32, reinterpret_cast<std::byte*>(room.merged), &uncounted);
    ForEachPiece(begin, end, unit, [&](size_t start, size_t n) { merged.Add(room.merged + (start - begin), n); });
  });
  mean.Close(), merged.Close();
}

}  // namespace

std::unique_ptr<Merger> NewMeasuredMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part,
                                          std::unique_ptr<Merger> merger) {
  return std::make_unique<MeasuredMerger>(method, num_models, largest_part, std::move(merger));
}

}  // namespace braid
