// Buffers for direct reads: used again, and never more of them than the budget allows.
#include "pipeline/read_buffers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "io/error.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

constexpr size_t kPage = 4096;

class ReadBuffersTest : public testing::Test {
 protected:
  ReadBuffer Take(size_t size) {
    EXPECT_TRUE(budget_.Take(size));
    return buffers_.Take(size);
  }

  Budget budget_{100 * kPage};
  ReadBuffers buffers_{&budget_};
};

TEST_F(ReadBuffersTest, AreAlignedAndApart) {
  const size_t sizes[] = {kPage, 3 * kPage, kPage};
  std::vector<ReadBuffer> taken;
  for (size_t size : sizes) taken.push_back(Take(size));
  EXPECT_EQ(Take(0).data(), nullptr);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(taken[i].size(), sizes[i]);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(taken[i].data()) % kPage, 0u);
    std::memset(taken[i].data(), static_cast<int>(i), sizes[i]);
  }
  for (size_t i = 0; i < 3; ++i)
    for (size_t at = 0; at < sizes[i]; ++at) ASSERT_EQ(taken[i].data()[at], static_cast<std::byte>(i));
  EXPECT_EQ(budget_.Free(), 95 * kPage);
  taken.clear();
  EXPECT_EQ(budget_.Free(), 100 * kPage);
}

TEST_F(ReadBuffersTest, AreUsedAgain) {
  std::byte* first = nullptr;
  for (int i = 0; i < 10; ++i) {
    const ReadBuffer taken = Take(8 * kPage);
    if (i == 0) first = taken.data();
    EXPECT_EQ(taken.data(), first);
    EXPECT_EQ(buffers_.IdleBytes(), 0u);
  }
  EXPECT_EQ(buffers_.IdleBytes(), 8 * kPage);
}

TEST_F(ReadBuffersTest, MakeRoomForOtherSizes) {
  { const ReadBuffer a = Take(30 * kPage), b = Take(30 * kPage), c = Take(30 * kPage); }
  EXPECT_EQ(buffers_.IdleBytes(), 90 * kPage);
  const ReadBuffer taken = Take(5 * kPage);
  EXPECT_EQ(buffers_.IdleBytes(), 90 * kPage);  // 95 of them are free
  const ReadBuffer more = Take(6 * kPage);
  EXPECT_EQ(buffers_.IdleBytes(), 60 * kPage);
}

TEST_F(ReadBuffersTest, MakeRoomForWhateverElseTheBudgetLends) {
  { const ReadBuffer a = Take(30 * kPage), b = Take(30 * kPage), c = Take(30 * kPage); }
  EXPECT_TRUE(budget_.Take(65 * kPage));
  Take(kPage);
  EXPECT_LE(buffers_.IdleBytes(), 35 * kPage);
}

TEST_F(ReadBuffersTest, AreWaitedFor) {
  std::optional<ReadBuffer> a = Take(30 * kPage), b = Take(30 * kPage);
  EXPECT_TRUE(buffers_.WaitForReturns(60 * kPage));
  std::atomic<bool> given{false};
  std::thread giver([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    given = true;
    a.reset();
  });
  EXPECT_TRUE(buffers_.WaitForReturns(30 * kPage));   // idle ones do not count
  EXPECT_TRUE(given);
  giver.join();
  std::thread canceller([&] { buffers_.Cancel(); });
  EXPECT_FALSE(buffers_.WaitForReturns(29 * kPage));
  canceller.join();
}

// Whatever is taken and given in whatever order on several threads: used and idle together stay within the budget.
TEST_F(ReadBuffersTest, StayWithinTheBudget) {
  test::Random random;
  std::mutex mutex;
  std::deque<ReadBuffer> held;
  std::atomic<bool> done{false};
  std::vector<std::thread> givers;
  for (int t = 0; t < 2; ++t)
    givers.emplace_back([&] {
      while (true) {
        std::optional<ReadBuffer> given;
        {
          std::lock_guard lock(mutex);
          if (held.empty() && done) return;
          if (!held.empty()) given = std::move(held.front()), held.pop_front();
        }
        if (!given) std::this_thread::yield();
      }
    });
  for (int i = 0; i < 3000; ++i) {
    ReadBuffer taken = Take(kPage * random.OneOf<size_t>({1, 2, 5, 9, 9, 9, 24, 60}));
    taken.data()[taken.size() - 1] = std::byte{1};
    // Idle first: what is given back meanwhile only adds to the free bytes.
    const size_t idle = buffers_.IdleBytes();
    EXPECT_LE(idle, budget_.Free());
    std::lock_guard lock(mutex);
    held.push_back(std::move(taken));
  }
  done = true;
  for (std::thread& giver : givers) giver.join();
  EXPECT_EQ(budget_.Free(), 100 * kPage);
  EXPECT_LE(buffers_.IdleBytes(), 100 * kPage);
}

}  // namespace
}  // namespace braid
