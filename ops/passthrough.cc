// passthrough: methods.md, row of that name. One model, its elements times a scale.

#include <algorithm>
#include <cstring>

#include "ops/mergers_internal.h"
#include "ops/non_finite.h"

namespace braid {
namespace {

class PassthroughMerger : public Merger {
 public:
  explicit PassthroughMerger(const MethodInfo& method) : scale_(method.At("scale")) {}

  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    const EncodedLanes& source = tile.models[0];
    const auto scale = static_cast<float>(c.model[0][scale_]);
    const auto size = static_cast<size_t>(LaneBytes(type));
    if (scale == 1 && source.type == type) {  // float64 and NaN keep all their bits
      std::memcpy(out, source.bytes, tile.count * size);
      CountNonFinite(type, out, tile.count, &counts->non_finite);
      return;
    }
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      DecodeLanesAt(source, start, n, scratch.out);
      for (size_t i = 0; i < n; ++i) scratch.out[i] *= scale;
      EncodeLanes(type, scratch.out, n, out + start * size, &counts->non_finite);
    }
  }

 private:
  size_t scale_;  // index of the parameter
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients&, const TensorFacts&, Approach) {
  return std::make_unique<PassthroughMerger>(method);
}

}  // namespace

MethodInfo Passthrough() {
  return {.name = "passthrough",
          .summary = "one model as it is, or scaled",
          .source = "mergekit's passthrough",
          .base = BaseUse::kIsNotUsed,
          .least_models = 1,
          .most_models = 1,
          .parameters = {{.name = "scale", .scope = ParameterScope::kModel, .default_value = 1,
                          .help = "factor of all elements; 1 leaves every bit as it is"}},
          .make = Make};
}

}  // namespace braid
