// A method at work on one scope: a tensor, or the whole model.
//
// A merge is an ordered list of rounds over the lanes. Each statistics round maps tiles to accumulators that can
// be added (histograms) and to float64 sums per reduction block; Finish turns them into results that the next
// rounds use. The last round is the merge itself. Whoever drives a Merger chooses tiles, threads and memory; no
// choice changes a bit of the result.
//
// Some rounds are *ordered*: entries equal to a model's threshold stay in index order until its quota is spent.
// Tiles then count their claims in parallel, somebody hands out the quota serially in order of the index, and
// the tiles go on in parallel with what they were granted.
//
// Some rounds want a *sample*, runs of lanes from all over the scope. And one is a *draft*: it merges before the
// thresholds are known, and puts the few elements aside that they will decide; see ops/draft.h. The data is then read
// once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "ops/bracket.h"
#include "ops/draft.h"
#include "ops/dtype.h"
#include "ops/kernels.h"
#include "ops/magnitude_selection.h"
#include "ops/method.h"

namespace braid {

// Sums are taken per block of this many elements, counted from the start of the tensor, and added in order.
// Tiles are whole blocks (the last one of a tensor may be short).
inline constexpr size_t kReductionBlock = 65'536;

// Lanes decoded at once. N + 1 sources of 4 KiB fit L1 for the usual N.
inline constexpr size_t kBlockLanes = 1024;

// Most lanes that a sample may hold.
inline constexpr size_t kSampleLanes = 131'072;

// Elements as they lie in a file. No bytes: the source takes no part (weight 0, or not needed in this round).
struct EncodedLanes {
  DType type = DType::kF32;
  const std::byte* bytes = nullptr;
};

// A range of one tensor in every source. The bytes belong to the caller.
struct LaneTile {
  uint64_t first = 0;  // index in the tensor; a multiple of kReductionBlock (to be merged: of kBlockLanes), or of
                       // MethodInfo::TileUnit
  size_t count = 0;    // whole units, too, but for the end of the tensor
  TensorFacts tensor;
  EncodedLanes base;
  std::span<const EncodedLanes> models;
};

// What one worker counts in one round; Add is associative and commutative to the last bit.
class Accumulator {
 public:
  virtual ~Accumulator() = default;
  virtual void Add(Accumulator* other) = 0;  // may empty the other

  // What was counted, handed to another process as bytes, where Load adds it to one of the same round. Not all of them
  // can; nothing depends on it.
  using Put = std::function<void(const void*, size_t)>;
  using Get = std::function<void(void*, size_t)>;
  virtual bool Travels() const { return false; }
  virtual void Save(const Put&) const {}
  virtual void Load(const Get&) {}
};

// Where a round leaves its sums: data[quantity * stride + block in the tensor], of reduction blocks or tile units.
struct BlockSums {
  double* data = nullptr;
  size_t stride = 0;
};

struct RoundSpec {
  std::string_view name;
  size_t accumulator_bytes = 0;  // 0: the round has no accumulator
  size_t sums = 0;               // quantities summed per reduction block
  size_t kept_bytes = 0;         // of what Finish keeps for the merge, where that is much
  bool ordered = false;          // wants grants
  bool sample = false;           // wants runs of equal length from all over the scope, each as a tile of its own
  size_t sample_runs = 1024;     // how many of them, of what is in memory; from a disk as many as pay
  bool draft = false;            // wants Draft instead of Accumulate, and FinishDraft instead of Finish
  double open_share = 0;         // of a draft: the share of elements that it puts aside, more or less
  bool open_encoded = false;     // ... as BF16, where all sources are; otherwise as F32
  size_t scratch_bytes = 0;      // Scratch::workspace that it needs
};

// How thresholds are found, for mergers that need some. The result is the same. What a merger is asked for is a wish;
// round() says what it came to (a method may need sums that only kPlain takes).
enum class Approach {
  kPlain,    // two histograms: two reads before the merge
  kSampled,  // a sample, then one read that counts what the sample leaves open
  kDraft,    // a sample, then one read that merges: for one tensor whose output can wait in memory
};

// A tensor of so few elements is drafted without a sample: all that is not zero is open. To look at each takes less
// time than clearing and searching two histograms of half a megabyte.
inline constexpr uint64_t kFewElements = 32'768;

// What is known of one model's task vector in one scope. It depends on the elements of the base and that model, in the
// order of the scope, and on what was asked; not on other models, weights, approach or machine. So it can be kept.
struct ModelStatistics {
  uint64_t asked = 0;            // entries that the density asks for; 0: there is nothing to find out
  bool keep_equals = false;      // the question was for all entries equal to the last one, too
  // The answer.
  bool has_threshold = false;
  bool all_zero = false;         // no entry is above zero
  Cut cut = {};                  // where the entries that stay end
  uint64_t quota = UINT64_MAX;   // Merger::kNoQuota, or: of those equal to cut.key only so many stay, by index
  uint64_t kept = 0;             // how many stay
  // Half of it, from a histogram that was made for another question.
  bool has_bin = false;
  CriticalBin bin = {};
  // Sums of magnitudes. Only rescale takes them, and asks for them.
  bool has_norm = false, has_kept_norm = false;
  double norm = 0, kept_norm = 0;   // of all entries; of those that stay
};

struct MergeCounts {
  NonFinite non_finite;      // in the output
  uint64_t conflicts = 0;    // elements whose entries disagreed in sign
};

// l1 norms over a scope.
struct TaskVectorNorms {
  double mean = 0;     // of the mean of the task vectors
  double merged = 0;   // of what they are merged to, before lambda
};

// Thrown by Finish and Merge where these elements have no merge; the end of a sentence about the tensor.
class NoMerge : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Lane buffers of one worker, reused for every tile. Not thread-safe.
class Scratch {
 public:
  // `workspace_bytes`: the most that a round asks for.
  explicit Scratch(size_t num_models, size_t workspace_bytes = 0);
  ~Scratch();
  static size_t Bytes(size_t num_models, size_t workspace_bytes);

  float* base;
  std::vector<float*> models;
  float* out;
  float* room;                         // num_models * kLanePadding floats
  uint32_t* draws;                     // as long as the lanes
  uint32_t* limits;
  std::byte* workspace;                // aligned as lanes are
  std::vector<size_t> voters;          // indices of the models that take part in the merge
  std::vector<const float*> present;   // their lanes, at the current position
  std::vector<float*> deltas;          // the same, to be changed in place (ops/delta_blocks.h)
  std::vector<double> sums;            // in the making: kSumLanes each
  std::vector<const void*> sources;    // the same, or their encoded elements
  std::vector<float> weights, factors;
  std::vector<uint32_t> min_keys, sure_keys;
  std::vector<uint64_t> staying;
  std::vector<Cut> cuts;
  // In float64, for linear combinations: lanes per model, and what is found of a row.
  std::vector<double*> wide;
  std::vector<const double*> terms;
  std::vector<double> partial, products, shares;
  std::vector<size_t> places;

 private:
  struct Storage;
  std::unique_ptr<Storage> storage_;
};

class Merger {
 public:
  virtual ~Merger() = default;

  // Rounds before the merge. round(statistics_rounds()) describes the merge. Finish may add rounds after its own.
  virtual size_t statistics_rounds() const = 0;
  virtual RoundSpec round(size_t r) const = 0;

  // Whether round r needs a model's lanes, for a tensor with these coefficients. When it needs none, not even
  // the base, a statistics round may pass over the tensor.
  virtual bool Reads(size_t r, size_t model, const Coefficients& coefficients) const = 0;

  // --- what is kept from one merge to the next
  // Before the first round: what was asked of a model. After the last statistics round, or the draft: with the answer.
  virtual ModelStatistics Statistics(size_t model) const;
  // The histogram of the high halves of its keys, if a round has made one and it is worth keeping. It is gone from here
  // then.
  virtual std::vector<BinCount> TakeHighHalves(size_t model);
  // Before the first round: what is known of each model (empty: nothing), which may make rounds unnecessary. Answers to
  // other questions are passed over. From then on histograms are kept.
  virtual void UseStatistics(std::span<const ModelStatistics> known);

  // --- what the statistics decide of each entry, kept for the merge
  // Bytes that it takes; 0: there is nothing to keep. Never needed: without it the merge decides again.
  virtual uint64_t DecisionBytes() const { return 0; }
  // Before the first round: there is room for it.
  virtual void KeepDecisions() {}

  // --- statistics: Accumulate runs concurrently for different tiles, each with an accumulator of its own
  virtual std::unique_ptr<Accumulator> NewAccumulator(size_t r) const;
  virtual void Accumulate(size_t r, const Coefficients& coefficients, const LaneTile& tile,
                          const uint64_t* grants, Scratch& scratch, Accumulator* accumulator,
                          BlockSums sums) const;
  // Serial, once all tiles of the round are in. `sums` holds one total per quantity.
  virtual void Finish(size_t r, Accumulator* accumulator, std::span<const double> sums);

  // --- the draft round
  // Writes the tile as Merge does, and puts its open elements aside. False: there is no room for them; then, as when
  // FinishDraft returns false, the scope has to start anew with another approach. Concurrently for different tiles.
  virtual bool Draft(const Coefficients& coefficients, const LaneTile& tile, Scratch& scratch, DType type,
                     std::byte* out, OpenElements* open, MergeCounts* counts) const;
  // Serial, once all tiles are drafted: what they put aside, in the order of the tiles.
  virtual bool FinishDraft(std::span<const OpenElements* const> tiles);
  // Corrects the draft of the tile that begins at element `first`. Concurrently for different tiles.
  virtual void Settle(const Coefficients& coefficients, const OpenElements& open, uint64_t first, Scratch& scratch,
                      DType type, std::byte* out, MergeCounts* counts) const;

  // --- ordered rounds
  // How many thresholds a model may have. Claims and grants lie model by model, claim `k` of model m at m * this + k.
  virtual size_t claims_per_model() const { return 1; }
  // Adds to claims[i] the entries of this tile that are equal to that threshold.
  virtual void CountClaims(const Coefficients& coefficients, const LaneTile& tile, Scratch& scratch,
                           uint64_t* claims) const;
  // How many of claim i may be granted over the whole scope. kNoQuota: it has none to count; as a grant: all that the
  // tile claims.
  static constexpr uint64_t kNoQuota = UINT64_MAX;
  virtual uint64_t Quota(size_t claim) const;

  // --- the merge: writes tile.count elements of `type`. `grants`: null when the merge is not ordered.
  virtual void Merge(const Coefficients& coefficients, const LaneTile& tile, const uint64_t* grants,
                     Scratch& scratch, DType type, std::byte* out, MergeCounts* counts) const = 0;

  // For the report: entries of all task vectors in scope, and how many of them stayed. Equal when nothing trims.
  virtual uint64_t entries() const { return 0; }
  virtual uint64_t kept() const { return 0; }

  // After the last statistics round, if that measures them (ops/measured_merger.h).
  virtual TaskVectorNorms norms() const { return {}; }
};

// Adds 16 interleaved sums in a fixed tree: 8 pairs at distance 8, then 4, 2, 1.
double FoldSums(double* sums);

}  // namespace braid
