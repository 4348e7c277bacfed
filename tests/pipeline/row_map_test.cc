#include "pipeline/row_map.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

using Kind = RowRun::Kind;

TEST(RowMap, JoinsRowsIntoRuns) {
  RowMap map;
  for (uint64_t row : {5, 6, 7, 9}) map.AppendCopy({1, row});
  map.AppendCopy({2, 10});                 // another source
  map.AppendZero(), map.AppendZero();
  map.AppendMean({{0, 1}, {1, 4}}), map.AppendMean({{0, 2}});
  map.AppendPadding();
  EXPECT_EQ(map.rows(), 10u);
  ASSERT_EQ(map.runs().size(), 6u);
  EXPECT_EQ(map.runs()[0].count, 3u);
  EXPECT_EQ(map.runs()[4].count, 2u);
  for (uint64_t row = 0; row < map.rows(); ++row) {
    const RowRun& run = map.RunOf(row);
    EXPECT_LE(run.first, row);
    EXPECT_LT(row, run.first + run.count);
  }
  EXPECT_EQ(map.RunOf(3).row, 9u);
  EXPECT_EQ(map.RunOf(6).kind, Kind::kZero);
  EXPECT_EQ(map.mean(map.RunOf(8).row + 1)[0].row, 2u);
  EXPECT_TRUE(map.Has(Kind::kPadding));
}

TEST(RowMap, KnowsWhenNothingMoves) {
  RowMap map;
  for (uint64_t row = 0; row < 4; ++row) map.AppendCopy({1, row});
  EXPECT_TRUE(map.IsIdentity(1, 4));
  EXPECT_FALSE(map.IsIdentity(0, 4));   // another source
  EXPECT_FALSE(map.IsIdentity(1, 5));   // its last row is gone
  map.AppendZero();
  EXPECT_FALSE(map.IsIdentity(1, 5));
}

TEST(RowMap, SumsTellMapsApart) {
  const auto sum = [](auto make) {
    RowMap map;
    make(map);
    return map.Sum();
  };
  const XXH128_hash_t sums[] = {
      sum([](RowMap& m) { m.AppendCopy({0, 1}); }), sum([](RowMap& m) { m.AppendCopy({1, 1}); }),
      sum([](RowMap& m) { m.AppendCopy({0, 2}); }), sum([](RowMap& m) { m.AppendZero(); }),
      sum([](RowMap& m) { m.AppendPadding(); }),    sum([](RowMap& m) { m.AppendMean({{0, 1}}); }),
      sum([](RowMap& m) { m.AppendMean({{1, 0}}); }), sum([](RowMap& m) { m.AppendZero(), m.AppendZero(); }),
  };
  for (size_t i = 0; i < std::size(sums); ++i)
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(XXH128_isEqual(sums[i], sums[j])) << i << " " << j;
}

}  // namespace
}  // namespace braid
