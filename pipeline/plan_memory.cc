// Rounds, bytes, and how the budget is spent.
//
// Fixed parts first: catalogues and plan, lane buffers of the workers, output buffers. What remains is the pool that
// tiles (mapped ranges of the sources) and accumulators are taken from while the graph runs. A tile is as large as
// lets every worker have two in flight, up to 2^20 elements: beyond that nothing gets faster.

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pipeline/budget.h"
#include "pipeline/plan_internal.h"

namespace braid {
namespace {

constexpr uint64_t kLargestTile = 16 * kReductionBlock;
constexpr uint64_t kMostCandidateBytes = uint64_t{256} << 20;
constexpr uint64_t kSelectionTables = 4 * kLowBins * sizeof(uint32_t);  // ops/bracket.cc, per thread
constexpr uint64_t kPage = 4096;
constexpr uint64_t kMostMaps = 16'384;
constexpr uint64_t kHistogramRow = kLowBins * sizeof(uint64_t);  // totals of one model while a round finishes

// A rough but generous count of what the plan itself occupies.
uint64_t CatalogueBytes(const Plan& plan) {
  uint64_t bytes = 0;
  for (const Checkpoint& checkpoint : plan.checkpoints) bytes += checkpoint.MemoryBytes();
  for (const Coefficients& c : plan.coefficients) bytes += 96 + c.model.size() * (24 + c.shared.size() * 16);
  for (const PlannedShard& shard : plan.shards) bytes += 128 + shard.header.size();
  const uint64_t per_tensor = sizeof(PlannedTensor) + sizeof(PlannedScope) + 256 + plan.models.size() * sizeof(TensorSource);
  return bytes + plan.tensors.size() * per_tensor + plan.recipe.text.size() * 4;
}

uint64_t LargestTileCost(const Plan& plan, uint64_t elements) {
  uint64_t cost = 0;
  for (const PlannedTensor& tensor : plan.tensors)
    cost = std::max(cost, TileCost(plan, tensor, std::min(elements, std::max<uint64_t>(tensor.elements, 1))));
  return cost;
}

uint64_t BufferBytes(const Plan& plan, uint64_t tile_elements) {
  uint64_t bytes = 4096;
  for (const PlannedTensor& tensor : plan.tensors)
    bytes = std::max(bytes, std::min(tile_elements, tensor.elements) * static_cast<uint64_t>(DTypeBits(tensor.type)) / 8);
  return bytes + kPage;  // a tile begins at the same place within a page as it will in its file
}

void MarkResidentScopes(Plan* plan) {
  for (PlannedScope& scope : plan->scopes) {
    if (scope.rounds == 1 || scope.tensors.size() != 1) continue;
    const PlannedTensor& tensor = plan->tensors[scope.tensors.front()];
    const uint64_t tiles = (tensor.elements + plan->memory.tile_elements - 1) / plan->memory.tile_elements;
    const uint64_t needed = tiles * TileCost(*plan, tensor, plan->memory.tile_elements) +
                            scope.statistics_bytes * plan->memory.accumulators + scope.sums_bytes;
    scope.resident = needed <= plan->memory.pool / 2;  // half, so that the next one is read meanwhile
  }
}

uint64_t BytesOf(const Plan& plan, const TensorSource& source) {
  return source.present() ? plan.Info(source).bytes : 0;
}

// Bytes that each round maps, counted from the merge back; a resident scope maps its bytes once, counted to the merge.
void CountBytes(Plan* plan) {
  PlanTotals& totals = plan->totals;
  for (const PlannedShard& shard : plan->shards) totals.bytes_written += shard.bytes;
  for (const PlannedScope& scope : plan->scopes) {
    const PlannedTensor& first = plan->tensors[scope.tensors.front()];
    const bool copy = first.action != TensorAction::kMerge;
    const std::unique_ptr<Merger> merger = copy ? nullptr : plan->MakeMerger(scope);
    if (totals.read_per_round.size() < scope.rounds) totals.read_per_round.resize(scope.rounds);
    for (uint32_t index : scope.tensors) {
      const PlannedTensor& tensor = plan->tensors[index];
      totals.parameters += tensor.elements;
      (!copy ? totals.merged : tensor.action == TensorAction::kCopy ? totals.copied : totals.unchanged) += 1;
      if (!copy) totals.merged_elements += tensor.elements;
      uint64_t largest_round = 0, all_rounds = 0;
      for (uint32_t r = 0; r < scope.rounds; ++r) {
        uint64_t bytes = 0;
        for (size_t m = 0; m < tensor.models.size(); ++m)
          if (copy || merger->Reads(r, m, plan->coefficients[tensor.coefficients])) bytes += BytesOf(*plan, tensor.models[m]);
        if (bytes > 0 || r + 1 == scope.rounds) bytes += BytesOf(*plan, tensor.base);
        if (!scope.resident) totals.read_per_round[r + totals.read_per_round.size() - scope.rounds] += bytes;
        largest_round = std::max(largest_round, bytes);
        all_rounds += bytes;
      }
      if (scope.resident) totals.read_per_round.back() += largest_round;
      totals.bytes_read += scope.resident ? largest_round : all_rounds;
    }
  }
}

}  // namespace

uint64_t TileCost(const Plan& plan, const PlannedTensor& tensor, uint64_t elements) {
  uint64_t cost = 0;
  const auto add = [&](const TensorSource& source) {
    if (!source.present()) return;
    const uint64_t bits = static_cast<uint64_t>(DTypeBits(plan.Info(source).dtype));
    // Whole pages; and never so little that the pool holds more maps than a process may have (65,530).
    cost += std::max(elements * bits / 8 + 2 * kPage, plan.memory.budget / kMostMaps);
  };
  add(tensor.base);
  for (const TensorSource& source : tensor.models) add(source);
  return cost;
}

void PlanScopes(Plan* plan) {
  std::vector<uint32_t> whole_model;
  for (uint32_t t = 0; t < plan->tensors.size(); ++t) {
    const PlannedTensor& tensor = plan->tensors[t];
    if (plan->model_scope && tensor.action == TensorAction::kMerge) whole_model.push_back(t);
    else plan->scopes.push_back({.tensors = {t}, .elements = tensor.elements});
  }
  if (!whole_model.empty()) {
    // Bytewise by name: the order in which equal magnitudes at the threshold are kept, and sums are added.
    std::sort(whole_model.begin(), whole_model.end(),
              [&](uint32_t a, uint32_t b) { return plan->tensors[a].name < plan->tensors[b].name; });
    PlannedScope scope{.tensors = std::move(whole_model)};
    for (const PlannedTensor& tensor : plan->tensors)  // the zeros of unchanged tensors are entries too
      if (tensor.action != TensorAction::kCopy) scope.elements += tensor.elements;
    plan->scopes.push_back(std::move(scope));
  }
  for (PlannedScope& scope : plan->scopes) {
    if (plan->tensors[scope.tensors.front()].action != TensorAction::kMerge) continue;
    const std::unique_ptr<Merger> merger = plan->MakeMerger(scope);
    scope.rounds = static_cast<uint32_t>(merger->statistics_rounds() + 1);
    uint64_t blocks = 0;  // of the largest tensor: sums are kept per tensor while it is read
    for (uint32_t t : scope.tensors)
      blocks += (plan->tensors[t].elements + kReductionBlock - 1) / kReductionBlock;
    for (uint32_t r = 0; r + 1 < scope.rounds; ++r) {
      const RoundSpec spec = merger->round(r);
      scope.statistics_bytes = std::max<uint64_t>(scope.statistics_bytes, spec.accumulator_bytes);
      scope.sums_bytes = std::max<uint64_t>(scope.sums_bytes, spec.sums * blocks * sizeof(double));
    }
    if (scope.rounds > 1) scope.sums_bytes += kHistogramRow;
  }
}

void PlanMemory(Plan* plan, const PlanOptions& options) {
  MemoryPlan& m = plan->memory;
  m.budget = options.memory > 0 ? options.memory : DefaultMemory();
  m.threads = options.threads > 0 ? options.threads : DefaultThreads();
  m.catalogue = CatalogueBytes(*plan);
  m.scratch = static_cast<uint64_t>(m.threads) * (Scratch::Bytes(plan->models.size()) + kSelectionTables);
  uint64_t accumulator = 0, sums = 0;
  for (const PlannedScope& scope : plan->scopes) {
    accumulator = std::max(accumulator, scope.statistics_bytes);
    sums = std::max(sums, scope.sums_bytes);
  }
  const uint64_t fixed = m.catalogue + m.scratch;
  const uint64_t smallest_tile = LargestTileCost(*plan, kReductionBlock);
  m.least = fixed + 2 * BufferBytes(*plan, kReductionBlock) + accumulator + sums + 2 * smallest_tile;
  if (m.budget < m.least) {
    const uint64_t mebibytes = (m.least + (1 << 20) - 1) >> 20;
    throw Error(ErrorCode::kMemory, fmt::format("this merge does not fit in {} MiB of memory", m.budget >> 20))
        .Hint(fmt::format("the smallest --memory that works is {}MiB", mebibytes));
  }
  const auto threads = static_cast<uint64_t>(m.threads);
  const auto buffers_for = [&](uint64_t tile) {
    const uint64_t bytes = BufferBytes(*plan, tile), rest = m.budget - fixed;
    const uint64_t needed = std::min(rest, accumulator + sums + 2 * LargestTileCost(*plan, tile));
    return std::clamp<uint64_t>(std::min(rest / 4, rest - needed) / bytes, 2, 2 * threads + 4);
  };
  const auto pool_for = [&](uint64_t tile) {
    const uint64_t taken = fixed + buffers_for(tile) * BufferBytes(*plan, tile);
    return m.budget - std::min(m.budget, taken);
  };
  m.tile_elements = options.tile_elements > 0 ? options.tile_elements : kLargestTile;
  const auto wanted = [&](uint64_t tile) {
    return accumulator * threads + sums + (2 * threads + 2) * LargestTileCost(*plan, tile);
  };
  while (options.tile_elements == 0 && m.tile_elements > kReductionBlock && pool_for(m.tile_elements) < wanted(m.tile_elements))
    m.tile_elements /= 2;
  m.buffers = static_cast<uint32_t>(buffers_for(m.tile_elements));
  m.buffer_bytes = BufferBytes(*plan, m.tile_elements);
  m.pool = pool_for(m.tile_elements);
  const uint64_t for_tiles = sums + 2 * LargestTileCost(*plan, m.tile_elements);
  if (m.pool < for_tiles + accumulator)  // only a test that fixes the tile gets here
    throw Error(ErrorCode::kMemory, "these tiles do not fit the budget");
  m.accumulators = accumulator == 0 ? 1
                                    : static_cast<uint32_t>(std::clamp<uint64_t>((m.pool - for_tiles) / 2 / accumulator, 1, threads));
  if (accumulator > 0) {  // some scope has statistics; what they and two tiles do not need may hold candidates
    const uint64_t spare = m.pool - for_tiles - accumulator * m.accumulators;
    m.candidates = std::min(spare / 6, kMostCandidateBytes);
    m.pool -= m.candidates;
  }
  MarkResidentScopes(plan);
  CountBytes(plan);
}

}  // namespace braid
