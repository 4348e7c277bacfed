// exp, log and tanh in float64, by fixed polynomials: the C library's differ from one version and machine to the next.
//
// Every step is rounded separately and none depends on a branch, so a loop over them gives the same bits however the
// compiler arranges it (ops/wide_vectors.h). Error bounds in ulp of float64 are those that tests/ops/elementary_test.cc
// asserts. NaN gives NaN. Pure.
#pragma once

#include <bit>
#include <cstdint>

namespace braid {

inline constexpr double kLn2High = 0x1.62e42feep-1;             // its product with an exponent is exact
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

// e^x, within 2 ulp for -708 <= x <= 709; below that, what it is at -708: 3e-308.
inline double Exp(double x) {
  constexpr double kRound = 0x1.8p52;   // adding it leaves a whole number in the low bits
  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * 0x1.71547652b82fep0 + kRound, k = shifted - kRound;
  const double r = (x - k * kLn2High) - k * kLn2Low;   // |r| <= ln 2 / 2
  double sum = 1.0 / 6227020800.0;                     // Taylor up to r^13
  sum = sum * r + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  return sum * std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) << 52) + (uint64_t{1023} << 52));
}

// Natural logarithm, within 3 ulp, of normal finite positive numbers. Log(1) = 0.
inline double Log(double x) {
  constexpr uint64_t kOne = 0x3ff0000000000000, kRootOfHalf = 0x3fe6a09e667f3bcd;
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const uint64_t exponent = (bits + (kOne - kRootOfHalf)) >> 52;   // biased; x = 2^k m with m from 0.707 to 1.414
  const double m = std::bit_cast<double>(bits - (exponent << 52) + kOne);
  const double k = std::bit_cast<double>(exponent | 0x4330000000000000) - (0x1p52 + 1023.0);
  const double f = m - 1.0, s = f / (m + 1.0), z = s * s;
  double sum = 1.0 / 21.0;   // log m = 2 (s + s^3/3 + s^5/5 + ...)
  sum = sum * z + 1.0 / 19.0;
  sum = sum * z + 1.0 / 17.0;
  sum = sum * z + 1.0 / 15.0;
  sum = sum * z + 1.0 / 13.0;
  sum = sum * z + 1.0 / 11.0;
  sum = sum * z + 1.0 / 9.0;
  sum = sum * z + 1.0 / 7.0;
  sum = sum * z + 1.0 / 5.0;
  sum = sum * z + 1.0 / 3.0;
  const double log_m = 2.0 * s + 2.0 * s * (z * sum);
  return k * kLn2High + (k * kLn2Low + log_m) + (x - x);   // the last: nothing, or NaN
}

// Within 8 ulp everywhere.
inline double Tanh(double x) {
  const double magnitude = x < 0 ? -x : x;
  // Near 0 the seventh convergent of Lambert's continued fraction x/(1 + x^2/(3 + x^2/(5 + ...))).
  const double near = magnitude < 0.5 ? x : 0.0, z = near * near;
  const double fraction = near * (135135.0 + z * (17325.0 + z * (378.0 + z))) /
                          (135135.0 + z * (62370.0 + z * (3150.0 + z * 28.0)));
  const double e = Exp(2.0 * (magnitude < 22.0 ? magnitude : 22.0));
  const double far = 1.0 - 2.0 / (e + 1.0);
  const double signed_far = x < 0 ? -far : far;
  return (magnitude < 0.5 ? fraction : signed_far) + (x != x ? x : 0.0);
}

}  // namespace braid
