// Where a threshold lies, guessed from a sample of the entries, so that one pass over all of them finds it exactly:
// what is outside the bracket is only counted, what is inside is looked at. After Floyd and Rivest, "Expected time
// bounds for selection", CACM 18 (1975). The result never depends on the sample: a bracket that misses is noticed, and
// another way of selecting follows.
//
// Entries are selected in this order: larger keys first (ops/kernels.h), equal keys by their index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace braid {

// A place in that order: entries before it stay, others go.
struct Cut {
  uint32_t key = 0;
  uint64_t index = UINT64_MAX;   // of the entries whose key is `key`, those with a smaller index stay

  // The least key that stays at this index.
  uint32_t MinKey(uint64_t i) const { return key + (i < index ? 0 : 1); }
  bool Keeps(uint32_t entry_key, uint64_t i) const { return entry_key >= MinKey(i); }
  bool operator==(const Cut&) const = default;
};

// Whose place is between `sure` (inclusive) and `open` (exclusive) is undecided. An entry of 0 never is: it adds
// nothing to a merge whether it stays or not. Indices are multiples of kBlockLanes (ops/merger.h), so that a block of
// lanes has one least key each, or leave equal keys together (0 for `sure`, all for `open`).
struct Bracket {
  Cut sure, open;
  bool reaches_zero() const { return open.key == 0; }   // nothing but zeros lies behind
};

// A sample: runs of `run` lanes each, by their places (PlaceOf). The runs should be roughly in the order of the index.
struct PlaceSample {
  size_t run = 0;
  std::vector<uint64_t> places;
};

// A sample of which a bracket is known already: entries outside of it are only counted.
struct InsideSample {
  size_t run = 0;
  std::vector<uint64_t> places;   // inside
  std::vector<uint32_t> before;   // per run: entries before the bracket
  std::vector<uint32_t> ends;     // per run: of its places
};

// Keys and indices as one number that orders as selection does. The index is 0 when equal keys shall stay together.
inline uint64_t PlaceOf(uint32_t key, uint32_t index) { return uint64_t{0x7fffffff - key} << 32 | index; }
inline uint32_t KeyAt(uint64_t place) { return 0x7fffffff - static_cast<uint32_t>(place >> 32); }
inline uint32_t IndexAt(uint64_t place) { return static_cast<uint32_t>(place); }

// Share of the entries that a bracket leaves open: 1 % hold 3.5 standard deviations of a sample of kSampleLanes in its
// middle, the rest is for rows that differ.
inline constexpr double kOpenShare = 0.012;

// The bracket of the k-th of n entries: 3.5 standard deviations to each side, as the runs show them (the lanes of one
// run are not independent), so that one in 2,000 misses. `by_index`: the places have indices. Nothing when the sample
// is too small to say.
std::optional<Bracket> BracketOf(const PlaceSample& sample, uint64_t k, uint64_t n, bool by_index);

// A bracket within a bracket, by a larger sample. That bracket where the sample says nothing.
Bracket NarrowBracket(const Bracket& bracket, const InsideSample& sample, uint64_t k, uint64_t n, bool by_index);

}  // namespace braid
