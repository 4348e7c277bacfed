// Both ends of many keys, against a sort.
#include "ops/extreme_keys.h"

#include <algorithm>

#include "ops/merger.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

uint32_t KeyOf(float x) { return std::min(test::ToBits(x) & 0x7fffffff, kNanKey); }

TEST(ExtremeKeys, RangeIsThatOfTheLanesAlone) {
  Random random;
  test::ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      if (n == 0) continue;
      for (test::Kind kind : test::kAllKinds) {
        const std::vector<float> lanes = test::Padded(random, test::RandomLanes(random, n, kind));
        uint32_t least = UINT32_MAX, largest = 0;
        for (size_t i = 0; i < n; ++i)
          least = std::min(least, KeyOf(lanes[i])), largest = std::max(largest, KeyOf(lanes[i]));
        const KeyRange range = KeyRangeOf(lanes.data(), n);
        ASSERT_EQ(range.least, least) << n;
        ASSERT_EQ(range.largest, largest) << n;
      }
    }
  });
}

// However the lanes are spread over several of them, and in whatever order they come.
TEST(ExtremeKeys, RanksAreThoseOfASort) {
  Random random;
  for (int round = 0; round < 60; ++round) {
    const size_t n = 1 + random.Below(round % 10 == 0 ? 300'000 : 20'000);
    std::vector<float> lanes = test::RandomLanes(random, n, test::kAllKinds[random.Below(4)]);
    const int order = static_cast<int>(random.Below(3));
    const auto by_key = [](float a, float b) { return KeyOf(a) < KeyOf(b); };
    if (order == 1) std::sort(lanes.begin(), lanes.end(), by_key);
    if (order == 2) std::sort(lanes.rbegin(), lanes.rend(), by_key);
    std::vector<uint32_t> sorted;
    for (float x : lanes) sorted.push_back(KeyOf(x));
    std::sort(sorted.begin(), sorted.end());
    const size_t most = std::min<size_t>(n, 3000), smallest = 1 + random.Below(most), largest = 1 + random.Below(most);
    std::vector<ExtremeKeys> workers(1 + random.Below(3), ExtremeKeys(smallest, largest));
    const std::vector<float> padded = test::Padded(random, lanes);
    for (size_t at = 0; at < n; at += kBlockLanes)
      workers[random.Below(workers.size())].Look(&padded[at], std::min(kBlockLanes, n - at));
    for (size_t w = 1; w < workers.size(); ++w) workers[0].Add(&workers[w]);
    ASSERT_EQ(workers[0].seen(), n);
    for (size_t rank : {size_t{1}, smallest, 1 + random.Below(smallest)})
      ASSERT_EQ(workers[0].Smallest(rank), sorted[rank - 1]);
    for (size_t rank : {size_t{1}, largest, 1 + random.Below(largest)})
      ASSERT_EQ(workers[0].Largest(rank), sorted[n - rank]);
  }
}

}  // namespace
}  // namespace braid
