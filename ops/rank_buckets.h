// Which entries of a row stay when the probability of each grows with its rank by magnitude, without ranking them all.
//
// The draw alone decides where it is below the limit of the smallest rank or not below that of the largest. The others
// go by buckets, of keys with the same leading bits: those of the buckets before and up to its own bound an entry's
// rank. Where the limits of both bounds do not decide either, the keys of its bucket are counted. So few ranks are
// found exactly, and what stays is the same as if all were.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace braid {

// The entry of rank r (0: the smallest; equal ones by their index) stays with probability low + step r, step >= 0: when
// its draw is below the limit. Drawn by its place, see ops/random.h.
struct RankLimits {
  static constexpr double kScale = 0x1p31, kMost = kScale - 1;   // rounding may make a probability 1
  double low = 0, step = 0;

  // A rank is below 2^31 where anybody has the memory for it: as a signed number it takes one instruction.
  double ProbabilityOf(uint32_t rank) const { return low + step * static_cast<double>(static_cast<int32_t>(rank)); }
  uint32_t Of(uint32_t rank) const {
    return static_cast<uint32_t>(static_cast<int32_t>(std::min(ProbabilityOf(rank) * kScale, kMost)));
  }
};

// The keys of one row in buckets. 2,048 buckets of key >> 16, up to the largest key's, hold 16 octaves (what is smaller
// goes with the first); those of a task vector of bf16 are mostly equal keys.
struct RankBuckets {
  static constexpr size_t kColumns = 16, kDepth = 128, kBuckets = kColumns * kDepth;
  // Bucket b is at slot b % kDepth * kColumns + b / kDepth, so that vectors add up counts; the next one kColumns behind
  // it.
  static constexpr size_t kSlots = kBuckets + kColumns;

  // Bytes of `room` for n keys.
  static constexpr size_t RoomBytes(size_t n) { return n * 10 + 1024; }

  const uint32_t* keys;   // n of them, with padding
  size_t n;
  uint32_t* places;       // of a key among those of its bucket
  uint32_t* sorted;       // keys by bucket
  uint16_t* slots;
  uint64_t work;          // keys that may still be looked at
  uint32_t least, most;   // limits of the first and the last rank
  uint32_t starts[kSlots], limits[kSlots];   // of a bucket: its first rank, and the limit of that
};

// Puts n > 0 keys, below 2^31 and padded as lanes are, into buckets. The keys and `room`, aligned as lanes are, have to
// stay.
void FillBuckets(const uint32_t* keys, size_t n, const RankLimits& limits, std::byte* room, RankBuckets* buckets);

// Of the entries start .. start + n of the row: sets bit i % 64 of word i / 64 where entry start + i stays, and clears
// it elsewhere. Entries that are zero may stay or not. False when keys are too much alike for it to be worth while:
// then whoever asks has to rank them. `draws` are padded.
bool KeepByBuckets(const RankLimits& limits, const uint32_t* draws, size_t start, size_t n, RankBuckets* buckets,
                   uint64_t* words);

// The same from ranks that are known, of n entries.
void KeepByRanks(const RankLimits& limits, const uint32_t* draws, const uint32_t* ranks, size_t n, uint64_t* words);

}  // namespace braid
