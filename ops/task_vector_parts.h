// What a method merges task vectors to, before the base is added: a merger around the method's own that hands it, part
// by part, the task vectors as float32 over a base of zeros. For methods that add to a base this is the merged task
// vector times lambda, to the last bit (MethodInfo::HasDelta: in float32). Everything before the merge is the method's
// own.
#pragma once

#include <memory>

#include "ops/merger.h"

namespace braid {

// Elements of one tensor that are merged at once: whole rows or slices, where tiles are made of them. They take 4 bytes
// per model, and 8 more, of a worker's workspace.
uint64_t TaskVectorPart(const MethodInfo& method, const Coefficients& c, const TensorFacts& tensor);

// Where a worker keeps one part of a tile.
struct PartRoom {
  PartRoom(std::byte* bytes, size_t lanes, size_t num_models, size_t claims);
  static size_t Bytes(size_t lanes, size_t num_models, size_t claims);
  float* DeltasOf(size_t m) const { return deltas + m * stride; }

  size_t stride;                // of a model
  float *zeros, *merged, *deltas;
  EncodedLanes* models;
  uint64_t *left, *granted;     // per claim: of the tile's grants, and the part's
};

// Forwards all rounds to the method's merger; those who derive from it merge or measure otherwise.
class TaskVectorParts : public Merger {
 public:
  size_t statistics_rounds() const override { return merger_->statistics_rounds(); }
  RoundSpec round(size_t r) const override { return merger_->round(r); }
  bool Reads(size_t r, size_t m, const Coefficients& c) const override { return merger_->Reads(r, m, c); }

  ModelStatistics Statistics(size_t m) const override { return merger_->Statistics(m); }
  std::vector<BinCount> TakeHighHalves(size_t m) override { return merger_->TakeHighHalves(m); }
  void UseStatistics(std::span<const ModelStatistics> known) override { merger_->UseStatistics(known); }

  std::unique_ptr<Accumulator> NewAccumulator(size_t r) const override { return merger_->NewAccumulator(r); }
  void Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                  Accumulator* accumulator, BlockSums sums) const override {
    merger_->Accumulate(r, c, tile, grants, scratch, accumulator, sums);
  }
  void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) override {
    merger_->Finish(r, accumulator, sums);
  }

  size_t claims_per_model() const override { return merger_->claims_per_model(); }
  void CountClaims(const Coefficients& c, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const override {
    merger_->CountClaims(c, tile, scratch, claims);
  }
  uint64_t Quota(size_t claim) const override { return merger_->Quota(claim); }

  uint64_t entries() const override { return merger_->entries(); }
  uint64_t kept() const override { return merger_->kept(); }
  TaskVectorNorms norms() const override { return merger_->norms(); }

 protected:
  // `largest_part`: the largest TaskVectorPart of the scope's tensors.
  TaskVectorParts(const MethodInfo& method, size_t num_models, uint64_t largest_part, std::unique_ptr<Merger> merger)
      : method_(method), num_models_(num_models), largest_part_(largest_part), merger_(std::move(merger)) {}

  const Merger& merger() const { return *merger_; }
  const MethodInfo& method() const { return method_; }
  size_t num_models() const { return num_models_; }

  // A round that goes through the parts, with what it needs of the workspace.
  RoundSpec WithRoom(RoundSpec spec) const;

  // Points room.models at the task vectors. ForEachPart begins with it.
  void ExposeDeltas(const LaneTile& tile, const PartRoom& room) const;

  // visit(part, begin, room) for each part of the tile, in order: lanes over zeros, ready for merger().Merge with
  // room.granted; `begin` is the part's first lane in the tile. `grants`: those of the tile.
  template <typename Visit>
  void ForEachPart(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch,
                   Visit visit) const {
    const uint64_t lanes = TaskVectorPart(method_, c, tile.tensor);
    const PartRoom room = Enter(tile, grants, lanes, scratch);
    for (size_t begin = 0, end; begin < tile.count; begin = end) {
      end = begin + static_cast<size_t>(lanes < tile.count - begin ? lanes : tile.count - begin);
      visit(PartOf(c, tile, begin, end, scratch, room), begin, room);
    }
  }

 private:
  size_t Claims() const { return num_models_ * merger_->claims_per_model(); }
  PartRoom Enter(const LaneTile& tile, const uint64_t* grants, uint64_t lanes, Scratch& scratch) const;
  LaneTile PartOf(const Coefficients& c, const LaneTile& tile, size_t begin, size_t end, Scratch& scratch,
                  const PartRoom& room) const;

  const MethodInfo& method_;
  size_t num_models_;
  uint64_t largest_part_;
  std::unique_ptr<Merger> merger_;
};

}  // namespace braid
