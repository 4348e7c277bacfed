// Draws: known answers, the same by any path, and as random as a merge needs them.
#include "ops/random.h"

#include <algorithm>

#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

// Published with Random123 (tests/kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

uint32_t DrawOf(const RandomStream& stream, uint64_t element) {
  const uint64_t counter = element / 64 * 16 + element % 16;
  return Philox({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32) | stream.model << 16,
                 static_cast<uint32_t>(stream.tensor_key), static_cast<uint32_t>(stream.tensor_key >> 32)},
                {static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32)})[element / 16 % 4] >> 1;
}

TEST(DrawBits, GivesEachElementItsDrawOnEveryTarget) {
  Random random;
  test::ForEachTarget([&] {
    for (int c = 0; c < 300; ++c) {
      const RandomStream stream{.seed = random() >> 11, .model = static_cast<uint32_t>(random.Below(1 << 16)),
                                .tensor_key = random()};
      const uint64_t first = random.OneOf<uint64_t>({0, 1, 63, random() >> 14, (uint64_t{1} << 34) - 100});
      const size_t n = random.Below(300);
      std::vector<uint32_t> draws(n + kLanePadding, 0xabababab);
      DrawBits(stream, first, n, draws.data());
      for (size_t i = 0; i < n; ++i)
        ASSERT_EQ(draws[i], DrawOf(stream, first + i)) << first << " + " << i << " of " << n;
    }
  });
}

std::vector<uint32_t> Draws(const RandomStream& stream, size_t n) {
  std::vector<uint32_t> draws(n + kLanePadding);
  DrawBits(stream, 0, n, draws.data());
  draws.resize(n);
  return draws;
}

// By how many standard deviations the number of hits among n differs from that of probability p.
double Deviation(size_t hits, size_t n, double p) {
  const double mean = static_cast<double>(n) * p;
  return (static_cast<double>(hits) - mean) / std::sqrt(mean * (1 - p));
}

constexpr double kFar = 5;   // one in two million by chance

TEST(DrawBits, EventsHaveTheirProbability) {
  Random random;
  constexpr size_t kDraws = 1 << 20;
  const std::vector<uint32_t> draws = Draws({.seed = random() >> 11, .model = 3, .tensor_key = random()}, kDraws);
  for (double p : {0.001, 0.1, 0.37, 0.5, 0.9, 0.999}) {
    const auto hits = std::count_if(draws.begin(), draws.end(), [&](uint32_t draw) { return draw < LimitOf(p); });
    EXPECT_LT(std::abs(Deviation(static_cast<size_t>(hits), kDraws, p)), kFar) << p;
  }
  EXPECT_EQ(LimitOf(0), 0u);
  EXPECT_EQ(LimitOf(0.5), 1u << 30);
}

// Two events of probability p at once: p^2. Neighbours, words and counters of one stream, and streams that differ in
// one thing by one.
TEST(DrawBits, AreIndependent) {
  Random random;
  constexpr size_t kDraws = 1 << 19;
  const RandomStream stream{.seed = random() >> 11, .model = 1, .tensor_key = random()};
  const std::vector<uint32_t> draws = Draws(stream, kDraws + 64);
  const auto both = [&](const std::vector<uint32_t>& a, size_t shift, double p) {
    size_t hits = 0;
    for (size_t i = 0; i < kDraws; ++i) hits += draws[i] < LimitOf(p) && a[i + shift] < LimitOf(p);
    return Deviation(hits, kDraws, p * p);
  };
  for (double p : {0.1, 0.5}) {
    for (size_t lag : {1, 2, 4, 15, 16, 17, 32, 48, 63, 64})
      EXPECT_LT(std::abs(both(draws, lag, p)), kFar) << "lag " << lag;
    RandomStream other = stream;
    ++other.seed;
    EXPECT_LT(std::abs(both(Draws(other, kDraws), 0, p)), kFar) << "seed";
    other = stream, ++other.model;
    EXPECT_LT(std::abs(both(Draws(other, kDraws), 0, p)), kFar) << "model";
    other = stream, ++other.tensor_key;
    EXPECT_LT(std::abs(both(Draws(other, kDraws), 0, p)), kFar) << "tensor";
  }
}

}  // namespace
}  // namespace braid
