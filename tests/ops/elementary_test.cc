// exp, log and tanh against the C library's in 80 bits.
#include "ops/elementary.h"

#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

// |value - truth| in units of the last place of the truth as float64.
double UlpError(double value, long double truth) {
  const double rounded = static_cast<double>(truth);
  const int exponent = rounded == 0 ? -1022 : std::max(std::ilogb(rounded), -1022);
  return static_cast<double>(std::fabs((static_cast<long double>(value) - truth) / std::ldexp(1.0L, exponent - 52)));
}

constexpr int kCases = 1'000'000;

TEST(Elementary, ExpIsWithinTwoUlp) {
  Random random;
  double worst = 0;
  for (int i = 0; i < kCases; ++i) {
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const double x = i % 4 == 0 ? -708 + u * 1417 : i % 4 == 1 ? -u * 20 : i % 4 == 2 ? u * 0.7 - 0.35
        : (u - 0.5) * 1e-6;
    worst = std::max(worst, UlpError(Exp(x), std::exp(static_cast<long double>(x))));
  }
  std::printf("[  WORST   ] %.3f ulp\n", worst);
  EXPECT_LT(worst, 2);
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(-0.0), 1);
  EXPECT_TRUE(std::isnan(Exp(NAN)));
  for (double x : {-709.0, -1e10, -std::numeric_limits<double>::infinity()}) EXPECT_EQ(Exp(x), Exp(-708)) << x;
  EXPECT_LT(Exp(-708), 1e-300);
}

TEST(Elementary, LogIsWithinThreeUlp) {
  Random random;
  double worst = 0;
  for (int i = 0; i < kCases; ++i) {
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    const double x = i % 4 == 0 ? std::exp(u * 1400 - 700) : i % 4 == 1 ? std::exp(u * 40 - 20) : i % 4 == 2 ? 0.5 + u
        : 1 + (u - 0.5) * 1e-6;
    worst = std::max(worst, UlpError(Log(x), std::log(static_cast<long double>(x))));
  }
  std::printf("[  WORST   ] %.3f ulp\n", worst);
  EXPECT_LT(worst, 3);
  EXPECT_EQ(Log(1), 0);
  EXPECT_TRUE(std::isnan(Log(NAN)));
  // Where one power of two gives way to the next.
  for (double x : {0x1.6a09e667f3bcdp-1, 0x1.6a09e667f3bccp-1, 0x1.6a09e667f3bcdp0, 0x1.6a09e667f3bccp0, 0x1p-1022,
                   0x1.fffffffffffffp1023})
    EXPECT_LT(UlpError(Log(x), std::log(static_cast<long double>(x))), 3) << x;
}

TEST(Elementary, TanhIsWithinEightUlp) {
  Random random;
  double worst = 0;
  for (int i = 0; i < kCases; ++i) {
    const double u = std::uniform_real_distribution<double>(-1, 1)(random);
    const double x = i % 4 == 0 ? u * 30 : i % 4 == 1 ? u : i % 4 == 2 ? u * 1e-6
        : u * std::pow(10, -static_cast<double>(random.Below(300)));
    worst = std::max(worst, UlpError(Tanh(x), std::tanh(static_cast<long double>(x))));
  }
  std::printf("[  WORST   ] %.3f ulp\n", worst);
  EXPECT_LT(worst, 8);
  EXPECT_EQ(Tanh(0), 0);
  EXPECT_EQ(Tanh(1e300), 1);
  EXPECT_EQ(Tanh(-std::numeric_limits<double>::infinity()), -1);
  EXPECT_TRUE(std::isnan(Tanh(NAN)));
}

// For every 977th float32 up to 100: as float32 the results are those of the C library's
// float64 functions, or next to them where they lie halfway.
TEST(Elementary, RoundedToFloat32TheyAreTheCLibrarys) {
  size_t differ = 0, all = 0;
  for (uint32_t bits = 0; bits < test::ToBits(100.0f); bits += 977) {
    const auto x = static_cast<double>(test::FromBits(bits));
    differ += static_cast<float>(Exp(-x)) != static_cast<float>(std::exp(-x));
    differ += static_cast<float>(Tanh(x)) != static_cast<float>(std::tanh(x));
    if (bits >= 0x00800000) differ += static_cast<float>(Log(x)) != static_cast<float>(std::log(x));
    all += 3;
  }
  EXPECT_GT(all, 1'000'000u);
  EXPECT_LE(differ, 3u);
}

}  // namespace
}  // namespace braid
