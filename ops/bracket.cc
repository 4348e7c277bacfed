#include "ops/bracket.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

// 3.5 standard deviations, and a little for small samples.
double MarginOf(double deviation) { return 3.5 * deviation + 8; }

// The ends of a bracket: what is before it, and what is not behind it.
Cut SureAt(uint64_t place, bool by_index) {
  Cut cut{.key = KeyAt(place), .index = by_index ? IndexAt(place) / kBlockLanes * kBlockLanes : 0};
  if (cut.key == 0) cut.index = 0;
  return cut;
}
Cut OpenAt(uint64_t place, bool by_index) {
  Cut cut{.key = KeyAt(place), .index = by_index ? (IndexAt(place) / kBlockLanes + 1) * kBlockLanes : UINT64_MAX};
  if (cut.key == 0) cut.index = 0;
  return cut;
}

// Of the numbers of places up to `limit`, as DeviationOfRank.
double DeviationOfRank(const InsideSample& sample, uint64_t limit) {
  double squares = 0, earlier = 0;
  size_t at = 0;
  for (size_t r = 0; r < sample.ends.size(); ++r) {
    uint32_t count = sample.before[r];
    for (; at < sample.ends[r]; ++at) count += sample.places[at] <= limit;
    const double difference = static_cast<double>(count) - earlier;
    if (r > 0) squares += difference * difference;
    earlier = static_cast<double>(count);
  }
  return std::sqrt(squares / 2);
}

}  // namespace

std::optional<Bracket> BracketOf(const PlaceSample& sample, uint64_t k, uint64_t n, bool by_index) {
  const size_t size = sample.places.size();
  if (size < kLeastSample) return std::nullopt;
  RankedSample ranked(sample.places);
  const double rank = static_cast<double>(k) / static_cast<double>(n) * static_cast<double>(size);
  const uint64_t middle = ranked.At(std::min(static_cast<size_t>(rank), size - 1));
  const double margin = MarginOf(DeviationOfRank(sample, middle));
  Bracket bracket{.sure = {kNanKey, 0}, .open = {0, 0}};   // beyond the sample's ends: nothing is sure, all is open
  if (rank - margin >= 0) bracket.sure = SureAt(ranked.At(static_cast<size_t>(rank - margin)), by_index);
  if (rank + margin < static_cast<double>(size))
    bracket.open = OpenAt(ranked.At(static_cast<size_t>(rank + margin)), by_index);
  return bracket;
}

Bracket NarrowBracket(const Bracket& bracket, const InsideSample& sample, uint64_t k, uint64_t n, bool by_index) {
  const auto size = static_cast<double>(sample.ends.size() * sample.run);
  const auto inside = static_cast<double>(sample.places.size());
  const double before = std::accumulate(sample.before.begin(), sample.before.end(), 0.0);
  const double rank = static_cast<double>(k) / static_cast<double>(n) * size - before;   // among those inside
  if (rank < 0 || rank >= inside) return bracket;
  std::vector<uint64_t> places = sample.places;
  const auto middle = places.begin() + static_cast<ptrdiff_t>(rank);
  std::nth_element(places.begin(), middle, places.end());
  const double margin = MarginOf(DeviationOfRank(sample, *middle));
  Bracket narrow = bracket;
  if (rank - margin >= 0) {
    const auto sure = places.begin() + static_cast<ptrdiff_t>(rank - margin);
    std::nth_element(places.begin(), sure, middle);
    narrow.sure = SureAt(*sure, by_index);
  }
  if (rank + margin < inside) {
    const auto open = places.begin() + static_cast<ptrdiff_t>(rank + margin);
    std::nth_element(middle, open, places.end());
    narrow.open = OpenAt(*open, by_index);
  }
  return narrow;
}

}  // namespace braid
