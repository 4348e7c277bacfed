#include "ops/measured_merger.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "ops/mergers_internal.h"

namespace braid {
namespace {

// Task vectors of three models and what they are merged to stay in L2.
constexpr uint64_t kPartLanes = 8 * kBlockLanes;
constexpr size_t kAlignment = 128;

constexpr size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

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

// Where a worker keeps one part of a tile.
struct PartRoom {
  PartRoom(std::byte* bytes, size_t lanes, size_t num_models, size_t claims) : stride(Lanes(lanes)) {
    const auto take = [&](size_t size) { return std::exchange(bytes, bytes + Aligned(size)); };
    zeros = reinterpret_cast<float*>(take(stride * sizeof(float)));
    merged = reinterpret_cast<float*>(take(stride * sizeof(float)));
    deltas = reinterpret_cast<float*>(take(num_models * stride * sizeof(float)));
    models = reinterpret_cast<EncodedLanes*>(take(num_models * sizeof(EncodedLanes)));
    left = reinterpret_cast<uint64_t*>(take(claims * sizeof(uint64_t)));
    granted = reinterpret_cast<uint64_t*>(take(claims * sizeof(uint64_t)));
  }
  static size_t Bytes(size_t lanes, size_t num_models, size_t claims) {
    return (num_models + 2) * Lanes(lanes) * sizeof(float) + Aligned(num_models * sizeof(EncodedLanes)) +
           2 * Aligned(claims * sizeof(uint64_t));
  }
  float* DeltasOf(size_t m) const { return deltas + m * stride; }

  size_t stride;                // of a model
  float *zeros, *merged, *deltas;
  EncodedLanes* models;
  uint64_t *left, *granted;     // per claim: of the tile's grants, and the part's

 private:
  static size_t Lanes(size_t lanes) { return Aligned((lanes + kLanePadding) * sizeof(float)) / sizeof(float); }
};

class MeasuredMerger : public Merger {
 public:
  MeasuredMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part, std::unique_ptr<Merger> merger)
      : method_(method), weight_(method.IndexOf("weight")), num_models_(num_models), largest_part_(largest_part),
        merger_(std::move(merger)) {}

  size_t statistics_rounds() const override { return NormsRound() + 1; }
  RoundSpec round(size_t r) const override {
    const RoundSpec spec = merger_->round(std::min(r, NormsRound()));
    if (r != NormsRound()) return spec;
    return {.name = "norms", .sums = 2, .ordered = spec.ordered,
            .scratch_bytes = Aligned(spec.scratch_bytes) + PartRoom::Bytes(largest_part_, num_models_, Claims())};
  }
  bool Reads(size_t r, size_t m, const Coefficients& c) const override {
    return merger_->Reads(std::min(r, NormsRound()), m, c) || (r == NormsRound() && HasWeight(m, c));
  }

  ModelStatistics Statistics(size_t m) const override { return merger_->Statistics(m); }
  std::vector<BinCount> TakeHighHalves(size_t m) override { return merger_->TakeHighHalves(m); }
  void UseStatistics(std::span<const ModelStatistics> known) override { merger_->UseStatistics(known); }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override {
    return r == NormsRound() ? nullptr : merger_->NewAccumulator(r);
  }
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override {
    if (r == NormsRound()) Measure(c, tile, grants, scratch, sums);
    else merger_->Accumulate(r, c, tile, grants, scratch, accumulator, sums);
  }
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override {
    if (r == NormsRound()) norms_ = {.mean = sums[0], .merged = sums[1]};
    else merger_->Finish(r, accumulator, sums);
  }

  size_t claims_per_model() const override { return merger_->claims_per_model(); }
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override {
    merger_->CountClaims(c, tile, scratch, claims);
  }
  uint64_t Quota(size_t claim) const override { return merger_->Quota(claim); }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    merger_->Merge(c, tile, grants, scratch, type, out, counts);
  }

  uint64_t entries() const override { return merger_->entries(); }
  uint64_t kept() const override { return merger_->kept(); }
  TaskVectorNorms norms() const override { return norms_; }

 private:
  // Behind those of the method, which may become more.
  size_t NormsRound() const { return merger_->statistics_rounds(); }
  size_t Claims() const { return num_models_ * merger_->claims_per_model(); }
  bool HasWeight(size_t m, const Coefficients& c) const {
    return weight_ < 0 || c.model[m][static_cast<size_t>(weight_)] != 0;
  }

  void Measure(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
               BlockSums sums) const;
  void DecodePart(const LaneTile& tile, size_t begin, size_t end, Scratch& scratch, const PartRoom& room) const;
  void MergePart(const Coefficients& c, const LaneTile& part, Scratch& scratch, const PartRoom& room) const;

  const MethodInfo& method_;
  int weight_;   // index of the parameter; -1: the method has none
  size_t num_models_;
  uint64_t largest_part_;
  std::unique_ptr<Merger> merger_;
  TaskVectorNorms norms_;
};

// Task vectors of the lanes begin .. end, to the front of the room.
void MeasuredMerger::DecodePart(const LaneTile& tile, size_t begin, size_t end, Scratch& scratch,
                                const PartRoom& room) const {
  for (size_t start = begin; start < end; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, end - start);
    DecodeLanesAt(tile.base, start, n, scratch.base);
    for (size_t m = 0; m < num_models_; ++m) {
      const EncodedLanes& source = tile.models[m];
      if (source.bytes == nullptr) continue;
      DecodeTaskVector(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), scratch.base, n,
                       room.DeltasOf(m) + (start - begin));
    }
  }
}

// Of task vectors over a base of zeros the merge is the merged task vector itself, to the last bit. Equal entries at a
// threshold come in order of the index, so a part gets what it claims of the tile's grants while there are any.
void MeasuredMerger::MergePart(const Coefficients& c, const LaneTile& part, Scratch& scratch,
                               const PartRoom& room) const {
  const size_t claims = Claims();
  std::fill_n(room.granted, claims, 0);
  if (std::any_of(room.left, room.left + claims, [](uint64_t left) { return left > 0; }))
    merger_->CountClaims(c, part, scratch, room.granted);
  for (size_t i = 0; i < claims; ++i) {
    room.granted[i] = std::min(room.granted[i], room.left[i]);
    room.left[i] -= room.granted[i];
  }
  MergeCounts uncounted;
  merger_->Merge(c, part, room.granted, scratch, DType::kF32, reinterpret_cast<std::byte*>(room.merged), &uncounted);
}

void MeasuredMerger::Measure(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                             BlockSums sums) const {
  const RoundSpec merge = merger_->round(NormsRound());
  const uint64_t tile_unit = method_.TileUnit(c, tile.tensor), unit = tile_unit == 0 ? kReductionBlock : tile_unit;
  const uint64_t part_lanes = MeasuredPart(method_, c, tile.tensor);
  const PartRoom room(scratch.workspace + Aligned(merge.scratch_bytes), largest_part_, num_models_, Claims());
  std::fill_n(room.zeros, part_lanes + kLanePadding, 0.0f);
  std::fill_n(room.left, Claims(), 0);
  if (merge.ordered) std::copy_n(grants, Claims(), room.left);
  size_t meant = 0;
  for (size_t m = 0; m < num_models_; ++m) {
    room.models[m] = {};
    if (tile.models[m].bytes == nullptr) continue;
    room.models[m] = {.type = DType::kF32, .bytes = reinterpret_cast<const std::byte*>(room.DeltasOf(m))};
    meant += HasWeight(m, c);
  }
  double* const first = sums.data + tile.first / unit;
  UnitNorms mean(unit, static_cast<double>(meant), first), merged(unit, 1, first + sums.stride);
  for (size_t begin = 0, end; begin < tile.count; begin = end) {
    end = static_cast<size_t>(std::min<uint64_t>(begin + part_lanes, tile.count));
    DecodePart(tile, begin, end, scratch, room);
    if (meant > 0) {
      ForEachPiece(begin, end, unit, [&](size_t start, size_t n) {
        scratch.present.clear(), scratch.weights.clear();
        for (size_t m = 0; m < num_models_; ++m) {
          if (tile.models[m].bytes == nullptr || !HasWeight(m, c)) continue;
          scratch.present.push_back(room.DeltasOf(m) + (start - begin));
          scratch.weights.push_back(1.0f);
        }
        WeightedSum(scratch.present.data(), meant, scratch.weights.data(), false, 1.0f, n, scratch.out);
        mean.Add(scratch.out, n);
      });
    }
    const LaneTile part{.first = tile.first + begin, .count = end - begin, .tensor = tile.tensor,
                        .base = {.type = DType::kF32, .bytes = reinterpret_cast<const std::byte*>(room.zeros)},
                        .models = {room.models, num_models_}};
    MergePart(c, part, scratch, room);
    ForEachPiece(begin, end, unit, [&](size_t start, size_t n) { merged.Add(room.merged + (start - begin), n); });
  }
  mean.Close(), merged.Close();
}

}  // namespace

uint64_t MeasuredPart(const MethodInfo& method, const Coefficients& c, const TensorFacts& tensor) {
  // Of whole rows or slices: what is found of columns is known by now, and slices are merged one by one.
  const uint64_t tile_unit = method.TileUnit(c, tensor), unit = tile_unit == 0 || method.WorksByRows(c) ? tile_unit : tensor.slice;
  const uint64_t part = unit == 0 ? kPartLanes : std::max<uint64_t>(kPartLanes / unit, 1) * unit;
  return std::min(part, std::max<uint64_t>(tensor.elements, 1));
}

std::unique_ptr<Merger> NewMeasuredMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part,
                                          std::unique_ptr<Merger> merger) {
  return std::make_unique<MeasuredMerger>(method, num_models, largest_part, std::move(merger));
}

}  // namespace braid
