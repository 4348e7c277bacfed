// Output files: whole whatever the order of writes, and honest about a system that fails.
#include "io/shard_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <random>

#include "io/error.h"
#include "tests/io/faulty_os.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::FaultyOs;

std::string TextOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string Pattern(size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i * 7 + i / 4099);
  return text;
}

class ShardWriterTest : public testing::Test {
 protected:
  fixture::TemporaryDirectory place_;
  const std::string path_ = place_ / "shard";
};

TEST_F(ShardWriterTest, PiecesInAnyOrder) {
  const std::string text = Pattern(3 * ShardWriter::kWindow + 12'345);
  constexpr size_t kPiece = 777'777;
  std::vector<size_t> pieces((text.size() + kPiece - 1) / kPiece);
  std::iota(pieces.begin(), pieces.end(), 0);
  for (int round = 0; round < 3; ++round) {
    std::shuffle(pieces.begin(), pieces.end(), std::mt19937(static_cast<unsigned>(round)));
    std::filesystem::remove(path_);
    ShardWriter writer(path_, text.size());
    EXPECT_EQ(std::filesystem::file_size(path_), text.size());
    for (size_t piece : pieces) {
      EXPECT_FALSE(writer.complete());
      const size_t at = piece * kPiece;
      writer.Write(at, text.data() + at, std::min(kPiece, text.size() - at));
    }
    EXPECT_TRUE(writer.complete());
    writer.Finish();
    EXPECT_TRUE(TextOf(path_) == text);
  }
}

TEST_F(ShardWriterTest, SizesAtTheEdges) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, ShardWriter::kWindow, ShardWriter::kWindow + 1}) {
    std::filesystem::remove(path_);
    const std::string text = Pattern(bytes);
    ShardWriter writer(path_, bytes);
    writer.Write(0, text.data(), bytes);
    EXPECT_TRUE(writer.complete());
    writer.Finish();
    EXPECT_TRUE(TextOf(path_) == text) << bytes;
  }
}

TEST_F(ShardWriterTest, NeverOverwrites) {
  place_.Write("shard", "precious");
  EXPECT_EQ(fixture::ErrorOf([&] { ShardWriter(path_, 4); }).code(), ErrorCode::kIo);
  EXPECT_EQ(fixture::ErrorOf([&] { WriteDurably(path_, "x"); }).code(), ErrorCode::kIo);
  EXPECT_EQ(fixture::ErrorOf([&] { CopyDurably(path_, path_); }).code(), ErrorCode::kIo);
  place_.Link(place_ / "elsewhere", "dangling");
  EXPECT_THROW(ShardWriter(place_ / "dangling", 4), Error);
  EXPECT_FALSE(std::filesystem::exists(place_ / "elsewhere"));
  EXPECT_EQ(TextOf(path_), "precious");
}

TEST_F(ShardWriterTest, SystemsThatFail) {
  const std::string text = Pattern(1000);
  const auto write = [&] {
    std::filesystem::remove(path_);
    ShardWriter writer(path_, text.size());
    writer.Write(0, text.data(), 500);
    writer.Write(500, text.data() + 500, 500);
    writer.Finish();
  };
  struct Case {
    FaultyOs::Call call;
    int error_number, nth;
  };
  for (const Case& c : {Case{FaultyOs::kFallocate, ENOSPC, 1}, Case{FaultyOs::kFallocate, EDQUOT, 1},
                        Case{FaultyOs::kPwrite, ENOSPC, 2}, Case{FaultyOs::kPwrite, EIO, 1},
                        Case{FaultyOs::kPwrite, EFBIG, 1}, Case{FaultyOs::kFsync, EIO, 1}}) {
    FaultyOs os;
    os.Fail(c.call, c.error_number, c.nth);
    const Error error = fixture::ErrorOf(write);
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_EQ(error.path(), path_);
  }
}

TEST_F(ShardWriterTest, ShortWritesAndNoFallocate) {
  const std::string text = Pattern(20'000);
  for (int error_number : {EOPNOTSUPP, ENOSYS, EINVAL}) {
    std::filesystem::remove(path_);
    FaultyOs os;
    os.Fail(FaultyOs::kFallocate, error_number, 1);
    os.shorten = [](size_t bytes) { return std::min<size_t>(bytes, 333); };
    ShardWriter writer(path_, text.size());
    writer.Write(0, text.data(), text.size());
    writer.Finish();
    EXPECT_TRUE(TextOf(path_) == text);
  }
}

TEST_F(ShardWriterTest, SmallFiles) {
  WriteDurably(place_ / "text", "hello\n");
  EXPECT_EQ(TextOf(place_ / "text"), "hello\n");
  const std::string large = Pattern((2 << 20) + 17);
  place_.Write("large", large);
  CopyDurably(place_ / "large", place_ / "copy");
  EXPECT_TRUE(TextOf(place_ / "copy") == large);
  place_.Write("empty", "");
  CopyDurably(place_ / "empty", place_ / "empty copy");
  EXPECT_TRUE(std::filesystem::exists(place_ / "empty copy"));
  EXPECT_THROW(CopyDurably(place_ / "nothing", place_ / "new"), Error);
  SyncDirectory(place_.path());
  EXPECT_THROW(SyncDirectory(place_ / "nothing"), Error);
}

}  // namespace
}  // namespace braid
