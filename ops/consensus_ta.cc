// consensus_ta: the sum of the task vectors where enough models need it. methods.md, row of that name.
#include <cmath>

#include "ops/elementwise_merger.h"
#include "ops/wide_vectors.h"

namespace braid {
namespace {

enum Parameter : size_t { kLambda, kK, kL };

// An element belongs to model i's mask where |d_i| > l |sum_j d_j - d_i|. Counts the masks in float32, as wide as what
// is compared.
BRAID_WIDE_VECTORS void AddMask(const float* d, const float* sum, float l, size_t n, float* masks) {
  for (size_t i = 0; i < n; ++i) {
    const float others = l * std::fabs(sum[i] - d[i]);
    masks[i] += std::fabs(d[i]) > others ? 1.0f : 0.0f;
  }
}

BRAID_WIDE_VECTORS void Add(const float* d, size_t n, float* sum) {
  for (size_t i = 0; i < n; ++i) sum[i] += d[i];
}

BRAID_WIDE_VECTORS void KeepAgreed(const float* masks, float k, size_t n, float* sum) {
  for (size_t i = 0; i < n; ++i) sum[i] = masks[i] >= k ? sum[i] : 0.0f;
}

void Consensus(const Coefficients& c, const DeltaBlock& block) {
  const auto k = static_cast<float>(c.shared[kK]), l = static_cast<float>(c.shared[kL]);
  float* const sum = block.merged;
  float masks[kBlockLanes];
  std::fill_n(sum, block.n, 0.0f);
  std::fill_n(masks, block.n, 0.0f);
  for (const float* d : block.d) Add(d, block.n, sum);
  for (const float* d : block.d) AddMask(d, sum, l, block.n, masks);
  KeepAgreed(masks, k, block.n, sum);
}

std::string CheckK(const MethodInfo&, const Coefficients& c) {
  const double k = c.shared[kK];
  if (k != std::floor(k)) return "k counts models, so it must be a whole number";
  if (k > static_cast<double>(c.model.size())) return "k is larger than the number of models: nothing would be merged";
  return "";
}

}  // namespace

MethodInfo ConsensusTa() {
  return {.name = "consensus_ta",
          .summary = "add the task vectors where at least k of the models need the change",
          .source = "Wang et al., Localizing Task Information for Improved Model Merging and Compression, ICML 2024, "
                    "arXiv 2405.07813",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter(),
                         {.name = "k", .default_value = 2, .min = 0, .max = 1000,
                          .help = "models that must need an element; 0: all are added"},
                         {.name = "l", .default_value = 0.2, .min = 0,
                          .help = "a model needs an element where |d| exceeds so much of what the others add"}},
          .check = CheckK,
          .make = MakeElementwise<Consensus>};
}

}  // namespace braid
