// The inner loops, over blocks of a thousand float32 lanes that lie in scratch which fits L1.
//
// Written once with Highway and compiled for each instruction set; the best one is chosen at run time
// (kernels_codec.cc, kernels_select.cc, kernels_merge.cc, kernels_combine.cc). Every
// lane is computed independently with separately rounded float32 steps, and every sum in a fixed order, so all
// targets give the same bits. Thread-safe: functions of their arguments. None allocates.
//
// Padding: every lane array that a kernel reads must have kLanePadding readable lanes after its end, and every
// lane array that it writes as many writable ones. What lies in the padding has no influence on any result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/dtype.h"

namespace braid {

inline constexpr size_t kLanePadding = 64;  // at least one vector of any target

// --- types ------------------------------------------------------------------------------------------------

// Decodes n elements to float32 lanes (float64 is rounded to nearest even). `bytes` may be unaligned and has no
// padding; lanes n .. n + kLanePadding of `lanes` are set to zero.
void DecodeLanes(DType type, const void* bytes, size_t n, float* lanes);

struct NonFinite {
  uint64_t nan = 0, inf = 0;
};

// Rounds n lanes to nearest even; every NaN becomes the canonical quiet one. `bytes` may be unaligned; exactly
// n elements are written. Counts what is NaN or infinite after rounding.
void EncodeLanes(DType type, const float* lanes, size_t n, void* bytes, NonFinite* counts);

// --- task vectors -----------------------------------------------------------------------------------------

// d = x - base: decodes n elements of x and subtracts lanes of the base. Lanes n .. n + kLanePadding of `d` are set to
// zero. `bytes` as for DecodeLanes.
void DecodeTaskVector(DType type, const void* bytes, const float* base, size_t n, float* d);

// --- selection by magnitude -------------------------------------------------------------------------------
// The key of a lane is its bits without the sign: as integers, keys order as magnitudes do. All NaNs share
// kNanKey, just above infinity.

inline constexpr uint32_t kNanKey = 0x7f800001;
inline constexpr size_t kHighBins = 0x8000;   // of key >> 16
inline constexpr size_t kLowBins = 0x10000;   // of key & 0xffff

// ++bins[key >> 16] for each lane. `bins` has kHighBins entries.
void CountHighHalves(const float* d, size_t n, uint32_t* bins);

// ++bins[key & 0xffff] for each lane with key >> 16 == high. `bins` has kLowBins entries.
void CountLowHalves(const float* d, size_t n, uint32_t high, uint32_t* bins);

// Lanes whose key is `key`.
uint64_t CountKey(const float* d, size_t n, uint32_t key);

// Writes the keys with low <= key <= high, and their places in d, to `keys` and `places` (room for n each); returns how
// many. *above gets the number of keys above `high` added.
size_t CollectKeys(const float* d, size_t n, uint32_t low, uint32_t high, uint32_t* keys, uint32_t* places,
                   uint64_t* above);

// The same of a task vector as it lies in files: model - base, n elements of F16, BF16 or F32 each, without alignment
// or padding.
size_t CollectTaskVectorKeys(DType type, const void* base, const void* model, size_t n, uint32_t low, uint32_t high,
                             uint32_t* keys, uint32_t* places, uint64_t* above);

// The keys of d[0 .. n).
void StoreKeys(const float* d, size_t n, uint32_t* keys);

// --- sums -------------------------------------------------------------------------------------------------

inline constexpr size_t kSumLanes = 16;

// sums[i % 16] += |d[i]| in float64 for the lanes whose key >> 16 is above `high` (-1: for all). n must be a
// multiple of 16 except at the end of a tensor.
void AddMagnitudes(const float* d, size_t n, int32_t high, double* sums);

// --- merging ----------------------------------------------------------------------------------------------

// One block of task-vector merging; see methods.md, "GTA". All arrays of models hold only those that take part.
struct TaskVectorBlock {
  const void* base;             // padded float32 lanes; or elements as they are encoded in a file, see MergeEncoded
  const void* const* models;    // the fine-tunes
  size_t num_models;
  const float* weight;          // per model
  const float* factor;          // per model, applied to the trimmed task vector; nullptr: none
  const uint32_t* min_key;      // per model, at most kNanKey + 1: entries with a smaller key are trimmed
  bool elect;                   // sign election and disjoint merge
  bool elect_by_count;          // count signs instead of summing values
  bool elect_weighted;          // vote with w d instead of d
  bool zero_elects_minus;       // which sign a cancelled vote elects
  bool divide;                  // by the weights that agree (elect), or by `divisor`
  float divisor;
  float lambda;
};

struct VoteCounts {
  uint64_t conflicts = 0;       // elements with a vote against the elected sign
  int64_t sign_sum = 0;         // elements with a positive total minus those with a negative one
};

// Entries that stay for now although nobody knows yet whether they will: those with min_key <= key < sure_key. An
// element with such an entry is open; see ops/draft.h.
struct OpenEntries {
  const uint32_t* sure_key;     // per model
  uint64_t* staying;            // per model: gets the number of entries with key >= min_key added
  uint64_t* words;              // gets bit i % 64 of word i / 64 set where element i is open, cleared elsewhere
};

// out = merged block, from and to float32 lanes. `room` is scratch for num_models * kLanePadding floats. `uncounted`:
// a bit per element that is not counted; nullptr: all are.
void MergeTaskVectors(const TaskVectorBlock& block, size_t n, float* room, float* out, const uint64_t* uncounted,
                      VoteCounts* counts);

// The same in one go from elements of `from` to elements of `to`, both without alignment or padding, open entries
// (nullptr: none) found on the way; open elements are not counted. Not for every block and pair of types, and not where
// a NaN comes in, or an infinity that stays, or an infinity comes out: then it returns false, and only `out` and
// `open->words` may have changed. At most 2^31 elements.
bool MergeEncoded(const TaskVectorBlock& block, DType from, DType to, size_t n, void* out, VoteCounts* counts,
                  const OpenEntries* open);

// Open entries alone, from float32 lanes.
void FindOpen(const TaskVectorBlock& block, size_t n, const OpenEntries& open);

// Only the vote: adds to counts->sign_sum.
void CountElectedSigns(const TaskVectorBlock& block, size_t n, VoteCounts* counts);

// out = sum of weight[i] models[i], divided by `divisor` when `divide`.
void WeightedSum(const float* const* models, size_t num_models, const float* weight, bool divide, float divisor,
                 size_t n, float* out);

// --- linear combinations in float64 -----------------------------------------------------------------------
// Of lanes x of a source, or of x - base: products and differences of float32 numbers are exact in float64 (differences
// unless one is 2^29 times the other).

// wide = x, or x - base (nullptr: no base), for n lanes; up to a multiple of kSumLanes it is filled up with zeros.
void WidenLanes(const float* x, const float* base, size_t n, double* wide);

// sums[i % 16] += x[i] y[i] for n lanes that WidenLanes wrote.
void AddProducts(const double* x, const double* y, size_t n, double* sums);

// Lane by lane, for n lanes: sums[i] += x[i] y[i], and x[i] *= y[i].
void AddLaneProducts(const double* x, const double* y, size_t n, double* sums);
void MultiplyLanes(const double* y, size_t n, double* x);

// How float64 becomes float32 lanes: to nearest even; or, where EncodeLanes rounds on to a narrower type, to odd (what
// is not exact gets the neighbour with an odd last bit), so that both steps together round once.
enum class LaneRounding { kNearest, kOdd };

// out = base + sum of share[i] terms[i], in this order, rounded once; a term whose share is 0 is not read. Where the
// sum is 0, the base keeps its bits. Without a base (nullptr) the sum alone.
void CombineLanes(const double* const* terms, size_t num_terms, const double* share, const float* base, size_t n,
                  LaneRounding rounding, float* out);

}  // namespace braid
