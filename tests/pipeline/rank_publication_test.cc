// Ranks that come while another one publishes: nothing is left to do for them, and they say so.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

// Runs something of the test's after each call that changes or opens a name.
class Interposed : public Os {
 public:
  explicit Interposed(std::function<void()> after) : after_(std::move(after)) { SetOsForTesting(this); }
  ~Interposed() override { SetOsForTesting(nullptr); }
  Interposed(const Interposed&) = delete;

  int Rename(const char* from, const char* to, unsigned flags) override { return After(Os::Rename(from, to, flags)); }
  int Unlink(const char* path) override { return After(Os::Unlink(path)); }
  int Rmdir(const char* path) override { return After(Os::Rmdir(path)); }
  int Mkdir(const char* path, mode_t mode) override { return After(Os::Mkdir(path, mode)); }
  int Flock(int fd, int operation) override { return After(Os::Flock(fd, operation)); }
  int Open(const char* path, int flags, mode_t mode) override { return After(Os::Open(path, flags, mode)); }

 private:
  int After(int result) const {
    const int error = errno;
    after_();
    errno = error;
    return result;
  }

  const std::function<void()> after_;
};

class RankPublication : public testing::TestWithParam<const char*> {   // the name of OUT
 protected:
  void SetUp() override {
    std::vector<fixture::StoredTensor> base, tuned;
    for (int t = 0; t < 4; ++t) {
      const std::string name = fmt::format("t{}", t);
      base.push_back(fixture::Constant(name, DType::kF32, 70'000, t));
      tuned.push_back(fixture::Constant(name, DType::kF32, 70'000, t + 1));
    }
    place_.Write("recipe.toml",
                 fmt::format("method = 'task_arithmetic'\nbase = '{}'\n[[models]]\npath = '{}'\nweight = 0.5\n",
                             fixture::WriteCheckpoint(place_, "base", base),
                             fixture::WriteCheckpoint(place_, "tuned", tuned)));
    whole_ = fixture::MergedFiles(place_ / "recipe.toml", out_);
  }

  MergeReport RunRank(uint32_t rank, uint32_t of) {
    const std::atomic<int> interrupt{0};
    Progress progress;
    PlanOptions plan;
    plan.threads = 2, plan.memory = 64 * fixture::kMiB;
    const MergeOptions options{.out = out_, .plan = plan, .quiet = true, .rank = RankOptions{rank, of}};
    return RunMerge(place_ / "recipe.toml", options, interrupt, &progress);
  }

  // Of a rank that must end well, and has nothing to tell of shards that are gone.
  bool Published(uint32_t rank, uint32_t of) {
    try {
      const MergeReport report = RunRank(rank, of);
      for (const std::string& warning : report.warnings) EXPECT_EQ(warning.find("gone"), std::string::npos) << warning;
      return report.rank->published;
    } catch (const Error& error) {
      ADD_FAILURE() << "rank " << rank << ": " << error.what();
      return false;
    }
  }

  static void Sleep(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

  void ExpectPublished() {
    fixture::ExpectSameFiles(whole_, fixture::FilesOf(out_));
    EXPECT_FALSE(std::filesystem::exists(out_ + ".partial"));
    std::filesystem::remove_all(out_);
    std::filesystem::remove_all(out_ + ".partial");
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
  const std::string out_ = place_ / GetParam();
  std::map<std::string, std::string> whole_;
};

// One rank stops somewhere; another one publishes, and stops somewhere; the first one goes on.
TEST_P(RankPublication, OneThatComesMeanwhile) {
  const fixture::Watchdog watchdog;
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    EXPECT_FALSE(RunRank(0, 2).rank->complete);
    const uint64_t stop_late = random_.Below(50), stop_publisher = random_.Below(60);
    uint64_t late_calls = 0, calls = 0;
    std::atomic<bool> late_stopped{false}, go_on{false};
    const std::thread::id publisher = std::this_thread::get_id();
    std::atomic<std::thread::id> late;
    Interposed os([&] {
      if (std::this_thread::get_id() == publisher && calls++ == stop_publisher) go_on = true, Sleep(10);
      if (std::this_thread::get_id() != late.load() || late_calls++ != stop_late) return;
      late_stopped = true;
      for (int ms = 0; ms < 60 && !go_on; ++ms) Sleep(1);   // it may have what the other one waits for
    });
    int published = 0;
    std::thread other([&] {
      late = std::this_thread::get_id();
      published += Published(0, 2);
      late_stopped = true;
    });
    while (!late_stopped) Sleep(1);
    const int by_us = Published(1, 2);
    go_on = true;
    other.join();
    EXPECT_EQ(published + by_us, 1) << "stops at calls " << stop_late << ", " << stop_publisher;
    ExpectPublished();
  }
}

TEST_P(RankPublication, ManyAtOnceWithPauses) {
  const fixture::Watchdog watchdog;
  std::mutex mutex;
  Interposed os([&] {
    uint64_t pause;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      pause = random_.Chance(0.2) ? random_.Below(5000) : 0;
    }
    if (pause > 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
  });
  for (int i = 0; i < 10 && !HasFailure(); ++i) {
    std::vector<std::thread> ranks;
    std::atomic<int> published{0};
    for (uint32_t rank = 0; rank < 5; ++rank)
      ranks.emplace_back([&, rank] { published += Published(rank, 5); });
    for (std::thread& rank : ranks) rank.join();
    EXPECT_EQ(published, 1);
    ExpectPublished();
  }
}

// One that dies while it removes what is not needed any more.
TEST_P(RankPublication, WhatADeadPublisherLeaves) {
  const fixture::Watchdog watchdog;
  EXPECT_FALSE(RunRank(0, 2).rank->complete);
  const std::string shared = std::filesystem::directory_iterator(out_ + ".partial")->path().string();
  const auto leave = [&](const std::string& left) {
    std::filesystem::create_directories(left);
    std::filesystem::copy_file(place_ / "recipe.toml", left + "/units-0-1");
  };
  EXPECT_TRUE(RunRank(1, 2).rank->published);
  leave(shared + ".removed");
  EXPECT_TRUE(RunRank(0, 2).rank->complete);   // comes again
  ExpectPublished();

  leave(shared + ".removed");
  leave(out_ + ".partial/ranks-0123456789abcdef0123456789abcdef.removed");   // of another merge
  EXPECT_FALSE(RunRank(0, 2).rank->complete);
  EXPECT_TRUE(RunRank(1, 2).rank->published);
  ExpectPublished();
}

INSTANTIATE_TEST_SUITE_P(Outputs, RankPublication, testing::Values("out", "out.safetensors", "out.safetensors.zst"));

}  // namespace
}  // namespace braid
