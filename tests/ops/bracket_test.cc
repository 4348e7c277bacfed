// Brackets of a threshold: a fine sample within a rough one.
#include "ops/bracket.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ops/task_vector_statistics.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::Random;

// Some lanes, and runs of them at even distances.
class Lanes {
 public:
  static constexpr size_t kRun = 64;
  Lanes(Random& random, size_t n, bool coarse) : lanes_(n + kLanePadding), n_(n) {
    for (size_t i = 0; i < n; ++i) {
      const float x = static_cast<float>(random.Normal());
      lanes_[i] = coarse ? std::round(x * 8) / 8 : x;
    }
  }

  std::vector<uint64_t> Places(bool by_index) const {
    PlaceSample all;
    for (size_t at = 0; at < n_; at += kRun)
      AddRun(&lanes_[at], std::min(kRun, n_ - at), at, by_index, &all);
    std::sort(all.places.begin(), all.places.end());
    return all.places;
  }

  PlaceSample Rough(size_t runs, bool by_index) const {
    PlaceSample sample;
    for (size_t r = 0; r < runs; ++r) AddRun(&lanes_[n_ / runs * r], kRun, n_ / runs * r, by_index, &sample);
    return sample;
  }

  // Counted in two parts.
  InsideSample Fine(size_t runs, const Bracket& bracket, bool by_index) const {
    InsideKeys first(1), second(1);
    Scratch scratch(1);
    const std::vector<float> zeros(kRun);
    for (size_t r = 0; r < runs; ++r) {
      InsideKeys& part = r < runs / 3 ? first : second;
      const uint64_t at = n_ / runs * r;
      const EncodedLanes base{DType::kF32, reinterpret_cast<const std::byte*>(zeros.data())};
      const EncodedLanes model{DType::kF32, reinterpret_cast<const std::byte*>(&lanes_[at])};
      const LaneTile run{.first = at, .count = kRun, .tensor = {}, .base = base, .models = {&model, 1}};
      AddInsideRun(run, 0, bracket, by_index, scratch, &part.slots[0]);
    }
    first.Add(&second);
    return first.slots[0];
  }

 private:
  std::vector<float> lanes_;
  size_t n_;
};

bool Holds(const Bracket& bracket, uint64_t place) {
  return bracket.open.Keeps(KeyAt(place), IndexAt(place)) && !bracket.sure.Keeps(KeyAt(place), IndexAt(place));
}

TEST(Bracket, FineSampleNarrowsIt) {
  Random random;
  constexpr size_t kTurns = 40;
  size_t missed = 0;
  for (size_t turn = 0; turn < kTurns; ++turn) {
    const size_t n = 200'000 + random.Below(100'000);
    const bool by_index = random.Chance(0.5), coarse = by_index && random.Chance(0.5);
    const Lanes lanes(random, n, coarse);
    const std::vector<uint64_t> places = lanes.Places(by_index);
    const uint64_t k = 1 + n / 20 + random.Below(n * 9 / 10);
    const auto rough = BracketOf(lanes.Rough(256, by_index), k, n, by_index);
    ASSERT_TRUE(rough.has_value());
    const Bracket narrow = NarrowBracket(*rough, lanes.Fine(2048, *rough, by_index), k, n, by_index);
    const auto inside = [&](const Bracket& bracket) {
      return std::count_if(places.begin(), places.end(), [&](uint64_t p) { return Holds(bracket, p); });
    };
    missed += Holds(narrow, places[k - 1]) ? 0 : 1;
    EXPECT_LE(inside(narrow), inside(*rough));
    if (!coarse) {
      EXPECT_LT(inside(narrow), inside(*rough) / 2);   // coarse ones end between blocks of lanes
    }
  }
  EXPECT_LE(missed, 2u);   // one in a thousand should
}

TEST(Bracket, StaysWhereTheFineSampleSaysNothing) {
  Random random;
  const Lanes lanes(random, 100'000, false);
  const auto rough = BracketOf(lanes.Rough(256, true), 20'000, 100'000, true);
  ASSERT_TRUE(rough.has_value());
  for (const uint64_t k : {uint64_t{1}, uint64_t{99'999}}) {   // far outside
    const Bracket same = NarrowBracket(*rough, lanes.Fine(1024, *rough, true), k, 100'000, true);
    EXPECT_EQ(same.sure, rough->sure);
    EXPECT_EQ(same.open, rough->open);
  }
  const Bracket none = NarrowBracket(*rough, {}, 20'000, 100'000, true);
  EXPECT_EQ(none.sure, rough->sure);
  EXPECT_EQ(none.open, rough->open);
}

}  // namespace
}  // namespace braid
