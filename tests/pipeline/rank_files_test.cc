// Files of ranks that several processes begin at the same time: each of them gets its own to the end.
#include "pipeline/rank_files.h"

#include <gtest/gtest.h>
#include <sys/file.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

// Runs something of the test's before a file is locked, or opened.
class Interposed : public Os {
 public:
  Interposed() { SetOsForTesting(this); }
  ~Interposed() override { SetOsForTesting(nullptr); }
  Interposed(const Interposed&) = delete;

  std::function<void()> before_lock, before_open_to_read;

  int Flock(int fd, int operation) override {
    if (const auto once = std::exchange(before_lock, nullptr)) once();
    return Os::Flock(fd, operation);
  }
  int Open(const char* path, int flags, mode_t mode) override {
    if ((flags & O_ACCMODE) == O_RDONLY && (flags & O_DIRECTORY) == 0)
      if (const auto once = std::exchange(before_open_to_read, nullptr)) once();
    return Os::Open(path, flags, mode);
  }
};

class RankStreamTest : public testing::Test {
 protected:
  std::unique_ptr<ByteStream> NewStream() { return NewRankStream(path_, &written_); }
  void Finish(ByteStream* stream, const std::string& text) {
    stream->Write(text.data(), text.size());
    stream->Finish();
    EXPECT_EQ(fixture::FileText(path_), text);
  }

  fixture::TemporaryDirectory place_;
  const std::string path_ = place_ / "shard";
  std::atomic<uint64_t> written_{0};
};

TEST_F(RankStreamTest, OneThatBeginsRemovesNoneThatLives) {
  const auto first = NewStream(), second = NewStream();
  Finish(first.get(), "first");
  Finish(second.get(), "second");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(place_.path()), {}), 1);
}

// Between its making and its lock a file looks like one of a process that died.
TEST_F(RankStreamTest, NorOneThatIsNotLockedYet) {
  Interposed os;
  std::unique_ptr<ByteStream> other;
  os.before_lock = [&] { other = NewStream(); };
  Finish(NewStream().get(), "first");
  ASSERT_NE(other, nullptr);
  Finish(other.get(), "second");
  other.reset();
  os.before_open_to_read = [&] { other = NewStream(); };
  Finish(NewStream().get(), "first");
  ASSERT_NE(other, nullptr);
  Finish(other.get(), "second");
}

TEST_F(RankStreamTest, WithoutLocks) {
  class NoLocks : public Interposed {
   public:
    int Flock(int, int) override { return errno = ENOLCK, -1; }
  } os;
  const auto first = NewStream(), second = NewStream();
  Finish(first.get(), "first");
  Finish(second.get(), "second");
}

}  // namespace
}  // namespace braid
