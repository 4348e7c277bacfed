// What the sparsifying methods are made of: their loops on every target, and ranks.
#include "ops/sparsify.h"

#include <algorithm>
#include <numeric>

#include "ops/row_ranks.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Kind;
using test::Padded;
using test::Random;
using test::RandomLanes;
using test::SameLane;

uint32_t Key(float x) { return std::isnan(x) ? kNanKey : test::ToBits(x) & 0x7fffffff; }

TEST(Sparsify, KeepsWhatIsDrawn) {
  Random random;
  test::ForEachTarget([&] {
    for (Kind kind : test::kAllKinds) {
      for (size_t n : test::Lengths()) {
        const std::vector<float> lanes = RandomLanes(random, n, kind);
        std::vector<float> d = Padded(random, lanes);
        std::vector<uint32_t> draws(n + kLanePadding), limits(n + kLanePadding);
        for (uint32_t& draw : draws) draw = static_cast<uint32_t>(random() >> 33);
        for (size_t i = 0; i < limits.size(); ++i)
          limits[i] = random.Chance(0.2) ? draws[i] : static_cast<uint32_t>(random() >> 33);
        KeepDrawn(draws.data(), limits.data(), n, d.data());
        for (size_t i = 0; i < n; ++i)
          ASSERT_TRUE(SameLane(d[i], std::isnan(lanes[i]) || draws[i] < limits[i] ? lanes[i] : 0.0f))
              << i << " of " << n;
      }
    }
  });
}

TEST(Sparsify, KeepsKeysOfARange) {
  Random random;
  test::ForEachTarget([&] {
    for (Kind kind : test::kAllKinds) {
      for (size_t n : test::Lengths()) {
        const std::vector<float> lanes = RandomLanes(random, n, kind);
        const std::vector<float> before = Padded(random, lanes);
        std::vector<float> d = before;
        const auto bound = [&] {
          return n > 0 && random.Chance(0.6) ? Key(lanes[random.Below(n)])
              : random.OneOf<uint32_t>({0, 1, kNanKey, kNanKey + 1});
        };
        const uint32_t low = bound(), high = bound();
        KeepKeys(low, high, n, d.data());
        for (size_t i = 0; i < d.size(); ++i) {
          const bool stays = i >= n || std::isnan(before[i]) || (low <= Key(before[i]) && Key(before[i]) < high);
          ASSERT_TRUE(SameLane(d[i], stays ? before[i] : 0.0f)) << i << " of " << n << ": " << low << " to " << high;
        }
      }
    }
  });
}

TEST(Sparsify, AddsTaskVectors) {
  Random random;
  test::ForEachTarget([&] {
    for (Kind kind : test::kAllKinds) {
      for (size_t n : test::Lengths()) {
        const std::vector<float> base = Padded(random, RandomLanes(random, n, kind));
        std::vector<float> merged = Padded(random, RandomLanes(random, n, kind));
        for (float& d : merged) d = random.Chance(0.3) ? random.OneOf({0.0f, -0.0f}) : d;
        std::vector<float> out(n + kLanePadding);
        AddTaskVector(base.data(), merged.data(), n, out.data());
        for (size_t i = 0; i < n; ++i)
          ASSERT_TRUE(SameLane(out[i], merged[i] == 0 ? base[i] : base[i] + merged[i])) << i;
      }
    }
  });
}

TEST(RankKeys, EqualsAStableSort) {
  Random random;
  for (int c = 0; c < 300; ++c) {
    const size_t n = c < 30 ? static_cast<size_t>(c) : 1 + random.Below(random.OneOf<size_t>({500, 5000, 70'000}));
    const uint32_t spread = random.OneOf<uint32_t>({1, 2, 100, 3000, 1u << 21, 1u << 31});
    const auto low = static_cast<uint32_t>(random.Below((uint64_t{1} << 31) - spread + 1));
    std::vector<uint32_t> keys(n);
    for (uint32_t& key : keys) key = low + static_cast<uint32_t>(random.Below(spread));
    std::vector<uint32_t> order(n), wanted(n);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
    for (size_t r = 0; r < n; ++r) wanted[order[r]] = static_cast<uint32_t>(r);
    std::vector<uint64_t> room(2 * n + 1, 0xdeadbeef);
    RankKeys(keys.data(), n, room.data());
    ASSERT_EQ(keys, wanted) << n << " keys of " << spread;
    ASSERT_EQ(room.back(), 0xdeadbeef);
  }
}

}  // namespace
}  // namespace braid
