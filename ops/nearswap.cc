// nearswap: methods.md, row of that name. Takes the other model's element where it is near the base's, less of it where
// it is far: w = clamp(t / max(|a - b|, 1e-6), 0, 1), and w b + (1 - w) a. In mergekit's float32 steps, where a
// division is the product with a reciprocal. With a lambda other than 1, which mergekit does not have, a + lambda w
// (b - a).

#include <algorithm>
#include <cmath>

#include "ops/mergers_internal.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

constexpr float kLeastDistance = 1e-6f;

// Of the other model's element. Comparisons that leave a NaN as it is.
inline float ShareAt(float difference, float t) {
  const float distance = std::fabs(difference);
  const float clamped = distance < kLeastDistance ? kLeastDistance : distance;
  const float weight = 1 / clamped * t;
  return weight > 1 ? 1 : weight;
}

BRAID_WIDE_VECTORS void Mix(const float* a, const float* b, float t, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) {
    const float share = ShareAt(a[i] - b[i], t);
    const float mixed = share * b[i] + (1 - share) * a[i];
    out[i] = a[i] == b[i] ? a[i] : mixed;   // the base's bits, whatever the share
  }
}

BRAID_WIDE_VECTORS void AddScaled(const float* a, const float* b, float t, float lambda, size_t n, float* out) {
  for (size_t i = 0; i < n; ++i) {
    const float difference = b[i] - a[i];
    const float scaled = lambda * (ShareAt(difference, t) * difference), moved = a[i] + scaled;
    out[i] = scaled == 0 ? a[i] : moved;
  }
}

class NearswapMerger : public Merger {
 public:
  explicit NearswapMerger(const MethodInfo& method) : t_(method.At("t")), lambda_(method.At("lambda")) {}

  size_t statistics_rounds() const override { return 0; }
  RoundSpec round(size_t) const override { return {.name = "merge"}; }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    const EncodedLanes& other = tile.models[0].bytes == nullptr ? tile.base : tile.models[0];
    const auto t = static_cast<float>(c.shared[t_]), lambda = static_cast<float>(c.shared[lambda_]);
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      DecodeLanesAt(tile.base, start, n, scratch.base);
      DecodeLanesAt(other, start, n, scratch.models[0]);
      if (lambda == 1) Mix(scratch.base, scratch.models[0], t, n, scratch.out);
      else AddScaled(scratch.base, scratch.models[0], t, lambda, n, scratch.out);
      EncodeLanes(type, scratch.out, n, out + start * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
    }
  }

 private:
  size_t t_, lambda_;  // indices of the parameters
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
                          .help = "distance up to which elements are taken whole; beyond it, the share t / distance"},
                         LambdaParameter()},
          .adds_float32 = false,
          .check = Check,
          .make = Make};
}

}  // namespace braid
