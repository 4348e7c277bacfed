// The kernels of linear combinations on every SIMD target, against plain loops and exact rounding.
#include <algorithm>

#include "ops/kernels.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::ForEachTarget;
using test::Kind;
using test::Lengths;
using test::Random;
using test::RandomLane;
using test::RandomLanes;
using test::SameLane;
using test::SameSum;

constexpr double kGuard = 12345;

size_t RoundedUp(size_t n) { return (n + kSumLanes - 1) / kSumLanes * kSumLanes; }

TEST(WidenLanes, IsExactAndFillsUpWithZeros) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : Lengths())
      for (bool relative : {false, true}) {
        const std::vector<float> x = RandomLanes(random, n, Kind::kAnyBits),
                                 base = RandomLanes(random, n, Kind::kAnyBits);
        std::vector<double> wide(RoundedUp(n) + 1, kGuard);
        WidenLanes(x.data(), relative ? base.data() : nullptr, n, wide.data());
        for (size_t i = 0; i < n; ++i) {
          const double expected = relative ? static_cast<double>(x[i]) - static_cast<double>(base[i])
              : static_cast<double>(x[i]);
          ASSERT_TRUE(SameSum(wide[i], expected)) << i;
        }
        for (size_t i = n; i < RoundedUp(n); ++i) ASSERT_EQ(wide[i], 0);
        ASSERT_EQ(wide[RoundedUp(n)], kGuard);
      }
  });
}

TEST(AddProducts, AddsInSixteenInterleavedSums) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : Lengths()) {
      std::vector<double> x(RoundedUp(n), 0.0), y = x;
      for (size_t i = 0; i < n; ++i) x[i] = random.Normal(), y[i] = random.Normal() * 1e3;
      double sums[kSumLanes], expected[kSumLanes];
      for (size_t i = 0; i < kSumLanes; ++i) sums[i] = expected[i] = random.Normal();
      for (size_t i = 0; i < n; ++i) expected[i % kSumLanes] += x[i] * y[i];
      AddProducts(x.data(), y.data(), n, sums);
      for (size_t i = 0; i < kSumLanes; ++i) ASSERT_TRUE(SameSum(sums[i], expected[i])) << n << " " << i;
    }
  });
}

TEST(LaneProducts, AreAddedAndMultipliedLaneByLane) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : Lengths()) {
      std::vector<double> x(n), y(n), sums(n + 1, kGuard);
      for (size_t i = 0; i < n; ++i) x[i] = random.Normal(), y[i] = random.Normal();
      AddLaneProducts(x.data(), y.data(), n, sums.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(sums[i], kGuard + x[i] * y[i]);
      ASSERT_EQ(sums[n], kGuard);
      std::vector<double> product = x;
      MultiplyLanes(y.data(), n, product.data());
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(product[i], x[i] * y[i]);
    }
  });
}

// Terms of share 0 are not there at all. Some of the others are 0 throughout, so that the base stays.
TEST(CombineLanes, IsTheSumOfItsTermsRoundedOnce) {
  Random random;
  ForEachTarget([&] {
    for (size_t n : Lengths()) {
      const bool relative = random.Chance(0.5), unchanged = random.Chance(0.3);
      std::vector<std::vector<double>> terms(random.Below(5), std::vector<double>(n, 0.0));
      std::vector<const double*> pointers;
      std::vector<double> shares;
      for (auto& term : terms) {
        for (double& x : term)
          x = unchanged || random.Chance(0.1) ? 0.0 : static_cast<double>(RandomLane(random, Kind::kNormal));
        shares.push_back(random.OneOf({0.0, 1.0, random.Normal(), -3.7, 0.1}));
        pointers.push_back(shares.back() == 0 ? nullptr : term.data());
      }
      std::vector<float> base = RandomLanes(random, n, Kind::kNormal), out(n + kLanePadding, 7.0f);
      for (float& x : base)
        if (random.Chance(0.1)) x = -0.0f;
      CombineLanes(pointers.data(), terms.size(), shares.data(), relative ? base.data() : nullptr, n,
                   LaneRounding::kNearest, out.data());
      for (size_t i = 0; i < n; ++i) {
        double sum = -0.0;
        for (size_t m = 0; m < terms.size(); ++m)
          if (shares[m] != 0) sum += shares[m] * terms[m][i];
        if (std::count(shares.begin(), shares.end(), 0.0) == static_cast<ptrdiff_t>(shares.size())) sum = 0;
        const float moved = static_cast<float>(static_cast<double>(base[i]) + sum);
        ASSERT_TRUE(SameLane(out[i], !relative ? static_cast<float>(sum) : sum == 0 ? base[i] : moved)) << i;
      }
    }
  });
}

// Numbers near the boundaries of the output types, where rounding twice to nearest goes wrong.
TEST(CombineLanes, RoundingToOddThenToTheTypeRoundsOnce) {
  Random random;
  const double one = 1;
  for (DType type : {DType::kBF16, DType::kF16}) {
    const reference::Format& format = type == DType::kF16 ? reference::kF16 : reference::kBF16;
    std::vector<double> sums;
    for (int i = 0; i < 20'000; ++i) {
      const auto bits = static_cast<uint32_t>(random.Below(format.infinity));
      const double low = reference::Value(format, bits), high = reference::Value(format, bits + 1);
      const double boundary = std::isinf(high) ? low * (1 + std::ldexp(1.0, -format.mantissa - 1)) : (low + high) / 2;
      const double away = random.OneOf({0.0, 1.0, -1.0}) * std::ldexp(1.0, -random.OneOf({24, 25, 26, 40, 52}));
      const double beside = boundary * (1 + away);
      sums.push_back(random.Chance(0.5) ? beside : -beside);
    }
    for (double special : {0.0, 1e-50, -1e-50, 1e-320, 1e60, -1e60, 3.4028235e38, 3.5e38, 65520.0, 65519.999999,
                           HUGE_VAL, -HUGE_VAL, std::nan("")})
      sums.push_back(special);
    const double* const terms[] = {sums.data()};
    ForEachTarget([&] {
      std::vector<float> odd(sums.size() + kLanePadding), nearest = odd;
      std::vector<uint16_t> once(sums.size()), twice = once;
      CombineLanes(terms, 1, &one, nullptr, sums.size(), LaneRounding::kOdd, odd.data());
      CombineLanes(terms, 1, &one, nullptr, sums.size(), LaneRounding::kNearest, nearest.data());
      NonFinite counts;
      EncodeLanes(type, odd.data(), sums.size(), once.data(), &counts);
      EncodeLanes(type, nearest.data(), sums.size(), twice.data(), &counts);
      size_t wrong = 0;
      for (size_t i = 0; i < sums.size(); ++i) {
        ASSERT_EQ(once[i], reference::Round(format, sums[i])) << sums[i];
        wrong += twice[i] != once[i];
      }
      EXPECT_GT(wrong, 100u);   // it does matter
    });
  }
}

}  // namespace
}  // namespace braid
