// What stays by draw and rank, on every target: equal to ranking by a stable sort.
#include "ops/rank_buckets.h"

#include <hwy/aligned_allocator.h>

#include <memory>
#include <numeric>

#include "ops/row_ranks.h"
#include "ops/sparsify.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

enum class Keys { kNormal, kBf16, kEqual, kOutlier, kSmall, kAnyBits, kCount };

uint32_t RandomKey(Random& random, Keys kind) {
  const auto key = [](double x) { return test::ToBits(static_cast<float>(std::fabs(x))); };
  switch (kind) {
    case Keys::kNormal: return key(random.Normal());
    case Keys::kBf16: return key(std::nearbyint(random.Normal() * 6) * random.OneOf({1.0, 1.0, 0.5, 0.25, 0.0039}));
    case Keys::kEqual: return key(random.Chance(0.5) ? 0.25 : 0.0);
    case Keys::kOutlier: return random.Chance(0.01) ? key(random.OneOf<double>({1e10, INFINITY}))
        : key(random.Normal());
    case Keys::kSmall: return static_cast<uint32_t>(random.Below(100'000));
    case Keys::kAnyBits: return std::min(static_cast<uint32_t>(random() >> 33), kNanKey);
    case Keys::kCount: break;
  }
  return 0;
}

// By the definition.
std::vector<bool> Stays(const std::vector<uint32_t>& keys, size_t n, const std::vector<uint32_t>& draws,
                        const RankLimits& limits) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
  std::vector<bool> stays(n);
  for (size_t r = 0; r < n; ++r) {
    const double p = limits.low + limits.step * static_cast<double>(r);
    stays[order[r]] = draws[order[r]] < std::floor(std::min(p * 0x1p31, 0x1p31 - 1));
  }
  return stays;
}

// One row, and whether its buckets were enough.
bool ExpectTheDefinition(Random& random, Keys kind, size_t n) {
  std::vector<uint32_t> keys(n + kLanePadding), draws(n + kLanePadding);
  for (uint32_t& key : keys) key = RandomKey(random, kind);
  for (uint32_t& draw : draws) draw = static_cast<uint32_t>(random() >> 33);
  const double density = random.OneOf({0.5, 0.1, 0.9}),
               epsilon = std::min(density, 1 - density) * random.OneOf({0.0, 0.3, 1.0});
  const RankLimits limits{.low = density - epsilon, .step = n == 1 ? 0 : 2 * epsilon / static_cast<double>(n - 1)};
  for (size_t i = 0; i < n; i += 3) {   // just where a limit is
    const uint32_t limit = limits.Of(static_cast<uint32_t>(random.Below(n)));
    draws[i] = limit - std::min(limit, static_cast<uint32_t>(random.Below(2)));
  }
  const std::vector<bool> expected = Stays(keys, n, draws, limits);
  const auto room = hwy::AllocateAligned<std::byte>(RankBuckets::RoomBytes(n));
  const auto buckets = std::make_unique<RankBuckets>();
  std::vector<uint64_t> words(n / 64 + 2, 0x5555555555555555);
  FillBuckets(keys.data(), n, limits, room.get(), buckets.get());
  bool found = true;
  for (size_t start = 0; start < n && found; start += 1024)
    found = KeepByBuckets(limits, draws.data() + start, start, std::min<size_t>(1024, n - start), buckets.get(),
                          &words[start / 64]);
  for (size_t i = 0; i < n && found; ++i) {
    const bool stays = words[i / 64] >> i % 64 & 1;
    EXPECT_TRUE(keys[i] == 0 || stays == expected[i]) << i;
  }
  std::vector<uint64_t> pairs(2 * n);
  RankKeys(keys.data(), n, pairs.data());
  KeepByRanks(limits, draws.data(), keys.data(), n, words.data());
  for (size_t i = 0; i < n; ++i) EXPECT_EQ(words[i / 64] >> i % 64 & 1, expected[i]) << i;
  return found;
}

TEST(RankBuckets, KeepWhatRanksWould) {
  Random random;
  test::ForEachTarget([&] {
    for (int c = 0; c < 60 && !testing::Test::HasFailure(); ++c) {
      const auto kind = static_cast<Keys>(random.Below(static_cast<size_t>(Keys::kCount)));
      const size_t n = 1 + random.Below(random.OneOf<size_t>({100, 3000, 3000, 20'000}));
      SCOPED_TRACE("case " + std::to_string(c) + ", keys " + std::to_string(static_cast<int>(kind)) + ", " +
                   std::to_string(n));
      ExpectTheDefinition(random, kind, n);
    }
  });
}

TEST(RankBuckets, GiveUpWhereKeysAreTooMuchAlike) {
  Random random;
  EXPECT_TRUE(ExpectTheDefinition(random, Keys::kNormal, 200'000));
  EXPECT_TRUE(ExpectTheDefinition(random, Keys::kBf16, 8192));
  bool all = true;   // epsilon may be 0
  for (int c = 0; c < 20; ++c) all &= ExpectTheDefinition(random, Keys::kOutlier, 20'000);
  EXPECT_FALSE(all);
}

TEST(Sparsify, KeepsBitsFromAnywhere) {
  Random random;
  test::ForEachTarget([&] {
    for (size_t n : test::Lengths()) {
      const size_t first = random.Below(200), before = random.Below(n + 1);
      std::vector<uint64_t> words(n / 64 + 1), bits((first + n) / 64 + 2);
      std::vector<bool> expected(n);
      for (size_t i = 0; i < n; ++i) {
        expected[i] = random.Chance(0.4);
        words[i / 64] |= uint64_t{expected[i]} << i % 64;
      }
      AddBits(words.data(), n, bits.data(), first);
      const std::vector<float> lanes = test::RandomLanes(random, n, test::Kind::kSpecial);
      std::vector<float> d = test::Padded(random, {lanes.begin() + static_cast<ptrdiff_t>(before), lanes.end()});
      KeepBits(bits.data(), first + before, n - before, d.data());
      for (size_t i = before; i < n; ++i)
        ASSERT_TRUE(test::SameLane(d[i - before], expected[i] || std::isnan(lanes[i]) ? lanes[i] : 0.0f))
            << i << " of " << n;
      FindNonZeros(d.data(), n - before, words.data());
      for (size_t i = 0; i < (n - before + 63) / 64 * 64; ++i)
        ASSERT_EQ(words[i / 64] >> i % 64 & 1, i < n - before && d[i] != 0) << i << " of " << n - before;
    }
  });
}

}  // namespace
}  // namespace braid
