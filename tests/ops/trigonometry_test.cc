// Our sine, cosine and arc cosine against the C library's in long double.
#include "ops/trigonometry.h"

#include "tests/ops/test_support.h"

namespace braid {
namespace {

constexpr double kUnit = std::numeric_limits<double>::epsilon();

TEST(Trigonometry, SineAndCosineAreWithinTwoUnitsOfOne) {
  test::Random random;
  for (int i = 0; i < 200'000; ++i) {
    const double reach = random.OneOf({1e-9, 1e-3, 1.0, 4.0, 1000.0});
    const double x = std::uniform_real_distribution<double>(-reach, reach)(random);
    EXPECT_NEAR(Sin(x), static_cast<double>(sinl(x)), 2 * kUnit) << x;
    EXPECT_NEAR(Cos(x), static_cast<double>(cosl(x)), 2 * kUnit) << x;
    // Of small ones, too.
    EXPECT_TRUE(std::fabs(x) > 0.1 || std::fabs(Sin(x) - static_cast<double>(sinl(x))) <= 2 * kUnit * std::fabs(x))
        << x;
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Trigonometry, ArcCosineIsWithinFourUnitsOfItself) {
  test::Random random;
  for (int i = 0; i < 200'000; ++i) {
    const double from_one = std::pow(10.0, std::uniform_real_distribution<double>(-16, 0.3)(random));
    const double x = random.Chance(0.5) ? 1 - from_one : from_one - 1;
    const auto angle = static_cast<double>(acosl(x));
    EXPECT_NEAR(ArcCos(x), angle, 4 * kUnit * angle) << x;
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Trigonometry, ExactAtTheEnds) {
  EXPECT_EQ(ArcCos(1), 0);
  EXPECT_EQ(ArcCos(-1), 3.141592653589793);
  EXPECT_EQ(Sin(0), 0);
  EXPECT_EQ(Cos(0), 1);
  EXPECT_NEAR(Sin(3.141592653589793), 1.2246467991473532e-16, 1e-31);
  EXPECT_TRUE(std::isnan(Sin(NAN)));
  EXPECT_TRUE(std::isnan(ArcCos(NAN)));
}

}  // namespace
}  // namespace braid
