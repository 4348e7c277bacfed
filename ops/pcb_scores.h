// The scores of pcb, over blocks of float32 lanes: score = exp(N ((a - low)/(high - low))^2) tanh(product), a = |d|
// clamped to [low, high], product = d sum. Exactly, with exp and tanh in float64 and the rest in float32; and an
// estimate that is within a known distance, which settles on which side of a limit most scores lie. See ops/kernels.h
// for what holds of all kernels.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace braid {

inline constexpr size_t kPcbMostModels = 80;   // e^80 is still a float32

// tanh of such a product x is x itself, as float32: it lies x^2/3 < 2^-25 below, relative to x, and the next float32
// below x at least 2^-24, so that x is the nearest; the error of Tanh (8 ulp of float64) is next to nothing.
inline constexpr float kSmallProduct = 0x1p-12f;

// What the scores of one model depend on beside its entries.
struct ScoreCurve {
  float low = 0, high = 0;   // order statistics of its magnitudes
  float models = 1;
};

inline float ClampedMagnitude(float d, const ScoreCurve& curve) {
  const float magnitude = std::fabs(d), raised = magnitude < curve.low ? curve.low : magnitude;
  return raised > curve.high ? curve.high : raised;
}

// What is no number (where infinities meet) counts as 0.
void ExactScores(const float* d, const float* sum, size_t n, const ScoreCurve& curve, float* scores);

// The same where all products are small and the curve's ends finite: no tanh.
void ExactSmallScores(const float* d, const float* sum, size_t n, const ScoreCurve& curve, float* scores);

// Scores as integers that order as they do; +0 and -0 are one.
inline constexpr uint32_t kZeroScoreKey = 0x80000000;
inline uint32_t ScoreKey(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | kZeroScoreKey);
}
inline float ScoreAt(uint32_t key) { return std::bit_cast<float>(key >= kZeroScoreKey ? key ^ kZeroScoreKey : ~key); }

// Small scores without exp: 2^y in float32, y = ((a - low) factor)^2 and factor = sqrt(N log2 e)/(high - low).
//
// With u = 2^-24, relative to what it would be without rounding, y is off by 5 u at most, and the exponent that
// ExactScores rounds to float32 by 4 u; it is at most N, so the powers differ by 9 N u. The polynomial (2^f to f^6,
// |f| <= 1/2) adds 5 u, the last roundings of both 4 u. Altogether less than (16 N + 32) u, and where scores are
// subnormal half a unit of theirs each.
class ScoreEstimate {
 public:
  ScoreEstimate() = default;
  explicit ScoreEstimate(const ScoreCurve& curve);

  // Whether this curve has one: ends that are numbers, and not next to each other.
  bool usable() const { return usable_; }

  // An estimate below `Below(score)` is one of a smaller score; above `Above(score)`, of a larger.
  float Below(float score) const { return Moved(score, -1); }
  float Above(float score) const { return Moved(score, 1); }

  float low = 0, high = 0, factor = 0;   // for the kernel

 private:
  float Moved(float score, int direction) const;
  bool usable_ = false;
  double error_ = 0;
};

// The lanes whose scores estimates do not settle.
struct OpenLanes {
  size_t count = 0;
  bool small = true;   // all their products
};

// Writes the places (room for n) of the lanes that may reach `limit`, above 0, and of those whose products are not
// small. `sum` is padded as `d` is.
OpenLanes FindOpenScores(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate, float limit,
                         uint32_t* places);

// The same, but any limit, and of those that may reach it settled are, too, the ones whose estimates are between two
// others (exclusive) and those that are 0.
struct ScoreLimits {
  float open = 0, above = 0, below = 0;
};
struct SettledScores {
  uint64_t between = 0, zeros = 0;
};
OpenLanes CountSettledScores(const float* d, const float* sum, size_t n, const ScoreEstimate& estimate,
                             const ScoreLimits& limits, uint32_t* places, SettledScores* settled);

// sum[i] += d[i] for n lanes and up to a vector more.
void AddLanes(const float* d, size_t n, float* sum);

}  // namespace braid
