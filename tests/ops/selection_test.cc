// Exact selection through the histogram kernels against std::nth_element, and how many entries a density
// keeps.
#include <algorithm>

#include "ops/magnitude_selection.h"
#include "ops/task_vector_statistics.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Kind;
using test::Random;

Threshold SelectByHistograms(const std::vector<float>& padded, size_t n, uint64_t k) {
  std::vector<uint32_t> counts(kHighBins);
  CountHighHalves(padded.data(), n, counts.data());
  const CriticalBin bin = FindCriticalBin(std::vector<uint64_t>(counts.begin(), counts.end()).data(), k);
  counts.assign(kLowBins, 0);
  CountLowHalves(padded.data(), n, bin.high, counts.data());
  return FindThreshold(bin, std::vector<uint64_t>(counts.begin(), counts.end()).data(), k);
}

void ExpectExact(Random& random, const std::vector<float>& d, uint64_t k) {
  const Threshold found = SelectByHistograms(test::Padded(random, d), d.size(), k);
  std::vector<uint32_t> keys;
  for (float x : d) keys.push_back(reference::Key(x));
  std::nth_element(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(k - 1), keys.end(), std::greater<>());
  const uint32_t key = keys[k - 1];
  ASSERT_EQ(found.key, key) << "k " << k << " of " << d.size();
  ASSERT_EQ(found.above, static_cast<uint64_t>(
                             std::count_if(keys.begin(), keys.end(), [&](uint32_t x) { return x > key; })));
  ASSERT_EQ(found.equal, static_cast<uint64_t>(std::count(keys.begin(), keys.end(), key)));
  ASSERT_LT(found.above, k);
  ASSERT_GE(found.above + found.equal, k);
}

TEST(Selection, FindsTheKthLargestMagnitude) {
  Random random;
  test::ForEachTarget([&] {
    for (Kind kind : test::kAllKinds) {
      for (size_t n : {1, 2, 3, 17, 1000, 5000}) {
        const std::vector<float> d = test::RandomLanes(random, n, kind);
        for (uint64_t k : {uint64_t{1}, uint64_t{n}, uint64_t{(n + 1) / 2}, uint64_t{1 + random.Below(n)}})
          ExpectExact(random, d, k);
      }
    }
  });
}

TEST(Selection, DegenerateData) {
  Random random;
  const float nan = std::nanf("");
  std::vector<std::vector<float>> vectors = {std::vector<float>(500, 0.0f), std::vector<float>(500, -1.25f),
                                             std::vector<float>(500, nan), std::vector<float>(500, -INFINITY),
                                             std::vector<float>(500, test::FromBits(0x80000001))};
  std::vector<float> denormals, one_bin, mixed;
  for (uint32_t i = 0; i < 500; ++i) {
    denormals.push_back(test::FromBits((i * 7919u & 0x7fffffu) | (i % 2) << 31));
    one_bin.push_back(test::FromBits(0x3f800000u | (i * 131u & 0xffff)));  // the high halves say nothing
    mixed.push_back(i % 3 == 0 ? nan : i % 3 == 1 ? INFINITY : static_cast<float>(i));
  }
  vectors.insert(vectors.end(), {denormals, one_bin, mixed});
  test::ForEachTarget([&] {
    for (const auto& d : vectors)
      for (uint64_t k : {1, 2, 167, 168, 250, 334, 335, 499, 500}) ExpectExact(random, d, k);
  });
}

TEST(Selection, CountsBeyondThirtyTwoBits) {
  std::vector<uint64_t> high(kHighBins), low(kLowBins);
  const uint64_t huge = uint64_t{1} << 40;
  high[100] = huge, high[200] = 3 * huge, high[kHighBins - 1] = 5;
  const CriticalBin bin = FindCriticalBin(high.data(), 2 * huge);
  EXPECT_EQ(bin.high, 200u);
  EXPECT_EQ(bin.above, 5u);
  low[7] = huge, low[9] = 2 * huge;
  const Threshold threshold = FindThreshold(bin, low.data(), 2 * huge);
  EXPECT_EQ(threshold.key, 200u << 16 | 9);
  EXPECT_EQ(threshold.above, 5u);
  EXPECT_EQ(threshold.equal, 2 * huge);
  EXPECT_EQ(FindThreshold(bin, low.data(), 2 * huge + 6).key, 200u << 16 | 7);
}

// A model that lacks a tensor of its scope counts fewer entries than it keeps: then everything stays.
TEST(Selection, FewerEntriesThanAskedFor) {
  std::vector<uint64_t> bins(kLowBins);
  bins[500] = 3;
  const CriticalBin bin = FindCriticalBin(bins.data(), 10);
  EXPECT_EQ(bin.high, 0u);
  EXPECT_EQ(bin.above, 3u);
  const Threshold threshold = FindThreshold(bin, std::vector<uint64_t>(kLowBins).data(), 10);
  EXPECT_EQ(threshold.key, 0u);
  EXPECT_EQ(threshold.above, 3u);
  EXPECT_EQ(threshold.equal, 0u);
}

// Of a bracket wider than the bins: either the answer, or a bracket that has it, in which the next look finds it.
TEST(InsideBins, FindTheKthOrWhereItIs) {
  Random random;
  int narrowed = 0, found = 0, missed = 0;
  for (int c = 0; c < 300; ++c) {
    std::vector<float> lanes(1000 + kLanePadding);
    const bool coarse = random.Chance(0.3);
    for (float& x : lanes) x = coarse ? static_cast<float>(random.Below(9)) : static_cast<float>(random.Normal());
    std::vector<uint32_t> keys(1000);
    StoreKeys(lanes.data(), keys.size(), keys.data());
    std::sort(keys.begin(), keys.end(), std::greater<>());
    const uint64_t k = 1 + random.Below(keys.size());
    const uint32_t answer = keys[k - 1];
    Bracket bracket{.sure = {keys[random.Below(300)], 0}, .open = {keys[700 + random.Below(300)], UINT64_MAX}};
    if (random.Chance(0.2)) bracket.open = {0, 0};
    const bool inside = answer <= bracket.sure.key && answer >= bracket.open.key;
    for (int look = 0;; ++look) {
      ASSERT_LT(look, 4);   // each is 256 times as narrow
      InsideBins first(bracket, 256), second(bracket, 256);
      first.Count(lanes.data(), 512), second.Count(lanes.data() + 512, 488);
      first.Add(second);
      const InsideBins::Found its = first.Find(k);
      if (!inside) {
        EXPECT_FALSE(its.threshold || its.narrower);
        ++missed;
        break;
      }
      if (its.narrower) {
        ++narrowed;
        bracket = *its.narrower;
        continue;
      }
      ASSERT_TRUE(its.threshold);
      EXPECT_EQ(its.threshold->key, answer);
      const auto is_above = [&](uint32_t key) { return key > answer; };
      EXPECT_EQ(its.threshold->above, static_cast<uint64_t>(std::count_if(keys.begin(), keys.end(), is_above)));
      if (answer > 0) {
        EXPECT_EQ(its.threshold->equal, static_cast<uint64_t>(std::count(keys.begin(), keys.end(), answer)));
      }
      ++found;
      break;
    }
  }
  EXPECT_GT(narrowed, 20);
  EXPECT_GT(found, 20);
  EXPECT_GT(missed, 20);
}

TEST(KeptCount, TruncatesTheProductInDouble) {
  EXPECT_EQ(KeptCount(0.29, 100), 28u);  // 0.29 * 100 is 28.999999999999996
  EXPECT_EQ(KeptCount(0.57, 100), 56u);
  EXPECT_EQ(KeptCount(0.58, 100), 57u);
  EXPECT_EQ(KeptCount(0.28, 100), 28u);
  EXPECT_EQ(KeptCount(0.2, 10), 2u);
  EXPECT_EQ(KeptCount(0.2, 14), 2u);
  EXPECT_EQ(KeptCount(1.0 / 3, 3), 1u);
  EXPECT_EQ(KeptCount(0.999999, 100), 99u);
}

TEST(KeptCount, Corners) {
  EXPECT_EQ(KeptCount(0.001, 100), 1u);
  EXPECT_EQ(KeptCount(1e-300, 1), 1u);
  EXPECT_EQ(KeptCount(0, 100), 0u);
  EXPECT_EQ(KeptCount(-0.5, 100), 0u);
  EXPECT_EQ(KeptCount(0.5, 0), 0u);
  EXPECT_EQ(KeptCount(1, 0), 0u);
  EXPECT_EQ(KeptCount(1, 100), 100u);
  EXPECT_EQ(KeptCount(1.5, 100), 100u);
  EXPECT_EQ(KeptCount(std::nextafter(1.0, 0.0), 100), 99u);
  EXPECT_EQ(KeptCount(0.5, uint64_t{1} << 62), uint64_t{1} << 61);
  EXPECT_EQ(KeptCount(0.25, 70'000'000'000), 17'500'000'000u);
  EXPECT_EQ(KeptCount(1, UINT64_MAX), UINT64_MAX);
  EXPECT_LE(KeptCount(std::nextafter(1.0, 0.0), (uint64_t{1} << 53) + 1), (uint64_t{1} << 53) + 1);
}

}  // namespace
}  // namespace braid
