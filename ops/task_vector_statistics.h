// What the statistics rounds of task vectors count into.
#pragma once

#include <utility>
#include <vector>

#include "ops/bracket.h"
#include "ops/merger.h"

namespace braid {

// One histogram per model that needs selection. Workers count in 32 bits, half the memory of 64 and all that a tensor
// of fewer than 2^31 elements needs; with more, counts move to a second table of 64 bits before they could overflow.
class Histograms : public Accumulator {
 public:
  Histograms(size_t slots, size_t bins) : bins_(bins), small_(slots * bins) {}

  uint32_t* Row(size_t slot) { return &small_[slot * bins_]; }
  std::vector<uint64_t> Totals(size_t slot) const;

  void Add(Accumulator* other) override;
  // Makes sure that so many more counts fit.
  void WillCount(uint64_t elements);
  static size_t Bytes(size_t slots, size_t bins, uint64_t elements) {
    return slots * bins * (elements < kNarrow ? sizeof(uint32_t) : sizeof(uint32_t) + sizeof(uint64_t));
  }

 private:
  static constexpr uint64_t kNarrow = uint64_t{1} << 31;
  void Widen() { large_.resize(small_.size()); }

  size_t bins_;
  std::vector<uint32_t> small_;
  std::vector<uint64_t> large_;
  uint64_t counted_ = 0;   // at most this much in any entry of small_
};

// One sample per model that needs selection. Their memory is kept from one scope to the next: pages cost more to get than
// to fill.
class SampleKeys : public Accumulator {
 public:
  explicit SampleKeys(size_t count);
  ~SampleKeys() override;
  std::vector<PlaceSample> slots;
  void Add(Accumulator* other) override;
};

// The keys within each model's bracket, one bin per key, and how many lie above it.
class InsideCounts : public Accumulator {
 public:
  // The widest bracket: differences of bf16 weights lie far apart, so theirs are wide where few keys are inside.
  static constexpr size_t kMostKeys = 1 << 20;
  // `keys`: per model that needs selection, how many its bracket holds.
  explicit InsideCounts(const std::vector<size_t>& keys) : above(keys.size()) {
    for (size_t count : keys) bins.emplace_back(1, count);
  }
  static size_t Bytes(size_t slots, uint64_t elements) { return Histograms::Bytes(slots, kMostKeys, elements); }

  std::vector<Histograms> bins;
  std::vector<uint64_t> above;
  void Add(Accumulator* other) override;
};

class SignSum : public Accumulator {
 public:
  VoteCounts votes;
  void Add(Accumulator* other) override { votes.sign_sum += static_cast<SignSum&>(*other).votes.sign_sum; }
};

}  // namespace braid
