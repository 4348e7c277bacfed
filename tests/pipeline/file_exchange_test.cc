// Ranks that take statistics together by files: every rank has all of them in the end, whatever lies in the directory.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "pipeline/exchange.h"
#include "pipeline/rank_files.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// Has a number of each unit.
class UnitCounter : public Counter {
 public:
  explicit UnitCounter(uint32_t units) : numbers_(units) {}
  static uint64_t NumberOf(uint32_t unit) { return (unit + 1) * 0x9e3779b97f4a7c15; }

  bool Count(UnitRun part) override {
    for (uint32_t u = part.first; u < part.last; ++u) numbers_[u] += NumberOf(u);
    return true;
  }
  void Save(UnitRun part, const Put& put) override {
    for (uint32_t u = part.first; u < part.last; ++u) put(&numbers_[u], sizeof(uint64_t));
  }
  void Load(UnitRun part, const Get& get) override {
    for (uint32_t u = part.first; u < part.last; ++u) {
      uint64_t number = 0;
      get(&number, sizeof number);
      numbers_[u] += number;
    }
  }
  void Clear() override { std::fill(numbers_.begin(), numbers_.end(), 0); }
  bool failed() const override { return false; }
  const std::vector<uint64_t>& numbers() const { return numbers_; }

 private:
  std::vector<uint64_t> numbers_;
};

class FileExchangeTest : public testing::Test {
 protected:
  // Some way to cut all units into runs, in order; of some ranks they are empty.
  std::vector<UnitRun> DrawRuns(uint32_t units, size_t ranks) {
    std::vector<uint32_t> cuts = {0, units};
    while (cuts.size() <= ranks) cuts.push_back(static_cast<uint32_t>(random_.Below(units + 1)));
    std::sort(cuts.begin(), cuts.end());
    std::vector<UnitRun> runs;
    for (size_t i = 0; i < ranks; ++i) runs.push_back({cuts[i], cuts[i + 1]});
    return runs;
  }

  void ExpectAll(const SharedRound& round, const std::vector<UnitRun>& runs, uint32_t units) {
    std::vector<uint64_t> expected(units);
    for (uint32_t u = round.units.first; u < round.units.last; ++u) expected[u] = UnitCounter::NumberOf(u);
    const fixture::Watchdog watchdog;
    std::vector<std::jthread> ranks;
    for (uint32_t r = 0; r < runs.size(); ++r)
      ranks.emplace_back([&, r] {
        UnitCounter counter(units);
        EXPECT_TRUE(NewFileExchange(place_.path(), runs, r)->Take(round, &counter));
        EXPECT_EQ(counter.numbers(), expected) << "rank " << r;
      });
  }

  std::string AnyName(uint32_t units) {
    const std::string prefix = random_.OneOf<const char*>(
        {"part-0-0-counts-", "part-0-0-counts-", "part-0-0-claims-", "part-0-", "part-", "units-", ""});
    const auto number = [&] {
      return std::string(random_.Chance(0.1) ? 1 : 0, '0') + std::to_string(random_.Below(units + 2));
    };
    return prefix + number() + random_.OneOf<const char*>({"-", "-", "-", "", "--", "-x"}) + number() +
           random_.OneOf<const char*>({"", "", "", ".claim", "~", "-1"});
  }

  // Parts lose their ends, or bits of them change; files come that nobody wrote as a part.
  void Spoil(uint32_t units) {
    for (const auto& entry : fs::directory_iterator(place_.path())) {
      std::string bytes = fixture::FileText(entry.path().string());
      if (bytes.empty() || random_.Chance(0.5)) continue;
      if (random_.Chance(0.5)) bytes.resize(random_.Below(bytes.size()));
      else bytes[random_.Below(bytes.size())] ^= static_cast<char>(1 << random_.Below(8));
      place_.Write(entry.path().filename().string(), bytes);
    }
    for (size_t i = random_.Below(6); i > 0; --i)
      place_.Write(AnyName(units), std::string(random_.Below(200), static_cast<char>(random_.Below(256))));
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
};

TEST_F(FileExchangeTest, EveryRankHasEverythingWhateverLiesThere) {
  for (int i = 0; i < 200 && !HasFailure(); ++i) {
    SCOPED_TRACE(i);
    const auto units = static_cast<uint32_t>(1 + random_.Below(12));
    const UnitRun some = DrawRuns(units, 2)[random_.Below(2)];
    const SharedRound round{.scope = 0, .round = 0, .claims = random_.Chance(0.3),
                            .units = some.first < some.last ? some : UnitRun{0, units}};
    ExpectAll(round, DrawRuns(units, 1 + random_.Below(4)), units);
    Spoil(units);
    ExpectAll(round, DrawRuns(units, 1 + random_.Below(4)), units);   // parts of other ranks, as far as they are sound
    for (const auto& entry : fs::directory_iterator(place_.path())) fs::remove(entry.path());
  }
}

TEST_F(FileExchangeTest, SoundPartsAreNotCountedAgain) {
  const SharedRound round{.scope = 3, .round = 1, .units = {0, 9}};
  ExpectAll(round, {{0, 4}, {4, 9}}, 9);
  class Idle : public UnitCounter {
   public:
    using UnitCounter::UnitCounter;
    bool Count(UnitRun) override { return false; }
  } idle(9);
  EXPECT_TRUE(NewFileExchange(place_.path(), {{0, 9}}, 0)->Take(round, &idle));
  EXPECT_EQ(idle.numbers()[8], UnitCounter::NumberOf(8));
}

TEST(ParseRun, OnlyTwoNumbersInOrder) {
  for (const char* text : {"", "-", "1", "1-", "-1", "1-1", "2-1", "1-2x", "x1-2", "1--2", "+1-2", " 1-2", "1-2 ",
                           "1 -2", "4294967296-4294967297", "0-4294967296", "1-2-3", "0x1-2", "1.0-2", "01-2", "1-02"})
    EXPECT_FALSE(ParseRun(text)) << text;
  EXPECT_FALSE(ParseRun(std::string_view("1-2\0", 4)));
  const auto run = ParseRun("12-4294967295");
  ASSERT_TRUE(run);
  EXPECT_EQ(run->first, 12u);
  EXPECT_EQ(run->last, 4294967295u);
}

}  // namespace
}  // namespace braid
