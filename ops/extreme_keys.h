// The k smallest and the k largest of many keys, exactly and in one read, for order statistics so far out that k of
// them fit in memory. Where a histogram needs a second read for its low halves, these need none, and no sample to guess
// from. Not thread-safe: one for each worker, added in the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace braid {

// The k largest so far. Never holds more than 2k keys and a block more.
class LargestKeys {
 public:
  explicit LargestKeys(size_t k);

  // Smaller keys are not among them any more.
  uint32_t least_wanted() const { return least_wanted_; }
  // At most kBlockLanes at once.
  void Take(const uint32_t* keys, size_t n);
  void Add(LargestKeys* other);
  // From 1 on, at most k, and at most what there was.
  uint32_t Ranked(size_t rank);

  static uint64_t Bytes(uint64_t k);

 private:
  void Prune();

  size_t k_;
  uint32_t least_wanted_ = 0;
  std::vector<uint32_t> keys_;   // all the memory that it will need
};

// Of one task vector's keys (ops/kernels.h) both ends.
class ExtremeKeys {
 public:
  ExtremeKeys(size_t smallest, size_t largest) : smallest_(smallest), largest_(largest) {}

  // A block of lanes, with padding.
  void Look(const float* d, size_t n);
  void Add(ExtremeKeys* other);

  uint64_t seen() const { return seen_; }
  // From 1 on, at most so many as it was made for, and at most what was seen.
  uint32_t Smallest(size_t rank);
  uint32_t Largest(size_t rank) { return largest_.Ranked(rank); }

  static uint64_t Bytes(uint64_t smallest, uint64_t largest) {
    return LargestKeys::Bytes(smallest) + LargestKeys::Bytes(largest);
  }

 private:
  uint64_t seen_ = 0;
  LargestKeys smallest_;   // mirrored
  LargestKeys largest_;
};

// The least and the largest key of n > 0 lanes.
struct KeyRange {
  uint32_t least = 0, largest = 0;
};
KeyRange KeyRangeOf(const float* d, size_t n);

}  // namespace braid
