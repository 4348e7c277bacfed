// Selection in one pass over the data instead of two: a sample brackets the threshold, the pass counts the keys above
// the bracket and collects those inside, and the exact threshold is then found among the collected ones, by the same
// two histograms. After Floyd and Rivest, "Expected time bounds for selection", CACM 18 (1975).
//
// The result never depends on the sample: when the bracket misses the threshold, or holds too many keys (a constant
// task vector is all one key), Select says so and the plain two passes follow.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "ops/magnitude_selection.h"

namespace braid {

// Up to so many keys, selection looks at each instead of counting them in tables. With tables, 10,000 tensors of 2,048
// elements took 1.1 ms each, without 0.1; of 16,384 elements both take 0.3 to 0.4 ms.
inline constexpr uint64_t kFewKeys = 1 << 13;

struct Bracket {
  uint32_t low = 0, high = 0;   // keys, both inclusive
};

// Where the k-th largest of n keys lies, by a sample of them (reordered here): three standard deviations to each side,
// so that one bracket in 400 misses. Nothing when the sample is too small to say.
std::optional<Bracket> BracketOf(std::vector<uint32_t>* sample, uint64_t k, uint64_t n);

// Keys with their index in the scope. Not zeroed when made.
struct CandidateChunk {
  static constexpr size_t kEntries = 4096;
  size_t count;
  uint32_t keys[kEntries];
  uint32_t indices[kEntries];
};

// The memory for candidates: chunks that are made once and reused, never more than `most_bytes` of them. Thread-safe.
class CandidatePool {
 public:
  explicit CandidatePool(uint64_t most_bytes) : left_(most_bytes / sizeof(CandidateChunk)) {}
  CandidateChunk* Take();   // empty; nullptr when all are in use
  void Give(CandidateChunk* chunk);

 private:
  std::mutex mutex_;
  uint64_t left_;           // chunks that may still be made
  std::vector<std::unique_ptr<CandidateChunk>> made_;
  std::vector<CandidateChunk*> free_;
};

// Keys inside a bracket, as one worker collects them. Move-only; gives its chunks back on destruction.
class Candidates {
 public:
  explicit Candidates(CandidatePool* pool) : pool_(pool) {}
  Candidates(Candidates&& other) noexcept : above(other.above), pool_(other.pool_), chunks_(std::move(other.chunks_)) {}
  ~Candidates() { Clear(); }

  // A chunk with room for at least `entries` more (at most kEntries); nullptr when the pool has no more.
  CandidateChunk* RoomFor(size_t entries);
  void TakeOver(Candidates* other);
  void Clear();
  uint64_t size() const;

  uint64_t above = 0;    // keys above the bracket

  // The k-th largest key overall, how many are larger and equal. Nothing when it is not inside the bracket, which must
  // be the one that these were collected with.
  std::optional<Threshold> Select(uint64_t k, const Bracket& bracket) const;

  // The index up to which (exclusive) exactly `count` of the candidates equal to `key` lie. 1 <= count <= equals.
  uint64_t CutAfter(uint32_t key, uint64_t count) const;

 private:
  Threshold SelectAmongFew(uint64_t k) const;
  template <typename Visit>
  void ForEach(Visit visit) const;   // visit(key, index, lane): lane counts modulo 4, to spread equal bins over tables

  CandidatePool* pool_;
  std::vector<CandidateChunk*> chunks_;
};

}  // namespace braid
