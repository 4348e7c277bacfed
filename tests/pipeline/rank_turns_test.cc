// Ranks that go through their runs in parts and help each other, as threads: a lock is of who opened the file.
#include "pipeline/rank_turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <thread>
#include <vector>

#include "pipeline/rank_files.h"
#include "tests/io/faulty_os.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::FaultyOs;

constexpr uint32_t kUnits = 90;
constexpr uint64_t kUnit = 64 << 10;

class RankTurns : public testing::Test {
 protected:
  struct Died : std::runtime_error {
    Died() : std::runtime_error("died") {}
  };

  static std::vector<OutputUnit> Units() {
    std::vector<OutputUnit> units;
    for (uint64_t u = 0; u < kUnits; ++u)
      units.push_back({static_cast<uint32_t>(u / 30), u % 30 * kUnit, (u % 30 + 1) * kUnit});
    return units;
  }
  static uint32_t RankOf(uint32_t unit, uint32_t of) {
    const std::vector<UnitRun> runs = RunsOfRanks(Units(), of);
    return static_cast<uint32_t>(std::find_if(runs.begin(), runs.end(), [&](UnitRun run) { return unit < run.last; }) -
                                 runs.begin());
  }

  // The units it merged, each as often as it did. `before`: gets the units, and may throw.
  template <typename Before>
  std::vector<uint32_t> RunRank(uint32_t rank, uint32_t of, Before before) {
    std::vector<uint32_t> merged;
    const RankMarks marks(place_.path(), Units());
    try {
      MergeAndHelp(plan_, marks, {rank, of}, interrupt_, [&](const std::vector<uint32_t>& units) {
        before(units);
        WrittenUnits written;
        for (uint32_t u : units) written.units.push_back(marks.units()[u]), merged.push_back(u);
        marks.Mark(written);
      });
    } catch (const Died&) {
    }
    return merged;
  }
  static void Sleep(uint64_t microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

  std::vector<uint32_t> Missing() { return *RankMarks(place_.path(), Units()).Missing(); }
  void Clean() {
    for (const auto& entry : std::filesystem::directory_iterator(place_.path())) std::filesystem::remove(entry.path());
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
  const Plan plan_;
  const std::atomic<int> interrupt_{0};
};

// Ranks of any speed at once: every unit is merged once, and a slow one does not merge all of its own.
TEST_F(RankTurns, EveryUnitOnce) {
  uint32_t helped = 0;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const auto of = static_cast<uint32_t>(2 + random_.Below(4));
    std::vector<std::vector<uint32_t>> merged(of);
    std::vector<std::thread> ranks;
    for (uint32_t r = 0; r < of; ++r)
      ranks.emplace_back([&, r, pause = r == 0 ? 10'000 : random_.Below(300)] {
        merged[r] = RunRank(r, of, [&](const auto& units) { Sleep(pause * units.size()); });
      });
    for (std::thread& rank : ranks) rank.join();
    EXPECT_TRUE(Missing().empty());
    std::vector<uint32_t> all;
    for (const auto& units : merged) all.insert(all.end(), units.begin(), units.end());
    std::sort(all.begin(), all.end());
    ASSERT_EQ(all.size(), kUnits) << "of " << of;
    EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
    helped += merged[0].size() < RunsOfRanks(Units(), of)[0].last;
    Clean();
  }
  EXPECT_GT(helped, 5u);
}

TEST_F(RankTurns, NobodyIsHelpedWhoIsNotThere) {
  const auto at_once = [](const auto&) {};
  EXPECT_EQ(RunRank(1, 3, at_once).size(), kUnits / 3);
  EXPECT_EQ(RunRank(1, 3, at_once).size(), 0u);
  EXPECT_EQ(Missing().size(), kUnits - kUnits / 3);
  RunRank(2, 3, at_once), RunRank(0, 3, at_once);
  EXPECT_TRUE(Missing().empty());
}

// A rank that ends well has all of its run done, whoever dies while helping it. One that died is run again.
TEST_F(RankTurns, RanksThatDie) {
  std::atomic<int> died{0};
  for (int attempt = 0; attempt < 10; ++attempt) {
    std::vector<std::thread> ranks;
    for (uint32_t r = 0; r < 3; ++r)
      ranks.emplace_back([&, r] {
        RunRank(r, 3, [&](const auto& units) {
          Sleep(r == 0 ? 10'000 * units.size() : 10);
          if (r == 0 || RankOf(units.front(), 3) == r) return;
          ++died;
          throw Died();
        });
      });
    for (std::thread& rank : ranks) rank.join();
    EXPECT_TRUE(Missing().empty());
    Clean();
  }
  EXPECT_GT(died, 0);
  RunRank(0, 3, [&](const auto&) -> void { throw Died(); });
  EXPECT_EQ(Missing().size(), kUnits);
  EXPECT_EQ(RunRank(0, 3, [](const auto&) {}).size(), kUnits / 3);
}

TEST_F(RankTurns, WithoutLocks) {
  FaultyOs os;
  os.Fail(FaultyOs::kFlock, ENOLCK, 1);
  std::vector<std::vector<uint32_t>> merged(3);
  std::vector<std::thread> ranks;
  for (uint32_t r = 0; r < 3; ++r)
    ranks.emplace_back([&, r] { merged[r] = RunRank(r, 3, [&](const auto& units) { Sleep(r * 500 * units.size()); }); });
  for (std::thread& rank : ranks) rank.join();
  for (const auto& units : merged) EXPECT_EQ(units.size(), kUnits / 3);
  EXPECT_TRUE(Missing().empty());
}

TEST_F(RankTurns, GoneWhileAtIt) {
  const fixture::TemporaryDirectory gone;
  const std::string directory = gone / "ranks";
  std::filesystem::create_directory(directory);
  const RankMarks marks(directory, Units());
  EXPECT_THROW(MergeAndHelp(plan_, marks, {0, 2}, interrupt_,
                            [&](const auto&) { std::filesystem::remove_all(directory); }),
               RankFilesGone);
}

TEST_F(RankTurns, Interrupted) {
  std::atomic<int> interrupt{0};
  const RankMarks marks(place_.path(), Units());
  int parts = 0;
  EXPECT_THROW(MergeAndHelp(plan_, marks, {0, 1}, interrupt, [&](const auto&) { interrupt = ++parts == 3 ? 15 : 0; }),
               Error);
  EXPECT_EQ(parts, 3);
}

}  // namespace
}  // namespace braid
