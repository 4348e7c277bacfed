// Estimates of pcb's scores against the scores, and these against their formula.
#include "ops/pcb_scores.h"

#include <algorithm>

#include "ops/elementary.h"
#include "ops/merger.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

float Formula(float d, float sum, const ScoreCurve& curve) {
  const float magnitude = std::min(std::max(std::fabs(d), curve.low), curve.high);
  const float place = curve.high > curve.low ? (magnitude - curve.low) / (curve.high - curve.low) : 0;
  const float square = place * place, exponent = curve.models * square, product = d * sum;
  const auto tanh = static_cast<float>(Tanh(static_cast<double>(product)));
  const float score = static_cast<float>(Exp(static_cast<double>(exponent))) * tanh;
  return std::isnan(score) ? 0 : score;
}

struct Lanes {
  std::vector<float> d, sum;   // padded
  ScoreCurve curve;
  size_t n = 0;
};

// Products of all sizes around those that count as small, and where `odd`, lanes that are no numbers, or huge.
Lanes RandomScoreLanes(Random& random, size_t n, bool odd) {
  Lanes lanes;
  lanes.n = n;
  const double scale = random.OneOf({1e-30, 1e-9, 1e-3, 1e-2, 0.1});
  const double spread = random.OneOf({1.0, 0.01});
  const double zeros = random.OneOf({0.0, 0.5});
  for (size_t i = 0; i < n; ++i) {
    const double size = random.Chance(0.02) ? 100 * scale : scale;
    lanes.d.push_back(random.Chance(zeros) ? 0.0f : static_cast<float>(size * (1 + spread * random.Normal())));
    lanes.sum.push_back(static_cast<float>(size * random.Normal() * 3));
    if (odd && random.Chance(0.02)) lanes.d.back() = test::RandomLane(random, test::Kind::kSpecial);
    if (odd && random.Chance(0.02)) lanes.sum.back() = test::RandomLane(random, test::Kind::kSpecial);
  }
  const auto base = static_cast<float>(scale);
  lanes.curve.low = random.OneOf({0.0f, base / 10, base});
  lanes.curve.high = lanes.curve.low + base * random.OneOf({1e-6f, 0.5f, 4.0f});
  if (random.Chance(0.05)) lanes.curve.high = lanes.curve.low;
  lanes.curve.models = random.OneOf({1.0f, 2.0f, 3.0f, 8.0f, 80.0f});
  lanes.d = test::Padded(random, lanes.d), lanes.sum = test::Padded(random, lanes.sum);
  return lanes;
}

TEST(PcbScores, AreTheirFormula) {
  Random random;
  for (int round = 0; round < 300; ++round) {
    const Lanes lanes = RandomScoreLanes(random, 1 + random.Below(kBlockLanes), true);
    std::vector<float> scores(lanes.n);
    ExactScores(lanes.d.data(), lanes.sum.data(), lanes.n, lanes.curve, scores.data());
    for (size_t i = 0; i < lanes.n; ++i) {
      const float expected = Formula(lanes.d[i], lanes.sum[i], lanes.curve);
      ASSERT_TRUE(test::SameLane(scores[i] + 0.0f, expected + 0.0f)) << lanes.d[i] << " " << lanes.sum[i];
    }
  }
}

TEST(PcbScores, OfSmallProductsNeedNoTanh) {
  for (uint32_t bits = test::ToBits(kSmallProduct) - (1 << 20); bits <= test::ToBits(kSmallProduct); ++bits) {
    const float x = test::FromBits(bits);
    ASSERT_EQ(static_cast<float>(Tanh(static_cast<double>(x))), x);
  }
  for (uint32_t bits = 0; bits < test::ToBits(kSmallProduct); bits += 97) {
    const float x = test::FromBits(bits);
    ASSERT_EQ(static_cast<float>(Tanh(static_cast<double>(x))), x);
    ASSERT_EQ(static_cast<float>(Tanh(static_cast<double>(-x))), -x);
  }
  size_t different = 0;   // not far above the bound it does matter
  for (uint32_t bits = test::ToBits(kSmallProduct); bits < test::ToBits(2 * kSmallProduct); bits += 7)
    different += static_cast<float>(Tanh(static_cast<double>(test::FromBits(bits)))) != test::FromBits(bits);
  EXPECT_GT(different, 0u);

  Random random;
  for (int round = 0; round < 300; ++round) {
    Lanes lanes = RandomScoreLanes(random, kBlockLanes, false);
    for (size_t i = 0; i < lanes.n; ++i)
      if (!(std::fabs(lanes.d[i] * lanes.sum[i]) <= kSmallProduct)) lanes.sum[i] = 0;
    std::vector<float> scores(lanes.n);
    ExactSmallScores(lanes.d.data(), lanes.sum.data(), lanes.n, lanes.curve, scores.data());
    for (size_t i = 0; i < lanes.n; ++i) ASSERT_EQ(scores[i], Formula(lanes.d[i], lanes.sum[i], lanes.curve));
  }
}

// Limits at scores that there are, and next to them, where estimates can be wrong.
float SomeLimit(Random& random, const std::vector<float>& scores) {
  const float score = scores[random.Below(scores.size())];
  return random.OneOf({score, std::nextafter(score, INFINITY), std::nextafter(score, -INFINITY)});
}

TEST(PcbScores, EstimatesSettleOnlyWhatIsSo) {
  Random random;
  size_t settled_lanes = 0, all_lanes = 0;
  test::ForEachTarget([&] {
    for (int round = 0; round < 400; ++round) {
      const Lanes lanes = RandomScoreLanes(random, 1 + random.Below(kBlockLanes), random.Chance(0.3));
      const ScoreEstimate estimate(lanes.curve);
      if (!estimate.usable()) continue;
      std::vector<float> scores(lanes.n);
      ExactScores(lanes.d.data(), lanes.sum.data(), lanes.n, lanes.curve, scores.data());
      float a = SomeLimit(random, scores), b = SomeLimit(random, scores), largest = SomeLimit(random, scores);
      if (a > b) std::swap(a, b);
      const ScoreLimits limits{.open = estimate.Below(a), .above = estimate.Above(b), .below = estimate.Below(largest)};
      std::vector<uint32_t> places(lanes.n);
      SettledScores settled;
      const OpenLanes open =
          CountSettledScores(lanes.d.data(), lanes.sum.data(), lanes.n, estimate, limits, places.data(), &settled);
      std::vector<bool> is_open(lanes.n);
      for (size_t i = 0; i < open.count; ++i) is_open[places[i]] = true;
      EXPECT_TRUE(std::is_sorted(places.begin(), places.begin() + static_cast<ptrdiff_t>(open.count)));
      uint64_t between = 0, zeros = 0;
      bool small = true;
      for (size_t i = 0; i < lanes.n; ++i) {
        const float product = lanes.d[i] * lanes.sum[i];
        small &= std::fabs(product) <= kSmallProduct;
        ASSERT_FALSE(product == 0 && is_open[i]);
        zeros += product == 0;
        if (is_open[i] || product == 0 || scores[i] < a) continue;
        ++between;
        ASSERT_GT(scores[i], b);
        ASSERT_LT(scores[i], largest);
      }
      ASSERT_EQ(settled.between, between);
      ASSERT_EQ(settled.zeros, zeros);
      ASSERT_EQ(open.small, small);
      all_lanes += lanes.n, settled_lanes += lanes.n - open.count;

      if (a <= 0) continue;
      const OpenLanes reaching =
          FindOpenScores(lanes.d.data(), lanes.sum.data(), lanes.n, estimate, estimate.Below(a), places.data());
      std::fill(is_open.begin(), is_open.end(), false);
      for (size_t i = 0; i < reaching.count; ++i) is_open[places[i]] = true;
      for (size_t i = 0; i < lanes.n; ++i) ASSERT_TRUE(is_open[i] || scores[i] < a) << scores[i] << " " << a;
      ASSERT_EQ(reaching.small, small);
    }
  });
  EXPECT_GT(settled_lanes, all_lanes / 4);
}

// The distance of estimates and scores is next to nothing: whatever is a thousandth off a limit is settled.
TEST(PcbScores, EstimatesSettleMost) {
  Random random;
  test::ForEachTarget([&] {
    for (int round = 0; round < 100; ++round) {
      Lanes lanes = RandomScoreLanes(random, kBlockLanes, false);
      const ScoreEstimate estimate(lanes.curve);
      if (!estimate.usable()) continue;
      std::vector<float> scores(lanes.n);
      ExactScores(lanes.d.data(), lanes.sum.data(), lanes.n, lanes.curve, scores.data());
      std::vector<uint32_t> places(lanes.n);
      const float limit = std::fabs(scores[random.Below(lanes.n)]);
      if (limit < 1e-30f) continue;
      const OpenLanes open =
          FindOpenScores(lanes.d.data(), lanes.sum.data(), lanes.n, estimate, estimate.Below(limit), places.data());
      for (size_t i = 0; i < open.count; ++i) {
        const size_t at = places[i];
        ASSERT_TRUE(std::fabs(lanes.d[at] * lanes.sum[at]) > kSmallProduct || scores[at] > limit * 0.999f);
      }
    }
  });
}

TEST(PcbScores, KeysOrderAsScoresDo) {
  Random random;
  EXPECT_EQ(ScoreKey(0.0f), ScoreKey(-0.0f));
  EXPECT_EQ(ScoreKey(0.0f), kZeroScoreKey);
  for (int i = 0; i < 100'000; ++i) {
    const float a = test::RandomLane(random, test::kAllKinds[random.Below(4)]);
    const float b = test::RandomLane(random, test::kAllKinds[random.Below(4)]);
    if (std::isnan(a) || std::isnan(b)) continue;
    ASSERT_EQ(ScoreKey(a) < ScoreKey(b), a < b) << a << " " << b;
    ASSERT_EQ(ScoreAt(ScoreKey(a)), a);
  }
}

}  // namespace
}  // namespace braid
