// A plan: everything that is known before the first data byte. Which tensors come out, where every byte of them
// goes, which ranges of which sources they need, with which coefficients, in how many rounds, and in how much
// memory. Made from the recipe and the sources' headers alone; pure data afterwards.
//
// `plan` prints it, the space check reads it, the graph runs it, `braid.json` carries its fingerprint.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "io/compressed_shard.h"
#include "io/json.h"
#include "ops/chain_merger.h"
#include "ops/delta_merger.h"
#include "ops/merger.h"
#include "ops/method.h"
#include "pipeline/read_backend.h"
#include "pipeline/recipe.h"
#include "pipeline/row_map.h"

namespace braid {

struct PlanOptions {
  uint64_t memory = 0;                        // bytes; 0: DefaultMemory()
  int threads = 0;                            // 0: one per core
  uint64_t shard_bytes = 5'000'000'000;       // decimal, as the Hub counts
  bool single_file = false;                   // one shard, whatever its size
  bool pipe = false;                          // the same, to standard output
  std::string cache = {};                     // directory of the statistics cache; empty: none
  uint64_t tile_elements = 0;                 // 0: chosen from the budget; for tests
  ReadMode read = ReadMode::kAuto;
  // When a sample pays; tests set them lower. For fewer elements two histograms are quicker; to read short runs of
  // files costs as much as reading so many bytes of all sources once more.
  uint64_t least_sampled = 1 << 17;
  uint64_t least_spread_sample = 256 << 20;
  const std::atomic<int>* interrupt = nullptr;   // ends the waiting for streams, also while the plan is run
};

// One source's elements of a tensor. `checkpoint` < 0: this source takes no part.
struct TensorSource {
  int32_t checkpoint = -1;
  uint32_t tensor = 0;     // index into that checkpoint's catalogue
  bool present() const { return checkpoint >= 0; }
};

// A source whose rows are not where the output has them: how they get there, and the type they are in then.
struct MappedRows {
  std::shared_ptr<const RowMap> map;   // null: they are
  DType type = DType::kF32;
};

enum class TensorAction : uint8_t {
  kMerge,
  kCopy,   // integers and booleans: equal in all sources, copied byte for byte
  kKeep,   // unchanged: the base's bytes, and no other source is read; NaN and infinities stay as they are
  // Left out of the merge by `only` or `exclude`: the bytes of the base, or else of the first model, of any type.
  kExclude,
};

struct PlannedTensor {
  std::string name;
  std::vector<uint64_t> shape;
  uint64_t elements = 0;
  DType type = DType::kF32;         // of the output
  TensorAction action = TensorAction::kMerge;
  TensorSource base;                // of a base-relative method; of a kExclude, where the bytes come from
  std::vector<TensorSource> models; // as many as the recipe has, or the slice that the tensor is in
  std::vector<MappedRows> rows = {};   // of base and models, if any of them has another vocabulary; otherwise none
  uint32_t coefficients = 0;        // index into Plan::coefficients
  uint32_t shard = 0;               // where it goes
  uint64_t offset = 0;              // first byte, from the start of the shard file
  uint64_t bytes = 0;
  DType applied = DType::kF32;      // of a delta: the type in the checkpoint that it makes

  TensorFacts Facts() const;
  // A source by its slot: 0 is the base, m + 1 model m.
  const TensorSource& SourceAt(size_t slot) const { return slot == 0 ? base : models[slot - 1]; }
  const RowMap* RowsAt(size_t slot) const { return rows.empty() ? nullptr : rows[slot].map.get(); }
  uint64_t RowElements() const { return elements / shape.front(); }   // of a tensor with mapped rows
};

// The tokenizer files of the output.
struct PlannedTokenizer {
  std::string directory;                     // where they are copied from; empty: with the donor's other files
  std::map<std::string, std::string> texts;  // those that are written instead
  bool rewritten = false;                    // by ids that other forms of the tokenizer do not know: those are left out
  uint64_t rows = 0;                         // vocab_size of config.json; 0: as the donor has it
  uint64_t MemoryBytes() const;
};

struct PlannedShard {
  std::string name;
  std::string header;               // its first bytes
  uint64_t bytes = 0;               // of the file
};

// Tensors that share their statistics: one tensor each, or (scope = "model") all merged tensors at once.
struct PlannedScope {
  std::vector<uint32_t> tensors;    // in the order of processing: of the file, or (model scope) of the names
  uint32_t phase = 0;               // of Plan::chain
  uint64_t elements = 0;
  Approach approach = Approach::kPlain;
  double open_share = 0;   // of its elements, if it is drafted
  DType open_type = DType::kF32;   // ... as what they wait
  uint32_t rounds = 1;              // statistics and the merge
  bool resident = false;            // its tiles stay mapped from the first round to the last that needs them
  uint64_t statistics_bytes = 0;    // one accumulator of its largest round
  uint64_t sums_bytes = 0;
  uint64_t kept_bytes = 0;          // of them, what stays until the last tile is written
  bool keeps_decisions = false;     // those of its statistics, for the merge
  std::vector<ModelStatistics> known = {};   // per model, by the statistics cache; empty: nothing
};

// How the budget is spent. All in bytes unless named otherwise.
// What planning may occupy above the budget: part of the 64 MiB that are promised for the program itself, whose threads
// have not begun yet.
constexpr uint64_t kPlanningAllowance = 32 << 20;

struct MemoryPlan {
  uint64_t budget = 0;
  uint64_t least = 0;               // the smallest budget that works for this plan
  int threads = 1;
  uint64_t catalogue = 0;           // headers, plan
  uint64_t other_plans = 0;         // of stages that are spilled, or of what reads them; part of the catalogue
  uint64_t planning = 0;            // tokenizers, which are there only while the plan is made
  uint64_t workspace = 0;           // Scratch::workspace of one worker
  DecodingSizes decoding;           // of compressed shards
  uint64_t scratch = 0;             // lane buffers and workspaces of all workers
  uint64_t tile_elements = 0;
  uint64_t ordering = 0;            // of an output that leaves in order: to read back what came too early, to compress
  uint32_t encoders = 0;            // threads that compress it
  uint32_t buffers = 0;             // output tiles in flight
  uint64_t buffer_bytes = 0;        // of one
  uint32_t accumulators = 1;        // per scope in progress
  uint32_t drafts = 0;              // output tiles that wait for thresholds
  uint64_t open = 0;                // for the open elements of drafts
  uint64_t pool = 0;                // what remains for mapped tiles and accumulators
  uint64_t waiting = 0;             // of it, for what scopes have found out and others wait for, or keep
};

// Why bytes of a stream are kept in a temporary file once they have come.
enum class SpoolReason : uint8_t {
  kNone,         // they are not: the one tile that wants them takes them as they come
  kReadAgain,    // a later round reads them again, and they do not stay in memory
  kOutOfOrder,   // other tensors that come later are needed before
  kRows,         // their rows go to other places, of another vocabulary
};

std::string_view SpoolReasonName(SpoolReason reason);   // "read again", "out of order", "rows of another vocabulary"

struct StreamSpool;   // stream_reader.h

// A shard that comes once and in order.
struct PlannedStream {
  uint32_t checkpoint = 0, shard = 0;
  uint32_t first = 0;                        // its first tensor in the checkpoint's catalogue
  std::vector<SpoolReason> tensors = {};     // from there on
  uint64_t spooled = 0;                      // bytes
  std::shared_ptr<StreamSpool> spool = {};   // where they are, for all the runs that read the stream
  bool finishes = true;                      // this is the last of them
};

struct PlanTotals {
  std::vector<uint64_t> read_per_round;  // bytes touched in each round; later ones may come from the page cache
  uint64_t bytes_read = 0;               // sum of the rounds that map anew
  uint64_t bytes_written = 0;            // before they are compressed
  uint64_t bytes_spooled = 0;            // of streams that are read, to a temporary file
  uint64_t bytes_spilled = 0;            // of an output that leaves in order: what comes before its turn
  uint64_t merged_elements = 0, parameters = 0;
  uint32_t merged = 0, copied = 0, unchanged = 0;  // tensors, by their action
};

// Where statistics are kept, and what identifies the files that they are of: per checkpoint and shard, or nothing for a
// file of which none may be kept.
struct StatisticsPlace {
  std::string directory;   // empty: nowhere
  std::vector<std::vector<std::optional<XXH128_hash_t>>> files;
};

// What is read and written in all, in bytes, where a stage is computed anew in every round that needs it, and where it
// is merged into a file first.
struct SpillChoice {
  uint64_t recomputed = 0, spilled = 0;
  std::string why_not = {};   // of computing it anew, as the end of "..., because"; empty: nothing
};

// One of several merges that are one (plan_stages.cc).
struct PlannedStage {
  std::string name;                  // empty: none, or that of the result
  const MethodInfo* method = nullptr;
  int32_t base = -1;                 // as in Plan; a stage's result is a checkpoint without files
  std::vector<uint32_t> models;
  std::optional<DType> type = {};    // which its result is rounded to, where the recipe says so
  uint32_t rounds = 0;               // of statistics, before it can be merged
  // Where it, or what reads it, has statistics of whole models.
  std::optional<SpillChoice> choice = {};
};

struct Plan;

// A stage whose result is written to a file of float32, or of the type that it asks for, which later stages read: see
// SpillChoice.
struct SpilledStage {
  uint32_t stage = 0;
  int32_t checkpoint = -1;          // its result, among the plan's; where the file is shows when the merge runs
  std::shared_ptr<Plan> plan = {};  // its checkpoints are those of the whole plan, lent to it while it runs
  std::string fingerprint = {};
};

struct Plan {
  Recipe recipe;
  const MethodInfo* method = nullptr;
  bool relative = false;                  // tensors have a base, and the method compares the models with it
  std::vector<Checkpoint> checkpoints;
  std::vector<ReadChoice> reading;        // per checkpoint
  int32_t base = -1;                      // index into checkpoints
  std::vector<uint32_t> models;           // the same, per recipe model; of slices, each source but the base once
  size_t most_models = 0;                 // that one tensor is merged from
  PlannedTokenizer tokenizer;
  std::string donor_directory;            // of config and side files; may be empty (single-file sources)
  ModelConfig donor_config;
  DType config_type = DType::kF32;        // what config.json will say: the type of most parameters
  bool untie_head = false;                // tie_word_embeddings becomes false
  bool model_scope = false;
  uint64_t left_out_elements = 0;         // of unchanged tensors that a delta leaves out
  bool measured = false;                  // every scope is measured before one is merged (layer_scale.h)
  bool single_file = false;
  bool in_order = false;                  // bytes leave in the order of the files: a pipe, or compressed shards
  // Of several merges; otherwise empty. What is said of the plan's own method, base and models is that of the last one.
  std::vector<PlannedStage> stages;
  std::vector<SpilledStage> spills;       // in the order in which they run, before this plan
  // Of the stages that are merged on the way. Merged tensors are planned as if merged, in one step, from all the files
  // that any of these stages reads for them: their coefficients name a tree.
  Chain chain;
  std::vector<Coefficients> coefficients; // without duplicates
  std::vector<PlannedTensor> tensors;     // in output order
  std::vector<PlannedShard> shards;
  std::vector<PlannedScope> fronts;       // of the chain's phases before the last: they are not merged. In their order
  std::vector<PlannedScope> scopes;       // in the order of processing
  std::vector<PlannedStream> streams;     // in the order of checkpoints and shards
  StatisticsPlace statistics;
  MemoryPlan memory;
  PlanTotals totals;
  std::vector<std::string> warnings;

  // Whether it writes a delta, or applies one.
  bool delta() const { return recipe.output.content == RecipeOutput::Content::kDelta; }
  bool applies() const { return method == &ApplyDelta(); }
  // Whose config and order of tensors the output has.
  const Checkpoint& Donor() const { return checkpoints[base >= 0 ? static_cast<size_t>(base) : models.front()]; }
  const TensorInfo& Info(const TensorSource& source) const {
    return checkpoints[static_cast<size_t>(source.checkpoint)].tensors[source.tensor].info;
  }
  // Index into `streams`, or -1.
  int32_t StreamOf(const TensorSource& source) const;
  const Shard& ShardOf(const TensorSource& source) const {
    const Checkpoint& checkpoint = checkpoints[static_cast<size_t>(source.checkpoint)];
    return checkpoint.shards[checkpoint.tensors[source.tensor].shard];
  }
  bool IsChain() const { return !chain.trees.empty(); }
  bool IsFront(const PlannedScope& scope) const { return scope.phase + 1 < chain.whole.size(); }
  // Whether a scope of merged tensors is that of a whole model.
  bool IsWhole(const PlannedScope& scope) const { return IsChain() ? chain.whole[scope.phase] : model_scope; }
  // How the elements of a source that is there reach the merge.
  DType TypeAt(const PlannedTensor& tensor, size_t slot) const {
    return tensor.RowsAt(slot) != nullptr ? tensor.rows[slot].type : Info(tensor.SourceAt(slot)).dtype;
  }
  // What its tiles are multiples of (MethodInfo::TileUnit); 0: reduction blocks.
  uint64_t TileUnit(const PlannedTensor& tensor) const;
  // Elements of a tile of this tensor when tiles are to have `wanted`; whole units, where there are any.
  uint64_t TileElements(const PlannedTensor& tensor, uint64_t wanted) const;
  uint64_t TileElements(const PlannedTensor& tensor) const { return TileElements(tensor, memory.tile_elements); }
  uint64_t Tiles(const PlannedTensor& tensor) const {
    const uint64_t elements = TileElements(tensor);
    return (tensor.elements + elements - 1) / elements;
  }
  // How many parts a tensor's sums are taken in: reduction blocks, or units.
  uint64_t SumBlocks(const PlannedTensor& tensor) const;
  // The merger of a scope; the same every time. `found`: of a chain, what the phases before have found out, by
  // Chain::mergers; null: it only is to say what it would do.
  std::unique_ptr<Merger> MakeMerger(const PlannedScope& scope, Approach approach,
                                     const std::vector<ChainFinding>* found = nullptr) const;
};

// Throws Error: kUsage (recipe, missing sources), kBadInput, kIncompatible, kMemory (budget too small).
Plan MakePlan(Recipe recipe, const PlanOptions& options);

// `braid apply` as a recipe: it has no file, and no user could write it. Merged, it gives the checkpoint that a base
// and a delta make, with the base's config and tokenizer: from a delta in float32 what the merge behind it would have
// written, bit for bit. Its text is the recipe of that merge, where the delta has it.
Recipe ApplyRecipe(const std::string& base, const std::string& delta);

// Bytes of address space that a tile of `elements` occupies when mapped, in all its sources.
uint64_t TileCost(const Plan& plan, const PlannedTensor& tensor, uint64_t elements);

// The plan as one JSON object, for `plan --json`, passed to `write` piece by piece. Deterministic. `more`: members to
// put in front of the tensors.
void WritePlanJson(const Plan& plan, const Json& more, const std::function<void(std::string_view)>& write);

// XXH3-128, as hex, of all that decides the output's bytes: method, coefficients, sources' catalogues and sizes,
// output layout. Not of memory, threads or paths.
std::string PlanFingerprint(const Plan& plan);

}  // namespace braid
