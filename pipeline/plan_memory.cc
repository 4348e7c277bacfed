// Rounds, bytes, and how the budget is spent.
//
// Fixed parts first: catalogues and plan, lane buffers of the workers, output buffers, room for drafts. What remains is
// the pool that tiles (ranges of the sources) and accumulators are taken from while the graph runs. A tile is as large
// as lets every worker have two in flight, up to 2^22 elements: beyond that nothing gets faster.
//
// A tensor whose merged elements fit the room for drafts is read once. If all its sources fit the pool, they stay until
// the sample is taken; otherwise the sample is read beforehand, in short runs, which pays for large tensors only.

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "io/mapped_file.h"
#include "pipeline/budget.h"
#include "pipeline/plan_internal.h"
#include "pipeline/plan_phases.h"
#include "pipeline/row_reader.h"
#include "pipeline/scope_run.h"
#include "pipeline/shard_output.h"
#include "pipeline/statistics_cache.h"
#include "pipeline/stream_reader.h"

namespace braid {
namespace {

// 8 MiB of bf16. Such a window of a cached file is mapped by whole huge pages but for its ends: 0.3 s of system time in
// the warm merge of 1.24 B, with 2 MiB windows 0.6 s.
constexpr uint64_t kLargestTile = 64 * kReductionBlock;
// What selection needs beside accumulators, per thread: ops/bracket.cc and ops/task_vector_draft.cc.
constexpr uint64_t kSelectionTables = kHighBins * sizeof(uint32_t) + (128 << 10);
constexpr uint64_t kPage = 4096;
constexpr uint64_t kMostMaps = 16'384;
constexpr uint64_t kHistogramRow = kLowBins * sizeof(uint64_t);  // totals of one model while a round finishes
// A scope that waits, and what it knows of a model.
constexpr uint64_t kWaitingScope = 1536, kWaitingModel = 256;

// Beside the checkpoints. Rough but generous.
uint64_t BytesOfPlan(const Plan& plan) {
  uint64_t bytes = 0;
  for (const Coefficients& c : plan.coefficients)   // and the graph's copy
    bytes += 2 * (104 + c.model.size() * (24 + c.shared.size() * 16));
  const size_t waiting = plan.fronts.size() + (plan.measured ? plan.scopes.size() : 0);
  bytes += waiting * (kWaitingScope + plan.most_models * kWaitingModel);
  for (const PlannedShard& shard : plan.shards) bytes += 128 + shard.header.size();
  const uint64_t per_tensor =
      sizeof(PlannedTensor) + sizeof(PlannedScope) + 256 + plan.most_models * sizeof(TensorSource);
  for (const PlannedScope& scope : plan.scopes) bytes += scope.known.capacity() * sizeof(ModelStatistics);
  bytes += StatisticsKeeper::MemoryBytes(plan);
  for (const PlannedTensor& tensor : plan.tensors)
    for (const MappedRows& rows : tensor.rows)
      bytes += sizeof(MappedRows) + (rows.map != nullptr ? rows.map->MemoryBytes() : 0);
  bytes += plan.chain.MemoryBytes();
  bytes += plan.tokenizer.MemoryBytes() + RowReader::MemoryBytes(plan) + StreamReader::MemoryBytes(plan);
  return bytes + plan.tensors.size() * per_tensor + plan.recipe.text.size() * 4;
}

uint64_t CatalogueBytes(const Plan& plan) {
  uint64_t bytes = BytesOfPlan(plan) + plan.memory.other_plans;
  for (const Checkpoint& checkpoint : plan.checkpoints) bytes += checkpoint.MemoryBytes();
  return bytes;
}

uint64_t LargestTileCost(const Plan& plan, uint64_t elements) {
  uint64_t cost = 0;
  for (const PlannedTensor& tensor : plan.tensors)
    cost = std::max(
        cost,
        TileCost(plan, tensor, std::min(plan.TileElements(tensor, elements), std::max<uint64_t>(tensor.elements, 1))));
  return cost;
}

uint64_t BufferBytes(const Plan& plan, uint64_t tile_elements) {
  uint64_t bytes = 4096;
  for (const PlannedTensor& tensor : plan.tensors)
    bytes = std::max(bytes, std::min(plan.TileElements(tensor, tile_elements), tensor.elements) *
                                static_cast<uint64_t>(DTypeBits(tensor.type)) / 8);
  return bytes + kPage;  // a tile begins at the same place within a page as it will in its file
}

// What a scope asks for with one approach.
struct ScopeNeeds {
  uint32_t rounds = 1;
  uint64_t accumulator = 0;   // the largest
  uint64_t sums = 0, kept = 0;
  uint64_t workspace = 0;     // of a worker
  bool drafts = false, samples = false, open_encoded = false;
  double open_share = 0;
};

ScopeNeeds NeedsOf(const Plan& plan, const PlannedScope& scope, Approach approach) {
  const std::unique_ptr<Merger> merger = plan.MakeMerger(scope, approach);
  ScopeNeeds needs{.rounds = static_cast<uint32_t>(merger->statistics_rounds() + 1)};
  uint64_t blocks = 0;
  for (uint32_t t : scope.tensors) blocks += plan.SumBlocks(plan.tensors[t]);
  for (uint32_t r = 0; r < needs.rounds; ++r) {   // the merge, too, for its workspace
    const RoundSpec spec = merger->round(r);
    needs.workspace = std::max<uint64_t>(needs.workspace, spec.scratch_bytes);
    needs.accumulator = std::max<uint64_t>(needs.accumulator, spec.accumulator_bytes);
    needs.sums = std::max<uint64_t>(needs.sums, spec.sums * (blocks + 1) * sizeof(double) + spec.kept_bytes);
    needs.kept = std::max<uint64_t>(needs.kept, spec.kept_bytes);
    needs.drafts |= spec.draft;
    needs.open_share = std::max(needs.open_share, spec.open_share);
    needs.open_encoded |= spec.open_encoded;
    needs.samples |= spec.sample;
  }
  // Whether it will be by several ranks is not known here.
  if (needs.rounds > 1) needs.sums += kHistogramRow + ScopeRun::SharingBytes(plan, scope, *merger);
  return needs;
}

// Those of all phases.
template <typename Visit>
void ForEachScope(Plan* plan, Visit visit) {
  std::for_each(plan->fronts.begin(), plan->fronts.end(), visit);
  std::for_each(plan->scopes.begin(), plan->scopes.end(), visit);
}

void PlanRounds(Plan* plan) {
  ForEachScope(plan, [&](PlannedScope& scope) {
    if (plan->tensors[scope.tensors.front()].action != TensorAction::kMerge) return;
    const ScopeNeeds needs = NeedsOf(*plan, scope, Approach::kPlain);
    scope.rounds = needs.rounds;
    scope.statistics_bytes = needs.accumulator;
    scope.sums_bytes = needs.sums;
    scope.kept_bytes = needs.kept;
    plan->memory.workspace = std::max(plan->memory.workspace, needs.workspace);
  });
}

// Of a source, as the merge sees it.
uint64_t BytesOf(const Plan& plan, const PlannedTensor& tensor, size_t slot) {
  if (!tensor.SourceAt(slot).present()) return 0;
  if (tensor.RowsAt(slot) == nullptr) return plan.Info(tensor.SourceAt(slot)).bytes;
  return tensor.elements * static_cast<uint64_t>(LaneBytes(plan.TypeAt(tensor, slot)));
}

uint64_t SourceBytes(const Plan& plan, const PlannedTensor& tensor) {
  uint64_t bytes = 0;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) bytes += BytesOf(plan, tensor, slot);
  return bytes;
}

bool AllSourcesAre(const Plan& plan, const PlannedScope& scope, DType type) {
  const PlannedTensor& tensor = plan.tensors[scope.tensors.front()];
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot)
    if (tensor.SourceAt(slot).present() && plan.TypeAt(tensor, slot) != type) return false;
  return true;
}

// For open elements of one drafted tensor. When they are not enough the draft starts anew with histograms.
uint64_t OpenBytes(const Plan& plan, const PlannedScope& scope) {
  const PlannedTensor& tensor = plan.tensors[scope.tensors.front()];
  const uint64_t models = plan.most_models, chunk = OpenChunk::Bytes(models + 1);
  const double share = tensor.elements <= kFewElements ? 1.0 : std::min(1.0, scope.open_share);
  const auto elements = static_cast<uint64_t>(share * static_cast<double>(tensor.elements));
  const uint64_t selected = elements / std::max<uint64_t>(models, 1) * sizeof(uint64_t);   // one model at a time
  return (elements / OpenChunk::Capacity(scope.open_type, models + 1) + plan.Tiles(tensor)) * chunk + selected;
}

// Tensors that could be drafted if there is room. Not of streams: a draft that does not come out is read anew.
std::vector<PlannedScope*> DraftableScopes(Plan* plan, const PlanOptions& options) {
  std::vector<PlannedScope*> scopes;
  for (PlannedScope& scope : plan->scopes) {
    const bool one = scope.tensors.size() == 1 && scope.rounds > 1;
    const bool between = scope.elements > kFewElements && scope.elements < options.least_sampled;
    if (!one || between || ReadsStream(*plan, scope)) continue;
    const ScopeNeeds needs = NeedsOf(*plan, scope, Approach::kDraft);
    scope.open_share = needs.open_share;
    scope.open_type = needs.open_encoded && AllSourcesAre(*plan, scope, DType::kBF16) ? DType::kBF16 : DType::kF32;
    if (needs.drafts) scopes.push_back(&scope);
  }
  return scopes;
}

// Room for the largest tensor that leaves a quarter of the pool, or for three of them, so that one is read and another
// written meanwhile.
void PlanDrafts(Plan* plan, const std::vector<PlannedScope*>& scopes, uint64_t spare) {
  MemoryPlan& m = plan->memory;
  uint64_t buffers = 0, open = 0;
  for (const PlannedScope* scope : scopes) {
    const PlannedTensor& tensor = plan->tensors[scope->tensors.front()];
    const uint64_t its_buffers = plan->Tiles(tensor), its_open = OpenBytes(*plan, *scope);
    if (its_buffers * m.buffer_bytes + its_open > spare) continue;
    if (its_buffers > buffers) buffers = its_buffers, open = its_open;
  }
  if (buffers == 0) return;
  const uint64_t one = buffers * m.buffer_bytes + open;
  const uint64_t times_in_tenths = std::clamp<uint64_t>(spare * 10 / one, 10, 30);
  m.drafts = static_cast<uint32_t>(buffers * times_in_tenths / 10);
  m.open = open * times_in_tenths / 10;
  // Small tensors: as many in flight as there are other buffers.
  const uint64_t room = std::min(spare / 2, spare - m.open) / m.buffer_bytes;
  m.drafts = std::max(m.drafts, static_cast<uint32_t>(std::min<uint64_t>(m.buffers, room)));
  // Where there is plenty, also for entries that are less alike than usual.
  m.open = std::max(m.open, std::min(4 * m.open, (spare - m.drafts * m.buffer_bytes) / 4));
  m.pool -= m.drafts * m.buffer_bytes + m.open;
}

// Whether the scope's sources, its statistics and so many bytes more leave a third of the pool, to read the next one
// meanwhile.
bool FitsThePool(const Plan& plan, const PlannedScope& scope, uint64_t more) {
  const PlannedTensor& tensor = plan.tensors[scope.tensors.front()];
  const MemoryPlan& m = plan.memory;
  const uint64_t needed = plan.Tiles(tensor) * TileCost(plan, tensor, plan.TileElements(tensor)) +
                          scope.statistics_bytes * m.accumulators + scope.sums_bytes + more;
  return needed <= (m.pool - m.waiting) / 3 * 2;
}

// Whether short runs of all sources are read for little: of a compressed one a frame has to be decoded for each, and
// what has not come yet of a stream cannot be read.
bool HasCheapSpots(const Plan& plan, const PlannedScope& scope) {
  const auto is_plain = [&](const TensorSource& source) {
    return !source.present() || (plan.ShardOf(source).compressed == nullptr && plan.ShardOf(source).stream == nullptr);
  };
  return std::all_of(scope.tensors.begin(), scope.tensors.end(), [&](uint32_t t) {
    const PlannedTensor& tensor = plan.tensors[t];
    return is_plain(tensor.base) && std::all_of(tensor.models.begin(), tensor.models.end(), is_plain);
  });
}

// How each scope finds its thresholds, and whether its sources stay meanwhile.
void ChooseApproaches(Plan* plan, const PlanOptions& options, const std::vector<PlannedScope*>& draftable) {
  const MemoryPlan& m = plan->memory;
  const auto use = [&](PlannedScope* scope, Approach approach) {
    const ScopeNeeds needs = NeedsOf(*plan, *scope, approach);
    if ((!needs.samples && !needs.drafts) || needs.accumulator * m.accumulators > m.pool / 4) return;
    scope->approach = approach;
    scope->rounds = needs.rounds;
    scope->statistics_bytes = std::max(scope->statistics_bytes, needs.accumulator);
  };
  const auto resident = [&](const PlannedScope& scope) { return FitsThePool(*plan, scope, 0); };
  const auto spread_sample_pays = [&](const PlannedScope& scope) {
    const PlannedTensor& tensor = plan->tensors[scope.tensors.front()];
    return tensor.rows.empty() && SourceBytes(*plan, tensor) >= options.least_spread_sample &&
           HasCheapSpots(*plan, scope);
  };
  for (PlannedScope* scope : draftable) {
    const PlannedTensor& tensor = plan->tensors[scope->tensors.front()];
    const bool fits = plan->Tiles(tensor) <= m.drafts && OpenBytes(*plan, *scope) <= m.open;
    if (fits && (resident(*scope) || spread_sample_pays(*scope))) use(scope, Approach::kDraft);
  }
  ForEachScope(plan, [&](PlannedScope& scope) {
    if (scope.approach != Approach::kPlain || scope.rounds == 1 || scope.elements < options.least_sampled) return;
    const bool model_scope_pays = scope.tensors.size() > 1 && HasCheapSpots(*plan, scope);
    if (model_scope_pays || (scope.tensors.size() == 1 && (resident(scope) || spread_sample_pays(scope))))
      use(&scope, Approach::kSampled);
  });
  ForEachScope(plan, [&](PlannedScope& scope) {
    scope.resident = scope.rounds > 1 && scope.tensors.size() == 1 && resident(scope);
    // What a sample needs besides may be the last straw; then it would be taken from here and there.
    if (scope.resident || scope.approach != Approach::kSampled || !ReadsStream(*plan, scope)) return;
    scope.approach = Approach::kPlain;
    scope.rounds = NeedsOf(*plan, scope, Approach::kPlain).rounds;
  });
}

// Decisions are kept for the merge where they take little of the pool, and not at the price of reading a tensor twice.
void ChooseWhatIsKept(Plan* plan) {
  const MemoryPlan& m = plan->memory;
  const uint64_t two_tiles = 2 * LargestTileCost(*plan, m.tile_elements);
  for (PlannedScope& scope : plan->scopes) {
    if (scope.rounds == 1 || scope.approach == Approach::kDraft) continue;
    const uint64_t bytes = plan->MakeMerger(scope, scope.approach)->DecisionBytes();
    const uint64_t taken = scope.statistics_bytes * m.accumulators + scope.sums_bytes + bytes;
    const bool fits = scope.resident ? FitsThePool(*plan, scope, bytes)
                                     : bytes <= m.pool / 4 && taken + two_tiles <= m.pool;
    if (bytes == 0 || !fits) continue;
    scope.keeps_decisions = true;
    scope.sums_bytes += bytes, scope.kept_bytes += bytes;
  }
}

// One thread that compresses for each that merges, within a quarter of the budget.
void ChooseEncoders(Plan* plan) {
  MemoryPlan& m = plan->memory;
  if (!plan->in_order) return;
  const bool compressed = plan->recipe.output.compress != Compression::kNone;
  m.encoders = compressed ? static_cast<uint32_t>(m.threads) : 0;
  while (m.encoders > 1 && OrderingBytes(*plan, m.encoders) > m.budget / 4) --m.encoders;
  m.ordering = OrderingBytes(*plan, m.encoders);
}

// Adds the bytes that each round of a scope maps, counted from the last one back. A resident scope maps its bytes once,
// counted to the last round; one that is measured first, twice.
void CountScope(const Plan& plan, const PlannedScope& scope, std::vector<uint64_t>* per_round) {
  const bool copy = plan.tensors[scope.tensors.front()].action != TensorAction::kMerge;
  const std::unique_ptr<Merger> merger = copy ? nullptr : plan.MakeMerger(scope, scope.approach);
  const bool front = plan.IsFront(scope);
  // A sample is next to nothing, what was drafted is not read for the merge, and a front has none.
  std::vector<uint32_t> rounds;
  for (uint32_t r = 0; r < scope.rounds - (front ? 1 : 0); ++r)
    if (copy || (!merger->round(r).sample && (r == 0 || !merger->round(r - 1).draft))) rounds.push_back(r);
  const auto reads = static_cast<uint32_t>(rounds.size());
  if (per_round->size() < reads) per_round->insert(per_round->begin(), reads - per_round->size(), 0);
  for (uint32_t index : scope.tensors) {
    const PlannedTensor& tensor = plan.tensors[index];
    const uint32_t together = !scope.resident ? 0 : plan.measured ? reads - 1 : reads;   // rounds that map once
    const auto add = [&](uint32_t i, uint64_t bytes) { (*per_round)[i + per_round->size() - reads] += bytes; };
    uint64_t largest = 0;
    std::vector<bool> was_read(tensor.models.size() + 1);
    for (uint32_t i = 0; i < reads; ++i) {
      uint64_t bytes = 0, for_padding = 0;   // which a reader takes the mean for when it first meets it
      bool reads_any = false;
      const auto read = [&](size_t slot) {
        const uint64_t once = FileBytes(plan, tensor, slot);
        const RowMap* rows = tensor.RowsAt(slot);
        bytes += once, reads_any |= tensor.SourceAt(slot).present();
        if (!was_read[slot] && rows != nullptr && rows->Has(RowRun::Kind::kPadding)) for_padding += once;
        was_read[slot] = true;
      };
      for (size_t m = 0; m < tensor.models.size(); ++m)
        if (copy || merger->Reads(rounds[i], m, plan.coefficients[tensor.coefficients])) read(m + 1);
      if (reads_any || (!front && i + 1 == reads) || scope.resident) read(0);
      if (i < together) largest = std::max(largest, bytes), bytes = 0;
      add(i, bytes + for_padding);
    }
    if (together > 0) add(together - 1, largest);
  }
}

// Phase by phase; in the last one, of all scopes from the merge back.
void CountBytes(Plan* plan) {
  PlanTotals& totals = plan->totals;
  if (plan->in_order) totals.bytes_spilled = BytesThatComeEarly(*plan);
  for (size_t i = 0; i < plan->fronts.size();) {
    std::vector<uint64_t> of_phase;
    for (const uint32_t phase = plan->fronts[i].phase; i < plan->fronts.size() && plan->fronts[i].phase == phase; ++i)
      CountScope(*plan, plan->fronts[i], &of_phase);
    totals.read_per_round.insert(totals.read_per_round.end(), of_phase.begin(), of_phase.end());
  }
  std::vector<uint64_t> of_scopes;
  for (const PlannedScope& scope : plan->scopes) {
    CountScope(*plan, scope, &of_scopes);
    for (uint32_t index : scope.tensors) {
      const PlannedTensor& tensor = plan->tensors[index];
      const bool copy = tensor.action != TensorAction::kMerge;
      totals.parameters += tensor.elements;
      (!copy ? totals.merged : tensor.action == TensorAction::kCopy ? totals.copied : totals.unchanged) += 1;
      if (!copy) totals.merged_elements += tensor.elements;
    }
  }
  totals.read_per_round.insert(totals.read_per_round.end(), of_scopes.begin(), of_scopes.end());
  for (const uint64_t bytes : totals.read_per_round) totals.bytes_read += bytes;
}

}  // namespace

uint64_t TileCost(const Plan& plan, const PlannedTensor& tensor, uint64_t elements) {
  uint64_t cost = 0;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (!source.present()) continue;
    const uint64_t bytes = elements * static_cast<uint64_t>(DTypeBits(plan.TypeAt(tensor, slot))) / 8;
    const bool mapped = plan.reading[static_cast<size_t>(source.checkpoint)].backend == ReadBackend::kMapped;
    // Whole pages; and never so little that the pool holds more maps than a process may have (65,530).
    cost += std::max(mapped ? MappedFile::ResidentBytes(bytes) : bytes + 2 * kPage, plan.memory.budget / kMostMaps);
  }
  return cost;
}

// A frame in decoding per core, and one kept per source besides, as far as half of `room` holds them. Those kept go
// first: a frame that tiles cut, and that is not kept, is decoded for each of them.
void PlanDecoding(Plan* plan, uint64_t room) {
  DecodingSizes& d = plan->memory.decoding;
  if (d.decoders == 0) return;
  const uint64_t most = d.MemoryBytes() + room / 2;
  d.decoders = static_cast<uint32_t>(plan->memory.threads);
  d.kept = d.decoders + static_cast<uint32_t>(plan->most_models) + 1;
  for (; d.decoders > 1 && d.MemoryBytes() > most; --d.decoders) --d.kept;
  while (d.MemoryBytes() > most) --d.kept;
}

uint64_t PlanBytes(const Plan& plan) { return BytesOfPlan(plan); }

uint64_t ElementsOfModel(const Plan& plan) {
  uint64_t elements = plan.left_out_elements;
  for (const PlannedTensor& tensor : plan.tensors)
    if (tensor.action == TensorAction::kMerge || tensor.action == TensorAction::kKeep) elements += tensor.elements;
  return elements;
}

std::vector<uint32_t> MergedByName(const Plan& plan) {
  std::vector<uint32_t> merged;
  for (uint32_t t = 0; t < plan.tensors.size(); ++t)
    if (plan.tensors[t].action == TensorAction::kMerge) merged.push_back(t);
  std::sort(merged.begin(), merged.end(),
            [&](uint32_t a, uint32_t b) { return plan.tensors[a].name < plan.tensors[b].name; });
  return merged;
}

void PlanScopes(Plan* plan) {
  const auto last = static_cast<uint32_t>(plan->chain.whole.size() - 1);
  PlanFronts(plan);
  for (uint32_t t = 0; t < plan->tensors.size(); ++t) {
    const PlannedTensor& tensor = plan->tensors[t];
    if (plan->model_scope && tensor.action == TensorAction::kMerge) continue;
    plan->scopes.push_back({.tensors = {t}, .phase = last, .elements = tensor.elements});
  }
  std::vector<uint32_t> whole_model = plan->model_scope ? MergedByName(*plan) : std::vector<uint32_t>();
  if (!whole_model.empty())
    plan->scopes.push_back({.tensors = std::move(whole_model), .phase = last, .elements = ElementsOfModel(*plan)});
}

void PlanMemory(Plan* plan, const PlanOptions& options) {
  MemoryPlan& m = plan->memory;
  m.threads = options.threads > 0 ? options.threads : DefaultThreads();
  PlanRounds(plan);
  m.catalogue = CatalogueBytes(*plan);
  m.scratch = static_cast<uint64_t>(m.threads) * (Scratch::Bytes(plan->most_models, m.workspace) + kSelectionTables);
  uint64_t accumulator = 0, sums = 0;
  ForEachScope(plan, [&](const PlannedScope& scope) {
    accumulator = std::max(accumulator, scope.statistics_bytes);
    sums = std::max(sums, scope.sums_bytes);
    if (plan->measured || plan->IsFront(scope)) m.waiting += scope.kept_bytes;
  });
  sums += m.waiting;
  for (const Checkpoint& checkpoint : plan->checkpoints)
    for (const Shard& shard : checkpoint.shards)
      if (shard.compressed != nullptr) m.decoding.decoders = m.decoding.kept = 1, m.decoding.Cover(*shard.compressed);
  ChooseEncoders(plan);
  uint64_t fixed = m.catalogue + m.scratch + m.ordering + m.decoding.MemoryBytes();
  const uint64_t smallest_tile = LargestTileCost(*plan, kReductionBlock);
  m.least = fixed + 2 * BufferBytes(*plan, kReductionBlock) + accumulator + sums + 2 * smallest_tile;
  m.least = std::max(m.least, m.planning - std::min(m.planning, kPlanningAllowance));
  if (m.budget < m.least) throw DoesNotFit(m.budget, m.least);
  fixed -= m.decoding.MemoryBytes();
  PlanDecoding(plan, m.budget - m.least);
  fixed += m.decoding.MemoryBytes();
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
  while (options.tile_elements == 0 && m.tile_elements > kReductionBlock &&
         pool_for(m.tile_elements) < wanted(m.tile_elements))
    m.tile_elements /= 2;
  m.buffers = static_cast<uint32_t>(buffers_for(m.tile_elements));
  m.buffer_bytes = BufferBytes(*plan, m.tile_elements);
  m.pool = pool_for(m.tile_elements);
  const uint64_t for_tiles = sums + 2 * LargestTileCost(*plan, m.tile_elements);
  if (m.pool < for_tiles + accumulator)  // only a test that fixes the tile gets here
    throw Error(ErrorCode::kMemory, "these tiles do not fit the budget");
  m.accumulators =
      accumulator == 0
          ? 1
          : static_cast<uint32_t>(std::clamp<uint64_t>((m.pool - for_tiles) / 2 / accumulator, 1, threads));
  const std::vector<PlannedScope*> draftable = DraftableScopes(plan, options);
  const uint64_t spare = m.pool - for_tiles - accumulator * m.accumulators;
  PlanDrafts(plan, draftable, std::min(spare, m.pool / 4 * 3));
  ChooseApproaches(plan, options, draftable);
  ChooseWhatIsKept(plan);
  CountBytes(plan);
}

}  // namespace braid
