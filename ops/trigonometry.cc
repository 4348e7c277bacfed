#include "ops/trigonometry.h"

#include <cmath>

namespace braid {
namespace {

constexpr double kPi = 3.141592653589793;
constexpr double kPiRest = 1.2246467991473532e-16;  // pi is their sum to 107 bits

// The Taylor series, nested; enough terms for |x| up to pi / 2.
double CosNearZero(double x) {
  const double square = x * x;
  double sum = 1;
  for (int n = 22; n >= 2; n -= 2) sum = 1 - square / ((n - 1) * n) * sum;
  return sum;
}
double SinNearZero(double x) {
  const double square = x * x;
  double sum = 1;
  for (int n = 22; n >= 2; n -= 2) sum = 1 - square / (n * (n + 1)) * sum;
  return x * sum;
}

struct Reduced {
  double rest;   // within half a half turn
  bool odd;      // number of half turns
};

Reduced Reduce(double x) {
  int turns = 0;   // the last bits of the number of half turns
  const double rest = std::remquo(x, kPi, &turns);  // exact, on every machine
  return {rest - std::nearbyint((x - rest) / kPi) * kPiRest, turns % 2 != 0};
}

// For 0 <= x <= sqrt(1/2): three terms of the series, then Newton's steps, of which each doubles the digits.
double ArcSin(double x) {
  double angle = x + x * x * x * (1.0 / 6 + 3.0 / 40 * x * x);
  for (int i = 0; i < 3; ++i) angle -= (Sin(angle) - x) / Cos(angle);
  return angle;
}

}  // namespace

double Sin(double x) {
  const auto [rest, odd] = Reduce(x);
  return odd ? -SinNearZero(rest) : SinNearZero(rest);
}

double Cos(double x) {
  const auto [rest, odd] = Reduce(x);
  return odd ? -CosNearZero(rest) : CosNearZero(rest);
}

// By the half angle, which keeps the digits of small ones.
double ArcCos(double x) {
  if (x < 0) return kPi - ArcCos(-x);
  return 2 * ArcSin(std::sqrt((1 - x) / 2));
}

}  // namespace braid
