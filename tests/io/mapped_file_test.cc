// Windows of a mapped file: their bytes at any offset, and a file that changes behind them.
#include "io/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "io/error.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() {
    for (size_t i = 0; i < 100'003; ++i) bytes_ += static_cast<char>(i * 131 + i / 251);
    path_ = place_.Write("file.bin", bytes_);
  }
  FileIdentity Identity() const {
    struct stat status;
    EXPECT_EQ(::stat(path_.c_str(), &status), 0);
    return IdentityOf(status);
  }
  void ExpectBytes(const MappedWindow& window, size_t offset, size_t bytes) const {
    ASSERT_EQ(window.size(), bytes);
    EXPECT_EQ(std::memcmp(window.data(), bytes_.data() + offset, bytes), 0) << offset;
  }

  fixture::TemporaryDirectory place_;
  std::string bytes_, path_;
};

TEST_F(MappedFileTest, WindowsAtAnyOffset) {
  const MappedFile file(path_, Identity());
  EXPECT_EQ(file.size(), bytes_.size());
  EXPECT_EQ(file.path(), path_);
  for (size_t offset : {0, 1, 7, 4095, 4096, 4097, 65'537, 100'002})
    for (size_t bytes : {1, 2, 4095, 4096, 4097, 30'001}) {
      if (offset + bytes > bytes_.size()) continue;
      const MappedWindow window = file.Map(offset, bytes);
      window.Touch();
      ExpectBytes(window, offset, bytes);
    }
  ExpectBytes(file.Map(0, bytes_.size()), 0, bytes_.size());
}

// Which map more than they show.
TEST_F(MappedFileTest, LargeWindows) {
  std::string text(21'000'123, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 + (i >> 12));
  const std::string path = place_.Write("large", text);
  FileIdentity identity;
  OpenForReading(path, &identity);
  const MappedFile file(path, identity);
  for (uint64_t offset : {0, 1, 2'097'151, 2'097'152, 5'000'000})
    for (uint64_t bytes : {8'388'607, 8'388'608, 12'582'913}) {
      const MappedWindow window = file.Map(offset, bytes);
      window.Touch(offset % 2 == 0);
      ASSERT_EQ(window.size(), bytes);
      EXPECT_EQ(std::memcmp(window.data(), text.data() + offset, bytes), 0) << offset << " " << bytes;
      EXPECT_LE(bytes, MappedFile::ResidentBytes(bytes));
    }
  const uint64_t last = text.size() - 9'000'000;
  EXPECT_EQ(std::memcmp(file.Map(last, 9'000'000).data(), text.data() + last, 9'000'000), 0);
}

TEST_F(MappedFileTest, AnEmptyWindow) {
  const MappedFile file(path_, Identity());
  const MappedWindow window = file.Map(123, 0);
  EXPECT_EQ(window.size(), 0u);
  window.Touch();
}

TEST_F(MappedFileTest, WindowsMoveAndOverlap) {
  const MappedFile file(path_, Identity());
  MappedWindow first = file.Map(100, 9000), second = file.Map(5000, 9000);
  MappedWindow moved = std::move(first);
  ExpectBytes(moved, 100, 9000);
  first = std::move(second);
  moved = MappedWindow();
  ExpectBytes(first, 5000, 9000);
}

TEST_F(MappedFileTest, EvictedBytesComeBack) {
  const MappedFile file(path_, Identity());
  const MappedWindow before = file.Map(10, 50'000);
  before.Touch();
  file.Evict(0, MappedFile::kEvictWindow);
  ExpectBytes(before, 10, 50'000);
  ExpectBytes(file.Map(20, 50'000), 20, 50'000);
  const double share = file.CachedShare();
  EXPECT_GE(share, 0);
  EXPECT_LE(share, 1);
}

TEST_F(MappedFileTest, AFileJustReadIsCached) {
  const MappedFile file(path_, Identity());
  file.Map(0, bytes_.size()).Touch();
  EXPECT_GT(file.CachedShare(), 0.9);
}

TEST_F(MappedFileTest, AnotherFileThanExpected) {
  const FileIdentity identity = Identity();
  place_.Write("file.bin", bytes_ + "more");
  const Error error = fixture::ErrorOf([&] { MappedFile(path_, identity); });
  EXPECT_EQ(error.code(), ErrorCode::kInputChanged);
  EXPECT_EQ(error.path(), path_);
  std::filesystem::remove(path_);
  EXPECT_THROW(MappedFile(path_, identity), Error);
}

TEST_F(MappedFileTest, ChangesAreNoticed) {
  const MappedFile file(path_, Identity());
  file.CheckUnchanged();
  {
    std::ofstream append(path_, std::ios::app);
    append << "x";
  }
  EXPECT_EQ(fixture::ErrorOf([&] { file.CheckUnchanged(); }).code(), ErrorCode::kInputChanged);
}

TEST_F(MappedFileTest, AFileReplacedUnderItsNameStaysTheOneThatWasOpened) {
  const MappedFile file(path_, Identity());
  std::filesystem::rename(place_.Write("other.bin", "other"), path_);
  file.CheckUnchanged();
  ExpectBytes(file.Map(3, 70'000), 3, 70'000);
}

// In a process of its own: what the guard has seen stays with a process.
TEST_F(MappedFileTest, ShrinkingUnderAWindow) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto shrink = [&] {
    const MappedFile file(path_, Identity());
    const MappedWindow window = file.Map(1, bytes_.size() - 1), intact = file.Map(0, 4096);
    CheckGuard();
    if (::truncate(path_.c_str(), 8192) != 0) std::_Exit(9);
    window.Touch();  // would be SIGBUS
    ExpectBytes(intact, 0, 4096);
    if (window.data()[90'000] != std::byte{0} || HasFailure()) std::_Exit(8);
    const Error guard = fixture::ErrorOf([] { CheckGuard(); });
    const Error size = fixture::ErrorOf([&] { file.CheckUnchanged(); });
    for (const Error& error : {guard, size}) {
      std::fprintf(stderr, "%s\n", error.what());
      if (error.code() != ErrorCode::kInputChanged || error.path() != path_) std::_Exit(7);
    }
    std::_Exit(0);
  };
  EXPECT_EXIT(shrink(), testing::ExitedWithCode(0), "shrank");
}

// A SIGBUS that is not ours must end the process, not be swallowed.
TEST_F(MappedFileTest, OtherFaultsStayFatal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto fault = [&] {
    const MappedFile file(path_, Identity());
    const MappedWindow window = file.Map(0, 4096);
    raise(SIGBUS);
    raise(SIGBUS);
    std::_Exit(0);
  };
  EXPECT_EXIT(fault(), testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace braid
