#include "pipeline/random_pool.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <thread>

namespace braid {
namespace {

constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15;

// The finaliser of SplitMix64.
uint64_t Finalise(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Two independent uniforms from one draw: `open` in (0, 1), so that its logarithm is finite, and an angle.
struct Uniforms {
  double open, angle;
};

Uniforms Draw(uint64_t seed, uint64_t counter) {
  const uint64_t bits = MixBits(seed, counter);
  return {(static_cast<double>(bits >> 32) + 0.5) * 0x1p-32,
          static_cast<double>(bits & 0xffffffff) * 0x1p-32 * (2 * std::numbers::pi)};
}

// Box and Muller 1958.
float Normal(const Uniforms& u) {
  return static_cast<float>(std::sqrt(-2 * std::log(u.open)) * std::cos(u.angle));
}

// Bailey 1994: sqrt(v (U^(-2/v) - 1)) cos(angle), with v = 3.
float Student3(const Uniforms& u) {
  return static_cast<float>(std::sqrt(3 * (1 / std::cbrt(u.open * u.open) - 1)) * std::cos(u.angle));
}

}  // namespace

uint64_t MixBits(uint64_t seed, uint64_t counter) {
  return Finalise(Finalise(seed + kGoldenGamma) + (counter + 1) * kGoldenGamma);
}

std::vector<float> MakeRandomPool(Distribution distribution, uint64_t seed, size_t count, int threads) {
  std::vector<float> pool(count);
  auto fill = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const Uniforms u = Draw(seed, i);
      pool[i] = distribution == Distribution::kNormal ? Normal(u) : Student3(u);
    }
  };
  const size_t share = count / static_cast<size_t>(std::max(threads, 1)) + 1;
  std::vector<std::jthread> workers;
  for (size_t begin = 0; begin < count; begin += share)
    workers.emplace_back(fill, begin, std::min(begin + share, count));
  workers.clear();  // joins
  return pool;
}

}  // namespace braid
