// nearswap: methods.md, row of that name. Takes the other model's element where it is near the base's, less of it where it
// is far: w = clamp(t / max(|a - b|, 1e-6), 0, 1), and w b + (1 - w) a. In mergekit's float32 steps, where a division is the
// product with a reciprocal.

#include <algorithm>
#include <cmath>

#include "ops/mergers_internal.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

constexpr float kLeastDistance = 1e-6f;

BRAID_WIDE_VECTORS void Mix(const float* a, const float* b, float t, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) {
    const float distance = std::fabs(a[i] - b[i]);
    // Comparisons that leave a NaN as it is.
    const float clamped = distance < kLeastDistance ? kLeastDistance : distance;
    const float weight = 1 / clamped * t;
    const float share = weight > 1 ? 1 : weight;
    const float mixed = share * b[i] + (1 - share) * a[i];
    out[i] = a[i] == b[i] ? a[i] : mixed;   // the base's bits, whatever the share
  }
}

class NearswapMerger : public Merger {
 public:
  explicit NearswapMerger(const MethodInfo& method) : t_(method.At("t")) {}

  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    const EncodedLanes& other = tile.models[0].bytes == nullptr ? tile.base : tile.models[0];
    const auto t = static_cast<float>(c.shared[t_]);
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      DecodeLanesAt(tile.base, start, n, scratch.base);
      DecodeLanesAt(other, start, n, scratch.models[0]);
      Mix(scratch.base, scratch.models[0], t, n, scratch.out);
      EncodeLanes(type, scratch.out, n, out + start * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
    }
  }

 private:
  size_t t_;  // index of the parameter
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients&, const TensorFacts&, Approach) {
  return std::make_unique<NearswapMerger>(method);
}

// A filter may leave a tensor without one.
std::string Check(const MethodInfo& method, const Coefficients& c) {
  return c.shared[method.At("t")] == kNoDefault ? "there is no t" : "";
}

}  // namespace

MethodInfo Nearswap() {
  return {.name = "nearswap",
          .summary = "takes the other model's elements where they are near the base's",
          .source = "alchemonaut, QuartetAnemoi-70B, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
          .base = BaseUse::kRequired,
          .least_models = 1,
          .most_models = 1,
          .parameters = {{.name = "t", .default_value = kNoDefault, .min = 0, .required_in_yaml = true,
                          .help = "distance up to which elements are taken whole; beyond it, the share t / distance"}},
          .check = Check,
          .make = Make};
}

}  // namespace braid
