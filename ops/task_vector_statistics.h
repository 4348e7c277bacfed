// What the statistics rounds of task vectors count into.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "ops/bracket.h"
#include "ops/magnitude_selection.h"
#include "ops/merger.h"

namespace braid {

// One histogram per model that needs selection. Workers count in 32 bits, half the memory of 64 and all that a tensor
// of fewer than 2^31 elements needs; with more, counts move to a second table of 64 bits before they could overflow.
class Histograms : public Accumulator {
 public:
  Histograms(size_t slots, size_t bins) : bins_(bins), small_(slots * bins) {}

  uint32_t* Row(size_t slot) { return &small_[slot * bins_]; }
  std::vector<uint64_t> Totals(size_t slot) const;
  uint64_t At(size_t slot, size_t bin) const {
    const size_t i = slot * bins_ + bin;
    return small_[i] + (large_.empty() ? 0 : large_[i]);
  }

  void Add(Accumulator* other) override;
  bool Travels() const override { return true; }
  void Save(const Put& put) const override;
  void Load(const Get& get) override;
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

// One sample per model that needs selection. Their memory is kept from one scope to the next: pages cost more to get
// than to fill.
class SampleKeys : public Accumulator {
 public:
  explicit SampleKeys(size_t count);
  ~SampleKeys() override;
  std::vector<PlaceSample> slots;
  void Add(Accumulator* other) override;
};

// The same of a sample whose brackets are known.
class InsideKeys : public Accumulator {
 public:
  explicit InsideKeys(size_t count) : slots(count) {}
  std::vector<InsideSample> slots;
  bool overflows = false;   // too much is inside: it says nothing
  void Add(Accumulator* other) override;
};

// Adds a tile, which is a run, of model m.
void AddInsideRun(const LaneTile& tile, size_t m, const Bracket& bracket, bool by_index, Scratch& scratch,
                  InsideSample* sample);

// Adds a run of n lanes, at most kBlockLanes, that begins at element `first`. `by_index`: equal keys are told apart by
// it.
void AddRun(const float* lanes, size_t n, uint64_t first, bool by_index, PlaceSample* sample);

// The keys within one bracket, counted: a bin per key, or, in a wide bracket, per few neighbouring keys. Wide brackets
// are those of bf16 weights, whose differences lie far apart, so that a bin still sees one key; where a bin saw two,
// another look at that bin alone tells them apart.
class InsideBins {
 public:
  static constexpr size_t kBins = 1 << 18;
  static constexpr size_t Bytes(size_t most_bins = kBins) { return most_bins * (sizeof(uint64_t) + sizeof(uint32_t)); }
  explicit InsideBins(const Bracket& bracket, size_t most_bins = kBins);

  // n lanes, at most kBlockLanes; or those of model m's task vector.
  void Count(const float* lanes, size_t n);
  void Count(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch);
  void Add(const InsideBins& other);

  // The k-th largest of all keys that were counted. Or, where several keys share its bin, the bracket that has them
  // alone. Or neither: it lies outside of the bracket. With kBins or more, the second look needs no third.
  struct Found {
    std::optional<Threshold> threshold;
    std::optional<Bracket> narrower;
  };
  Found Find(uint64_t k) const;

 private:
  void Tally(const uint32_t* keys, size_t n);

  static constexpr uint32_t kMixed = 0xffffffff;
  uint32_t lowest_, highest_;
  int shift_;
  uint64_t above_ = 0;           // keys above the bracket
  std::vector<uint64_t> counts_;
  std::vector<uint32_t> keys_;   // the one key that was seen; 0: none. Empty when each bin has one key
};

// For each threshold that is looked for.
class InsideCounts : public Accumulator {
 public:
  std::vector<InsideBins> slots;
  void Add(Accumulator* other) override;
};

class SignSum : public Accumulator {
 public:
  VoteCounts votes;
  void Add(Accumulator* other) override { votes.sign_sum += static_cast<SignSum&>(*other).votes.sign_sum; }
  bool Travels() const override { return true; }
  void Save(const Put& put) const override { put(&votes.sign_sum, sizeof votes.sign_sum); }
  void Load(const Get& get) override {
    auto sum = votes.sign_sum;
    get(&sum, sizeof sum);
    votes.sign_sum += sum;
  }
};

}  // namespace braid
