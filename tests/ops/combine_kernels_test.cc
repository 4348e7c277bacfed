// The kernels of linear combinations on every SIMD target, against plain loops and exact rounding.
#include "ops/kernels.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::ForEachTarget;
using test::Kind;
using test::Lengths;
using test::Padded;
using test::Random;
using test::RandomLanes;
using test::SameLane;
using test::SameSum;

constexpr double kGuard = 12345;

size_t RoundedUp(size_t n) { return (n + kSumLanes - 1) / kSumLanes * kSumLanes; }

TEST(WidenLanes, IsExactAndFillsUpWithZeros) {
  Random random;
  for (size_t n : Lengths()) {
    const std::vector<float> x = RandomLanes(random, n, Kind::kAnyBits), base = RandomLanes(random, n, Kind::kAnyBits);
    ForEachTarget([&] {
      for (bool relative : {false, true}) {
        std::vector<double> wide(RoundedUp(n) + 1, kGuard);
        WidenLanes(x.data(), relative ? base.data() : nullptr, n, wide.data());
        for (size_t i = 0; i < n; ++i)
          ASSERT_TRUE(SameSum(wide[i], static_cast<double>(x[i]) - (relative ? static_cast<double>(base[i]) : 0.0)) || x[i] == 0) << i;
        for (size_t i = n; i < RoundedUp(n); ++i) ASSERT_EQ(wide[i], 0);
        ASSERT_EQ(wide[RoundedUp(n)], kGuard);
      }
    });
  }
}

TEST(AddProducts, AddsInSixteenInterleavedSums) {
  Random random;
  for (size_t n : Lengths()) {
    std::vector<double> x(RoundedUp(n), 0.0), y = x;
    for (size_t i = 0; i < n; ++i) x[i] = random.Normal(), y[i] = random.Normal() * 1e3;
    double expected[kSumLanes];
    for (double& sum : expected) sum = random.Normal();
    double first[kSumLanes];
    std::copy_n(expected, kSumLanes, first);
    for (size_t i = 0; i < n; ++i) expected[i % kSumLanes] += x[i] * y[i];
    ForEachTarget([&] {
      double sums[kSumLanes];
      std::copy_n(first, kSumLanes, sums);
      AddProducts(x.data(), y.data(), n, sums);
      for (size_t i = 0; i < kSumLanes; ++i) ASSERT_TRUE(SameSum(sums[i], expected[i])) << n << " " << i;
    });
  }
}

TEST(CombineLanes, IsTheSumOfItsTermsRoundedOnce) {
  Random random;
  for (size_t n : Lengths()) {
    const size_t num_terms = random.Below(5);
    std::vector<std::vector<double>> terms(num_terms, std::vector<double>(n));
    std::vector<const double*> pointers;
    std::vector<double> shares;
    for (auto& term : terms) {
      for (double& x : term) x = static_cast<double>(static_cast<float>(random.Normal()));
      shares.push_back(random.OneOf({0.0, 1.0, random.Normal(), -3.7, 0.1}));
      pointers.push_back(shares.back() == 0 ? nullptr : term.data());
    }
    std::vector<float> base = RandomLanes(random, n, Kind::kGaussian);
    for (float& x : base)
      if (random.Chance(0.1)) x = -0.0f;
    for (bool relative : {false, true})
      for (bool unchanged : {false, true}) {
        if (unchanged) for (auto& term : terms) std::fill(term.begin(), term.end(), 0.0);
        ForEachTarget([&] {
          std::vector<float> out(n + kLanePadding, 7.0f);
          CombineLanes(pointers.data(), num_terms, shares.data(), relative ? base.data() : nullptr, n, LaneRounding::kNearest, out.data());
          for (size_t i = 0; i < n; ++i) {
            double sum = 0;
            for (size_t m = 0; m < num_terms; ++m)
              if (shares[m] != 0) sum += shares[m] * terms[m][i];
            const double merged = relative ? base[i] + sum : sum;
            const float expected = relative && sum == 0 ? base[i] : static_cast<float>(merged);
            ASSERT_TRUE(SameLane(out[i], expected) || (sum == 0 && !relative && out[i] == 0)) << i;
          }
        });
      }
  }
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
      const double beside = boundary * (1 + random.OneOf({0.0, 1.0, -1.0}) * std::ldexp(1.0, -random.OneOf({24, 25, 26, 40, 52})));
      sums.push_back(random.Chance(0.5) ? beside : -beside);
    }
    for (double special : {0.0, 1e-50, -1e-50, 1e-320, 1e60, -1e60, 3.4028235e38, 3.5e38, 65520.0, 65519.999999, HUGE_VAL, -HUGE_VAL, std::nan("")})
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
