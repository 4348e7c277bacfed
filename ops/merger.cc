#include "ops/merger.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>

#include "ops/mergers_internal.h"

namespace braid {

struct Scratch::Storage {
  hwy::AlignedFreeUniquePtr<float[]> lanes;
  hwy::AlignedFreeUniquePtr<double[]> wide;
  hwy::AlignedFreeUniquePtr<uint32_t[]> draws;
  hwy::AlignedFreeUniquePtr<std::byte[]> workspace;
};

namespace {
constexpr size_t kStride = kBlockLanes + kLanePadding;
size_t LanesNeeded(size_t num_models) { return kStride * (num_models + 2) + num_models * kLanePadding; }
// Of products of every two models, with and without interleaved sums.
size_t ProductsNeeded(size_t num_models) { return num_models * num_models * (kSumLanes + 2); }
}  // namespace

Scratch::Scratch(size_t num_models, size_t workspace_bytes)
    : models(num_models), wide(num_models), storage_(std::make_unique<Storage>()) {
  storage_->lanes = hwy::AllocateAligned<float>(LanesNeeded(num_models));
  float* next = storage_->lanes.get();
  base = next;
  out = base + kStride;
  for (size_t m = 0; m < num_models; ++m) models[m] = out + kStride * (m + 1);
  room = out + kStride * (num_models + 1);
  std::fill_n(next, LanesNeeded(num_models), 0.0f);
  storage_->wide = hwy::AllocateAligned<double>(num_models * kBlockLanes);
  for (size_t m = 0; m < num_models; ++m) wide[m] = storage_->wide.get() + kBlockLanes * m;
  storage_->draws = hwy::AllocateAligned<uint32_t>(2 * kStride);
  draws = storage_->draws.get();
  limits = draws + kStride;
  std::fill_n(draws, 2 * kStride, 0u);
  if (workspace_bytes > 0) storage_->workspace = hwy::AllocateAligned<std::byte>(workspace_bytes);
  workspace = storage_->workspace.get();
}

Scratch::~Scratch() = default;

size_t Scratch::Bytes(size_t num_models, size_t workspace_bytes) {
  return LanesNeeded(num_models) * sizeof(float) +
         (num_models * kBlockLanes + ProductsNeeded(num_models)) * sizeof(double) + 3 * kBlockLanes * sizeof(double) +
         2 * kStride * sizeof(uint32_t) + num_models * 512 + workspace_bytes + 4096;
}

std::unique_ptr<Accumulator> Merger::NewAccumulator(size_t) const { return nullptr; }
void Merger::Accumulate(size_t, const Coefficients&, const LaneTile&, const uint64_t*, Scratch&, Accumulator*,
                        BlockSums) const {}
void Merger::Finish(size_t, Accumulator*, std::span<const double>) {}
ModelStatistics Merger::Statistics(size_t) const { return {}; }
std::vector<BinCount> Merger::TakeHighHalves(size_t) { return {}; }
void Merger::UseStatistics(std::span<const ModelStatistics>) {}
bool Merger::Draft(const Coefficients&, const LaneTile&, Scratch&, DType, std::byte*, OpenElements*,
                   MergeCounts*) const {
  return false;
}
bool Merger::FinishDraft(std::span<const OpenElements* const>) { return false; }
void Merger::Settle(const Coefficients&, const OpenElements&, uint64_t, Scratch&, DType, std::byte*,
                    MergeCounts*) const {}
void Merger::CountClaims(const Coefficients&, const LaneTile&, Scratch&, uint64_t*) const {}
uint64_t Merger::Quota(size_t) const { return kNoQuota; }

double FoldSums(double* sums) {
  for (size_t step = kSumLanes / 2; step > 0; step /= 2)
    for (size_t i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}

}  // namespace braid
