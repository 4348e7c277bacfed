#include "ops/bracket.h"

#include <algorithm>
#include <cmath>

#include "ops/kernels.h"
#include "ops/merger.h"

namespace braid {
namespace {

// Finds places by their rank in a sample: a histogram of the high halves first, then a look at one bin.
class RankedSample {
 public:
  explicit RankedSample(std::span<const uint64_t> places) : places_(places), counts_(Counts()) {
    for (uint64_t place : places) ++counts_[place >> 48];
  }

  // rank < places.size()
  uint64_t At(size_t rank) {
    size_t bin = 0;
    while (rank >= counts_[bin]) rank -= counts_[bin++];
    inside_.clear();
    for (uint64_t place : places_)
      if (place >> 48 == bin) inside_.push_back(place);
    const auto at = inside_.begin() + static_cast<ptrdiff_t>(rank);
    std::nth_element(inside_.begin(), at, inside_.end());
    return *at;
  }

 private:
  // Kept from one sample to the next: its pages cost more to get than to clear.
  static std::vector<uint32_t>& Counts() {
    thread_local std::vector<uint32_t> counts;
    counts.assign(kHighBins, 0);
    return counts;
  }

  std::span<const uint64_t> places_;
  std::vector<uint32_t>& counts_;
  std::vector<uint64_t> inside_;
};

// The standard deviation of the number of places up to `limit`, from how that number differs between neighbouring runs:
// where entries grow or shrink slowly along the tensor, runs at even distances follow that by themselves.
double DeviationOfRank(const PlaceSample& sample, uint64_t limit) {
  const size_t runs = sample.places.size() / sample.run;
  double squares = 0, before = 0;
  for (size_t r = 0; r < runs; ++r) {
    size_t count = 0;
    for (size_t i = r * sample.run; i < (r + 1) * sample.run; ++i) count += sample.places[i] <= limit;
    const double difference = static_cast<double>(count) - before;
    if (r > 0) squares += difference * difference;
    before = static_cast<double>(count);
  }
  return std::sqrt(squares / 2);
}

constexpr size_t kLeastSample = 1024;

Cut CutAt(uint64_t place) { return {.key = KeyAt(place), .index = IndexAt(place)}; }

}  // namespace

std::optional<Bracket> BracketOf(const PlaceSample& sample, uint64_t k, uint64_t n, bool by_index) {
  const size_t size = sample.places.size();
  if (size < kLeastSample) return std::nullopt;
  RankedSample ranked(sample.places);
  const double rank = static_cast<double>(k) / static_cast<double>(n) * static_cast<double>(size);
  const uint64_t middle = ranked.At(std::min(static_cast<size_t>(rank), size - 1));
  const double margin = 3.5 * DeviationOfRank(sample, middle) + 8;
  Bracket bracket{.sure = {kNanKey, 0}, .open = {0, 0}};   // beyond the sample's ends: nothing is sure, all is open
  if (rank - margin >= 0) {
    bracket.sure = CutAt(ranked.At(static_cast<size_t>(rank - margin)));
    bracket.sure.index = by_index ? bracket.sure.index / kBlockLanes * kBlockLanes : 0;
  }
  if (rank + margin < static_cast<double>(size)) {
    bracket.open = CutAt(ranked.At(static_cast<size_t>(rank + margin)));
    bracket.open.index = by_index ? (bracket.open.index / kBlockLanes + 1) * kBlockLanes : UINT64_MAX;
  }
  if (bracket.sure.key == 0) bracket.sure.index = 0;
  if (bracket.open.key == 0) bracket.open.index = 0;
  return bracket;
}

}  // namespace braid
