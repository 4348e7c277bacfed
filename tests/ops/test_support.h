// What the tests of ops/ share: seeds, lanes to test with, comparison of bits, every SIMD target.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "ops/kernels.h"

namespace braid::test {

// A random engine. A seed that it chose itself is printed; BRAID_TEST_SEED in the environment repeats a run.
class Random : public std::mt19937_64 {
 public:
  Random() : Random(NewSeed()) {}
  explicit Random(uint64_t seed) : std::mt19937_64(seed) {}
  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(*this); }
  bool Chance(double p) { return std::uniform_real_distribution<double>(0, 1)(*this) < p; }
  double Normal() { return std::normal_distribution<double>()(*this); }
  template <typename T>
  T OneOf(std::initializer_list<T> choices) {
    return *(choices.begin() + static_cast<ptrdiff_t>(Below(choices.size())));
  }

 private:
  static uint64_t NewSeed() {
    const char* given = std::getenv("BRAID_TEST_SEED");
    const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
    std::printf("[   SEED   ] BRAID_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
    return seed;
  }
};

inline constexpr DType kLaneTypes[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16};

inline float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t ToBits(float x) { return std::bit_cast<uint32_t>(x); }

// Equal bits; any NaN equals any NaN (which one comes out of a lane is decided when it is encoded).
inline bool SameLane(float a, float b) { return (std::isnan(a) && std::isnan(b)) || ToBits(a) == ToBits(b); }
inline bool SameSum(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

inline const std::vector<float>& SpecialLanes() {
  static const std::vector<float> lanes = {0.0f,
                                           -0.0f,
                                           1.0f,
                                           -1.0f,
                                           FromBits(1),
                                           FromBits(0x80000001),
                                           FromBits(0x007fffff),
                                           FromBits(0x00800000),
                                           3.4028235e38f,
                                           -3.4028235e38f,
                                           std::numeric_limits<float>::infinity(),
                                           -std::numeric_limits<float>::infinity(),
                                           FromBits(0x7fc00000),
                                           FromBits(0xffc00001),
                                           FromBits(0x7f800001),
                                           FromBits(0x7fffffff),
                                           65504.0f,
                                           65520.0f,
                                           1e-8f,
                                           5.9604645e-8f,
                                           -2.9802322e-8f,
                                           0.5f,
                                           1e-30f};
  return lanes;
}

enum class Kind { kNormal, kCoarse, kAnyBits, kSpecial };
inline constexpr Kind kAllKinds[] = {Kind::kNormal, Kind::kCoarse, Kind::kAnyBits, Kind::kSpecial};

inline float RandomLane(Random& random, Kind kind) {
  switch (kind) {
    case Kind::kNormal:
      return static_cast<float>(random.Normal());
    case Kind::kCoarse:
      return static_cast<float>(static_cast<int>(random.Below(9)) - 4) / 8;  // many equals
    case Kind::kAnyBits:
      return FromBits(static_cast<uint32_t>(random()));
    case Kind::kSpecial:
      break;
  }
  return SpecialLanes()[random.Below(SpecialLanes().size())];
}

inline std::vector<float> RandomLanes(Random& random, size_t n, Kind kind) {
  std::vector<float> lanes(n);
  for (float& lane : lanes) lane = RandomLane(random, kind);
  return lanes;
}

// n lanes followed by padding full of values that must not matter.
inline std::vector<float> Padded(Random& random, std::vector<float> lanes) {
  for (size_t i = 0; i < kLanePadding; ++i) lanes.push_back(RandomLane(random, Kind::kSpecial));
  return lanes;
}

// Lengths that leave every remainder, around the batches of the kernels.
inline std::vector<size_t> Lengths() {
  std::vector<size_t> lengths;
  for (size_t n = 0; n <= 100; ++n) lengths.push_back(n);
  for (size_t n : {127, 128, 129, 255, 256, 257, 271, 511, 513, 1000, 1023, 1024}) lengths.push_back(n);
  return lengths;
}

// Runs body once for each SIMD target that this machine has and the kernels were compiled for, and names
// them. Fails when there is only one although the machine has AVX2: then the tests would prove nothing about
// the others.
template <typename Body>
void ForEachTarget(Body body) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  std::string names;
  std::set<size_t> ran;  // by index in Highway's tables of functions
  for (int64_t target : targets) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(target));
    names += std::string(" ") + hwy::TargetName(target);
    ran.insert(hwy::GetChosenTarget().GetIndex());
    body();
    if (testing::Test::HasFatalFailure()) break;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  std::printf("[ TARGETS  ]%s\n", names.c_str());
  EXPECT_EQ(ran.size(), targets.size());
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    EXPECT_GT(ran.size(), 1u) << "only" << names << " ran";
  }
#endif
}

}  // namespace braid::test
