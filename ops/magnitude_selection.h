// Exact selection of the k largest magnitudes, by two histograms: the high halves of the keys find the critical
// bin, the low halves within that bin find the threshold. Never a sort, never an approximation.
//
// The key of an entry is the bit pattern of its magnitude (ops/kernels.h), so equal keys are equal magnitudes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace braid {

// Where the k-th largest key lies, after the first histogram. k >= 1; where fewer keys than k were counted (a
// model lacks a tensor of its scope), those missing rank last, as zeros would.
struct CriticalBin {
  uint32_t high = 0;     // the high half of the k-th largest key
  uint64_t above = 0;    // keys with a larger high half
};
CriticalBin FindCriticalBin(const uint64_t* high_bins, uint64_t k);

// The same from the bins that are not empty, by ascending number: how a histogram is kept.
struct BinCount {
  uint32_t bin = 0;
  uint64_t count = 0;
};
std::vector<BinCount> FilledBins(const uint64_t* bins, size_t count);
CriticalBin FindCriticalBin(std::span<const BinCount> high_bins, uint64_t k);

// The k-th largest key, after the second histogram.
struct Threshold {
  uint32_t key = 0;
  uint64_t above = 0;    // keys larger than it
  uint64_t equal = 0;    // keys equal to it; of these, k - above belong to the k largest
};
Threshold FindThreshold(const CriticalBin& bin, const uint64_t* low_bins, uint64_t k);

// How many entries `density` keeps of n: max(1, trunc(double(density) n)), n at density >= 1, none at <= 0.
uint64_t KeptCount(double density, uint64_t n);

}  // namespace braid
