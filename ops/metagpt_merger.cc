// metagpt: methods.md, row of that name. Task arithmetic with weights |d_i|^2 / sum of all |d_k|^2, the norms taken
// over the whole model.

#include <bit>

#include "ops/mergers_internal.h"
#include "ops/task_vector_merger.h"

namespace braid {
namespace {

// sums[i % 16] += d[i]^2 in float64, of lanes with zeros behind them. An infinite entry or a NaN counts as 0: it shall
// not spoil the weights of a whole model.
void AddSquares(const float* d, size_t n, double* sums) {
  for (size_t i = 0; i < n; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) {
      const bool finite = (std::bit_cast<uint32_t>(d[i + j]) & 0x7fffffff) < 0x7f800000;
      const double entry = finite ? d[i + j] : 0.0f;
      sums[j] += entry * entry;
    }
}

class MetaGptMerger : public Merger {
 public:
  MetaGptMerger(const MethodInfo& method, const Coefficients& c)
      : lambda_(method.At("lambda")), weights_(c.model.size()) {}

  size_t statistics_rounds() const override { return 1; }
  RoundSpec round(size_t r) const override {
    if (r == 1) return {.name = "merge"};
    return {.name = "norms", .sums = weights_.size()};
  }
  bool Reads(size_t, size_t, const Coefficients&) const override { return true; }

  void Accumulate(size_t, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch, Accumulator*,
                  BlockSums sums) const override {
    for (size_t m = 0; m < weights_.size(); ++m) {
      if (tile.models[m].bytes == nullptr) continue;
      for (size_t block = 0; block < tile.count; block += kReductionBlock) {
        const size_t block_end = std::min(tile.count, block + kReductionBlock);
        double partial[kSumLanes] = {};
        for (size_t start = block; start < block_end; start += kBlockLanes) {
          const size_t n = std::min(kBlockLanes, block_end - start);
          AddSquares(TaskVectorAt(tile, m, start, n, scratch), n, partial);
        }
        sums.data[m * sums.stride + (tile.first + block) / kReductionBlock] = FoldSums(partial);
      }
    }
  }

  // Weights of 0 where no model differs from the base: then the base it is.
  void Finish(size_t, Accumulator*, std::span<const double> sums) override {
    double all = 0;
    for (double sum : sums) all += sum;
    for (size_t m = 0; all > 0 && m < weights_.size(); ++m) weights_[m] = static_cast<float>(sums[m] / all);
  }

  void Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type, std::byte* out,
             MergeCounts* counts) const override {
    scratch.voters.clear(), scratch.weights.clear(), scratch.sources.clear();
    for (size_t m = 0; m < weights_.size(); ++m) {
      if (tile.models[m].bytes == nullptr || weights_[m] == 0) continue;
      scratch.voters.push_back(m);
      scratch.weights.push_back(weights_[m]);
      scratch.sources.push_back(scratch.models[m]);
    }
    scratch.min_keys.assign(scratch.voters.size(), 0);
    const TaskVectorBlock block{.base = scratch.base, .models = scratch.sources.data(),
                                .num_models = scratch.voters.size(), .weight = scratch.weights.data(),
                                .factor = nullptr, .min_key = scratch.min_keys.data(),
                                .elect = false, .elect_by_count = false, .elect_weighted = true,
                                .zero_elects_minus = false, .divide = false, .divisor = 1,
                                .lambda = static_cast<float>(c.shared[lambda_])};
    VoteCounts votes;
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      DecodeLanesAt(tile.base, start, n, scratch.base);
      for (size_t m : scratch.voters) DecodeLanesAt(tile.models[m], start, n, scratch.models[m]);
      MergeTaskVectors(block, n, scratch.room, scratch.out, nullptr, &votes);
      EncodeLanes(type, scratch.out, n, out + start * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
    }
  }

 private:
  size_t lambda_;
  std::vector<float> weights_;
};

std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts&, Approach) {
  return std::make_unique<MetaGptMerger>(method, c);
}

}  // namespace

MethodInfo MetaGpt() {
  return {.name = "metagpt",
          .summary = "add task vectors, each weighted by its share of the squared norms",
          .source = "Zhou et al., MetaGPT, EMNLP 2024, arXiv 2406.11385",
          .base = BaseUse::kRequired,
          .parameters = {LambdaParameter()},
          .whole_model = true,
          .make = Make};
}

}  // namespace braid
