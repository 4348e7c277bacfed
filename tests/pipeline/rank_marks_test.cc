// The marks that ranks leave of what is done: they come back, and whatever somebody made of them is an error or sound.
#include "pipeline/rank_marks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "pipeline/rank_files.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr size_t kTensors = 40;

class RankMarksTest : public testing::Test {
 protected:
  static std::vector<OutputUnit> Units() {
    std::vector<OutputUnit> units;
    for (uint32_t shard = 0; shard < 3; ++shard)
      for (uint64_t u = 0; u < 7; ++u) units.push_back({shard, u << 16, (u + 1) << 16});
    return units;
  }

  // Some units of all, ascending, with the checksums of some tensors.
  WrittenUnits DrawWritten() {
    WrittenUnits written;
    const std::vector<OutputUnit> units = Units();
    for (size_t u = 0; u < units.size(); ++u)
      if (random_.Chance(0.5)) written.units.push_back(units[u]), drawn_.insert(static_cast<uint32_t>(u));
    if (written.units.empty()) written.units.push_back(units[0]), drawn_.insert(0);
    for (uint32_t t = 0; t < kTensors; ++t)
      if (random_.Chance(0.3)) written.sums.emplace_back(t, sums_[t] = {random_(), random_()});
    if (random_.Chance(0.3)) written.alpha = 1 + static_cast<double>(random_.Below(10));
    return written;
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
  std::set<uint32_t> drawn_;
  std::map<uint32_t, XXH128_hash_t> sums_;
};

TEST_F(RankMarksTest, ComeBack) {
  for (int i = 0; i < 50 && !HasFailure(); ++i) {
    const RankMarks marks(place_.path(), Units());
    drawn_.clear(), sums_.clear();
    EXPECT_EQ(marks.Missing()->size(), Units().size());
    const WrittenUnits written = DrawWritten();
    marks.Mark(written);
    const std::vector<uint32_t> missing = *marks.Missing();
    EXPECT_EQ(missing.size(), Units().size() - drawn_.size());
    for (uint32_t u : missing) EXPECT_FALSE(drawn_.contains(u)) << u;
    const RankMarks::Found found = marks.Read(kTensors);
    ASSERT_EQ(found.sums.size(), sums_.size());
    for (const auto& [tensor, sum] : sums_) EXPECT_TRUE(XXH128_isEqual(found.sums.at(tensor), sum)) << tensor;
    EXPECT_EQ(found.alpha, written.alpha);
    for (const auto& entry : fs::directory_iterator(place_.path())) fs::remove(entry.path());
  }
}

TEST_F(RankMarksTest, WhateverLiesThere) {
  int refused = 0;
  for (int i = 0; i < 100 && !HasFailure(); ++i) {
    const RankMarks marks(place_.path(), Units());
    marks.Mark(DrawWritten());
    for (const auto& entry : fs::directory_iterator(place_.path())) {
      std::string text = fixture::FileText(entry.path().string());
      if (random_.Chance(0.3)) text.resize(random_.Below(text.size()));
      else if (random_.Chance(0.3)) text.insert(random_.Below(text.size()), 1, "[]{},:\"-.e0"[random_.Below(11)]);
      else text[random_.Below(text.size())] = static_cast<char>(random_.Below(256));
      place_.Write(entry.path().filename().string(), text);
    }
    place_.Write("units-" + std::to_string(random_.Below(30)) + "-" + std::to_string(random_.Below(30)), "{}");
    EXPECT_TRUE(marks.Missing());
    try {
      const RankMarks::Found found = marks.Read(kTensors);
      EXPECT_TRUE(found.sums.empty() || found.sums.rbegin()->first < kTensors);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
      EXPECT_NE(error.path(), "");
      ++refused;
    }
    for (const auto& entry : fs::directory_iterator(place_.path())) fs::remove(entry.path());
  }
  EXPECT_GT(refused, 60);
}

// A mark is as long as its tensors make it, so nothing longer is read.
TEST_F(RankMarksTest, OneThatIsTooLong) {
  place_.Write("units-0-1", "{\"sums\":[" + std::string(1 << 20, ' ') + "]}");
  EXPECT_EQ(fixture::ErrorOf([&] { RankMarks(place_.path(), Units()).Read(kTensors); }).code(), ErrorCode::kBadInput);
}

// Whatever was marked, nothing of a shard that is gone is; what is of no such shard, and was not marked with one, stays.
TEST_F(RankMarksTest, ShardsThatAreGone) {
  int forgotten = 0;
  for (int i = 0; i < 50 && !HasFailure(); ++i) {
    const RankMarks marks(place_ / "marks", Units());
    fs::create_directory(marks.directory());
    drawn_.clear();
    const int drawn = 1 + static_cast<int>(random_.Below(3));
    for (int j = 0; j < drawn; ++j) marks.Mark(DrawWritten());
    std::vector<std::string> paths;
    std::vector<bool> there;
    for (int s = 0; s < 3; ++s) {
      paths.push_back(place_ / ("shard-" + std::to_string(s)));
      there.push_back(random_.Chance(0.6));
      if (there.back()) place_.Write("shard-" + std::to_string(s), "");
      else fs::remove(paths.back());
    }
    const std::vector<uint32_t> before = *marks.Missing(), gone = marks.ForgetGone(paths), after = *marks.Missing();
    std::set<uint32_t> expected;
    for (uint32_t u : drawn_)
      if (!there[Units()[u].shard]) expected.insert(Units()[u].shard);
    EXPECT_EQ(std::set<uint32_t>(gone.begin(), gone.end()), expected);
    EXPECT_TRUE(std::includes(after.begin(), after.end(), before.begin(), before.end()));
    for (uint32_t u : drawn_) {
      EXPECT_TRUE(there[Units()[u].shard] || std::binary_search(after.begin(), after.end(), u)) << u;
    }
    EXPECT_TRUE(!gone.empty() || before == after);
    forgotten += !gone.empty();
    EXPECT_TRUE(marks.ForgetGone(paths).empty());
    fs::remove_all(marks.directory());
  }
  EXPECT_GT(forgotten, 10);
  EXPECT_THROW(RankMarks(place_ / "gone", Units()).ForgetGone({"a", "b", "c"}), RankFilesGone);
}

TEST_F(RankMarksTest, NoDirectory) {
  EXPECT_FALSE(RankMarks(place_ / "gone", Units()).Missing());
}

}  // namespace
}  // namespace braid
