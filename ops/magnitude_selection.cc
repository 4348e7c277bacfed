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
