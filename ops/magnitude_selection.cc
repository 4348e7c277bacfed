#include "ops/magnitude_selection.h"

#include <algorithm>

#include "ops/kernels.h"

namespace braid {

CriticalBin FindCriticalBin(const uint64_t* bins, uint64_t k) {
  CriticalBin found;
  uint32_t high = kHighBins - 1;
  while (high > 0 && found.above + bins[high] < k) found.above += bins[high--];
  found.high = high;
  return found;
}

std::vector<BinCount> FilledBins(const uint64_t* bins, size_t count) {
  std::vector<BinCount> filled;
  for (uint32_t bin = 0; bin < count; ++bin)
    if (bins[bin] != 0) filled.push_back({bin, bins[bin]});
  filled.shrink_to_fit();
  return filled;
}

CriticalBin FindCriticalBin(std::span<const BinCount> bins, uint64_t k) {
  CriticalBin found;
  for (size_t i = bins.size(); i-- > 0;) {
    found.high = bins[i].bin;
    if (found.above + bins[i].count >= k) return found;
    found.above += bins[i].count;
  }
  return {.high = 0, .above = found.above - (bins.empty() || bins[0].bin != 0 ? 0 : bins[0].count)};
}

Threshold FindThreshold(const CriticalBin& bin, const uint64_t* bins, uint64_t k) {
  Threshold found{.above = bin.above};
  uint32_t low = kLowBins - 1;
  while (low > 0 && found.above + bins[low] < k) found.above += bins[low--];
  found.key = bin.high << 16 | low;
  found.equal = bins[low];
  return found;
}

uint64_t KeptCount(double density, uint64_t n) {
  if (density >= 1) return n;
  if (density <= 0 || n == 0) return 0;
  return std::max<uint64_t>(1, static_cast<uint64_t>(density * static_cast<double>(n)));
}

}  // namespace braid
