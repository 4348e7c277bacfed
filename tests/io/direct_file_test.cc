// Reads past the page cache: whole blocks around any range, file systems that refuse, and files that change.
#include "io/direct_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "io/error.h"
#include "tests/io/faulty_reads.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::FaultyReads;

constexpr size_t kBlock = DirectFile::kBlock;
constexpr size_t kSize = 100'003;  // 24 blocks and a bit

class DirectFileTest : public testing::Test {
 protected:
  DirectFileTest() : memory_(static_cast<std::byte*>(std::aligned_alloc(kBlock, 32 * kBlock)), &std::free) {
    for (size_t i = 0; i < kSize; ++i) bytes_ += static_cast<char>(i * 131 + i / 251);
    path_ = place_.Write("file.bin", bytes_);
  }
  FileIdentity Identity() const {
    struct stat status;
    EXPECT_EQ(::stat(path_.c_str(), &status), 0);
    return IdentityOf(status);
  }
  // Reads whole blocks from `block` on, of which `needed` bytes matter, and compares these.
  void ExpectRead(DirectFile& file, size_t block, size_t blocks, size_t needed) {
    std::memset(memory_.get(), 0x5a, 32 * kBlock);
    file.Read(block * kBlock, blocks * kBlock, needed, memory_.get());
    EXPECT_EQ(std::memcmp(memory_.get(), bytes_.data() + block * kBlock, needed), 0) << block << " " << blocks;
    for (size_t i = blocks * kBlock; i < 32 * kBlock; ++i) ASSERT_EQ(memory_.get()[i], std::byte{0x5a}) << i;
  }
  void ExpectAllRanges(DirectFile& file) {
    for (size_t block : {0, 1, 7, 23, 24})
      for (size_t blocks : {1, 2, 8, 24, 25}) {
        const size_t end = std::min(kSize, (block + blocks) * kBlock), begin = block * kBlock;
        if (begin + (blocks - 1) * kBlock >= kSize) continue;
        ExpectRead(file, block, blocks, end - begin);
        ExpectRead(file, block, blocks, 1);
      }
  }
  Error ReadError(DirectFile& file, size_t block, size_t needed) {
    return fixture::ErrorOf([&] { file.Read(block * kBlock, 8 * kBlock, needed, memory_.get()); });
  }

  fixture::TemporaryDirectory place_;
  std::unique_ptr<std::byte, decltype(&std::free)> memory_;
  std::string bytes_, path_;
};

TEST_F(DirectFileTest, WholeBlocksAndTheEndOfTheFile) {
  FaultyReads os;
  DirectFile file(path_, Identity());
  EXPECT_EQ(file.size(), kSize);
  const bool direct = file.direct();
  if (!direct) std::printf("this file system refuses O_DIRECT: read plainly\n");
  ExpectAllRanges(file);
  EXPECT_EQ(file.direct(), direct);
  EXPECT_EQ(os.direct_reads() == os.reads(), direct);
}

TEST_F(DirectFileTest, AFileSystemThatRefusesWhenOpening) {
  FaultyReads os;
  os.refuse_direct_open = true;
  DirectFile file(path_, Identity());
  EXPECT_FALSE(file.direct());
  ExpectAllRanges(file);
  EXPECT_EQ(os.direct_reads(), 0);
}

TEST_F(DirectFileTest, AFileSystemThatRefusesWhenReading) {
  FaultyReads os;
  os.refuse_direct_read = true;
  DirectFile file(path_, Identity());
  if (!file.direct()) GTEST_SKIP() << "no O_DIRECT here";
  ExpectAllRanges(file);
  EXPECT_FALSE(file.direct());
  EXPECT_EQ(os.direct_reads(), 1);
}

TEST_F(DirectFileTest, ReadsThatStopShort) {
  for (size_t most : {1, 511, 512, 4095, 4096, 4097, 20'000}) {
    SCOPED_TRACE(most);
    FaultyReads os;
    os.shorten_read = [&](size_t bytes) { return std::min(bytes, most); };
    DirectFile file(path_, Identity());
    ExpectRead(file, 3, 8, 8 * kBlock);
    ExpectRead(file, 20, 5, kSize - 20 * kBlock);
    EXPECT_FALSE(file.direct());
  }
}

TEST_F(DirectFileTest, ADiskThatCannotRead) {
  for (bool refuse : {false, true}) {
    FaultyReads os;
    os.refuse_direct_open = refuse;
    os.fail_from = 2;
    DirectFile file(path_, Identity());
    ExpectRead(file, 0, 1, kBlock);
    const Error error = ReadError(file, 0, 5);
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_EQ(error.path(), path_);
  }
}

// EINVAL that has nothing to do with O_DIRECT is an error, not a reason to try for ever.
TEST_F(DirectFileTest, AReadThatIsInvalidEitherWay) {
  FaultyReads os;
  os.fail_from = 1, os.error_number = EINVAL;
  DirectFile file(path_, Identity());
  EXPECT_EQ(ReadError(file, 0, 5).code(), ErrorCode::kIo);
  EXPECT_LE(os.reads(), 2);
}

TEST_F(DirectFileTest, AFileThatShrinks) {
  for (off_t left : {0, 4096, 8192, 9000}) {
    SCOPED_TRACE(left);
    place_.Write("file.bin", bytes_);
    DirectFile file(path_, Identity());
    ASSERT_EQ(::truncate(path_.c_str(), left), 0);
    if (left > 0) ExpectRead(file, 0, 8, static_cast<size_t>(left));
    for (const Error& error : {ReadError(file, 0, static_cast<size_t>(left) + 1), ReadError(file, 8, 1),
                               fixture::ErrorOf([&] { file.CheckUnchanged(); })}) {
      EXPECT_EQ(error.code(), ErrorCode::kInputChanged);
      EXPECT_EQ(error.path(), path_);
      EXPECT_NE(std::string(error.what()).find("shrank"), std::string::npos) << error.what();
    }
  }
}

TEST_F(DirectFileTest, AnotherFileThanExpected) {
  const FileIdentity identity = Identity();
  place_.Write("file.bin", bytes_ + "more");
  EXPECT_EQ(fixture::ErrorOf([&] { DirectFile(path_, identity); }).code(), ErrorCode::kInputChanged);
  std::filesystem::remove(path_);
  EXPECT_THROW(DirectFile(path_, identity), Error);
}

TEST_F(DirectFileTest, ADirectoryIsRefused) {
  EXPECT_EQ(fixture::ErrorOf([&] { DirectFile(place_.path(), {}); }).code(), ErrorCode::kBadInput);
}

}  // namespace
}  // namespace braid
