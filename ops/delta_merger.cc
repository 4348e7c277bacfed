#include "ops/delta_merger.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/delta_blocks.h"
#include "ops/mergers_internal.h"
#include "ops/task_vector_parts.h"

namespace braid {
namespace {

class DeltaMerger : public TaskVectorParts {
 public:
  DeltaMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part, std::unique_ptr<Merger> merger)
      : TaskVectorParts(method, num_models, largest_part, std::move(merger)) {}

  RoundSpec round(size_t r) const override {
    const RoundSpec spec = merger().round(r);
    return r == statistics_rounds() ? WithRoom(spec) : spec;
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t* grants, Scratch& scratch, DType type,
             std::byte* out, MergeCounts* counts) const override {
    ForEachPart(c, tile, grants, scratch, [&](const LaneTile& part, size_t begin, const PartRoom& room) {
      std::byte* const to = out + begin * static_cast<size_t>(LaneBytes(type));
      merger().Merge(c, part, room.granted, scratch, type, to, counts);
      if (HasInfinity(tile.base, begin, part.count, scratch))
        MendInfinite(c, tile, part, begin, room, scratch, type, to, counts);
    });
  }

 private:
  static bool HasInfinity(const EncodedLanes& base, size_t begin, size_t count, Scratch& scratch) {
    for (size_t start = 0; start < count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, count - start);
      DecodeLanesAt(base, begin + start, n, scratch.base);
      if (std::any_of(scratch.base, scratch.base + n, [](float lane) { return std::isinf(lane); })) return true;
    }
    return false;
  }

  // An infinite element of the base less itself is NaN, where the method may know better: it sees that no model moved.
  // Its result is the base or NaN; so the merge itself says which.
  void MendInfinite(const Coefficients& c, const LaneTile& tile, const LaneTile& part, size_t begin,
                    const PartRoom& room, Scratch& scratch, DType type, std::byte* out, MergeCounts* counts) const {
    const auto from = [&](const EncodedLanes& source) {
      const std::byte* const bytes = source.bytes;
      return EncodedLanes{source.type,
                          bytes == nullptr ? nullptr : bytes + begin * static_cast<size_t>(LaneBytes(source.type))};
    };
    for (size_t m = 0; m < num_models(); ++m) room.models[m] = from(tile.models[m]);
    LaneTile real = part;
    real.base = from(tile.base);
    MergeCounts uncounted;
    merger().Merge(c, real, room.granted, scratch, DType::kF32, reinterpret_cast<std::byte*>(room.merged), &uncounted);
    ExposeDeltas(tile, room);
    const auto size = static_cast<size_t>(LaneBytes(type));
    for (size_t i = 0; i < part.count; ++i) {
      DecodeLanesAt(real.base, i, 1, scratch.base);
      if (!std::isinf(scratch.base[0])) continue;
      DecodeLanes(type, out + i * size, 1, scratch.out);
      counts->non_finite.nan -= std::isnan(scratch.out[0]), counts->non_finite.inf -= std::isinf(scratch.out[0]);
      scratch.out[0] = std::isnan(room.merged[i]) ? room.merged[i] : 0;
      EncodeLanes(type, scratch.out, 1, out + i * size, &counts->non_finite);
    }
  }
};

class ApplyMerger : public Merger {
 public:
  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Merge(const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    uint32_t invalid[kBlockLanes];
    float* const deltas[] = {scratch.out};
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      DecodeLanesAt(tile.base, start, n, scratch.base);
      if (tile.models[0].bytes != nullptr) DecodeLanesAt(tile.models[0], start, n, scratch.out);
      else std::fill_n(scratch.out, n, 0.0f);
      FindInvalid({deltas, {}, start, n, nullptr}, scratch.base, invalid);
      AddToBase(scratch.base, 1, invalid, n, scratch.out);
      EncodeLanes(type, scratch.out, n, out + start * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
    }
  }
};

std::unique_ptr<Merger> Make(const MethodInfo&, const Coefficients&, const TensorFacts&, Approach) {
  return std::make_unique<ApplyMerger>();
}

}  // namespace

std::unique_ptr<Merger> NewDeltaMerger(const MethodInfo& method, size_t num_models, uint64_t largest_part,
                                       std::unique_ptr<Merger> merger) {
  return std::make_unique<DeltaMerger>(method, num_models, largest_part, std::move(merger));
}

const MethodInfo& ApplyDelta() {
  static const MethodInfo method = {.name = "apply",
                                    .summary = "the merged task vector that a merge wrote as a delta, added to its "
                                               "base",
                                    .source = "Ilharco et al., ICLR 2023, arXiv 2212.04089",
                                    .base = BaseUse::kRequired,
                                    .most_models = 1,
                                    .make = Make};
  return method;
}

}  // namespace braid
