// Output files: whole whatever the order of writes, and honest about a system that fails.
#include "io/shard_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <thread>

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

struct FreeDeleter {
  void operator()(char* p) const { std::free(p); }
};

// Writes a range of `text` from a buffer that lies as the file does, so that its whole pages may be written directly.
void WritePlaced(ShardWriter* writer, const std::string& text, uint64_t at, size_t bytes) {
  const uint64_t phase = ShardWriter::Phase(at);
  const size_t room = (phase + bytes + ShardWriter::kPage) / ShardWriter::kPage * ShardWriter::kPage;
  const std::unique_ptr<char, FreeDeleter> buffer(static_cast<char*>(std::aligned_alloc(ShardWriter::kPage, room)));
  std::memcpy(buffer.get() + phase, text.data() + at, bytes);
  writer->Write(at, buffer.get() + phase, bytes);
}

class ShardWriterTest : public testing::Test {
 protected:
  // Whether the file system of these tests takes direct writes at all.
  bool HasDirectWrites() {
    FaultyOs os;
    ShardWriter writer(place_ / "probe", ShardWriter::kPage);
    WritePlaced(&writer, Pattern(ShardWriter::kPage), 0, ShardWriter::kPage);
    return os.calls(FaultyOs::kDirectPwrite) == 1;
  }

  fixture::TemporaryDirectory place_;
  const std::string path_ = place_ / "shard";
};

TEST_F(ShardWriterTest, RemovedWhileItIsWritten) {
  const std::string text = Pattern(100'000);
  ShardWriter writer(path_, text.size(), std::array{ByteRange{0, text.size()}});
  writer.Write(0, text.data(), text.size());
  writer.Sync();
  std::filesystem::remove(path_);
  const Error error = fixture::ErrorOf([&] { writer.Sync(); });
  EXPECT_EQ(error.code(), ErrorCode::kIo);
  EXPECT_EQ(error.path(), path_);
}

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

// Pieces of all sizes, many of them within one page, written by several threads.
TEST_F(ShardWriterTest, DirectWritesOfAnyPieces) {
  const std::string text = Pattern(2 * ShardWriter::kWindow + 54'321);
  for (unsigned seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<std::pair<uint64_t, size_t>> pieces;
    for (uint64_t at = 0; at < text.size(); at += pieces.back().second) {
      const size_t most = size_t{1} << std::uniform_int_distribution<int>(4, 21)(random);
      const size_t bytes = std::uniform_int_distribution<size_t>(1, most)(random);
      pieces.emplace_back(at, std::min(bytes, text.size() - at));
    }
    std::shuffle(pieces.begin(), pieces.end(), random);
    std::filesystem::remove(path_);
    ShardWriter writer(path_, text.size());
    std::atomic<size_t> next{0};
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
          for (size_t p; (p = next++) < pieces.size();) WritePlaced(&writer, text, pieces[p].first, pieces[p].second);
        });
    }
    EXPECT_TRUE(writer.complete());
    writer.Finish();
    EXPECT_TRUE(TextOf(path_) == text);
  }
}

TEST_F(ShardWriterTest, OnlyWholePagesFromPlacedBuffersAreWrittenDirectly) {
  if (!HasDirectWrites()) GTEST_SKIP() << "no direct writes here";
  constexpr uint64_t kPage = ShardWriter::kPage;
  const std::string text = Pattern(10 * kPage + 100);
  FaultyOs os;
  ShardWriter writer(path_, text.size());
  WritePlaced(&writer, text, 0, kPage);                  // a whole page
  EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 1);
  EXPECT_EQ(os.calls(FaultyOs::kPwrite), 1);
  WritePlaced(&writer, text, kPage, 10);                 // none
  EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 1);
  EXPECT_EQ(os.calls(FaultyOs::kPwrite), 2);
  WritePlaced(&writer, text, kPage + 10, 4 * kPage);     // three, a head and a tail
  EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 2);
  EXPECT_EQ(os.calls(FaultyOs::kPwrite), 5);
  WritePlaced(&writer, text, 5 * kPage + 10, kPage - 10);
  const std::unique_ptr<char, FreeDeleter> buffer(static_cast<char*>(std::aligned_alloc(kPage, 5 * kPage)));
  std::memcpy(buffer.get() + 8, text.data() + 6 * kPage, 3 * kPage);
  writer.Write(6 * kPage, buffer.get() + 8, 3 * kPage);  // lies elsewhere than the file
  EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 2);
  WritePlaced(&writer, text, 9 * kPage, kPage + 100);    // the file's end is no whole page
  EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 3);
  writer.Finish();
  EXPECT_TRUE(TextOf(path_) == text);
}

// Refused when it is opened, at the first write, later, or in the middle of one: the rest takes the other way.
TEST_F(ShardWriterTest, FileSystemsWithoutDirectWrites) {
  if (!HasDirectWrites()) GTEST_SKIP() << "no direct writes here";
  constexpr size_t kPiece = 3 * ShardWriter::kPage;
  const std::string text = Pattern(10 * kPiece);
  const auto write = [&] {
    std::filesystem::remove(path_);
    ShardWriter writer(path_, text.size());
    for (uint64_t at = 0; at < text.size(); at += kPiece) WritePlaced(&writer, text, at, kPiece);
    writer.Finish();
    EXPECT_TRUE(TextOf(path_) == text);
  };
  {
    FaultyOs os;
    os.Fail(FaultyOs::kOpenDirect, EINVAL, 1);
    write();
    EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), 0);
  }
  for (int nth : {1, 4}) {
    FaultyOs os;
    os.Fail(FaultyOs::kDirectPwrite, EINVAL, nth, nth);
    write();
    EXPECT_EQ(os.calls(FaultyOs::kDirectPwrite), nth) << "tried again";
  }
  FaultyOs os;
  os.shorten = [](size_t bytes) { return bytes == kPiece ? bytes - 512 : bytes; };  // whole blocks of the device
  write();
  EXPECT_GT(os.calls(FaultyOs::kDirectPwrite), 0);
  os.shorten = [](size_t bytes) { return std::min<size_t>(bytes, 1000); };
  write();
}

TEST_F(ShardWriterTest, DirectWritesThatFail) {
  if (!HasDirectWrites()) GTEST_SKIP() << "no direct writes here";
  const std::string text = Pattern(8 * ShardWriter::kPage);
  for (int error_number : {ENOSPC, EIO, EDQUOT}) {
    std::filesystem::remove(path_);
    FaultyOs os;
    os.Fail(FaultyOs::kDirectPwrite, error_number, 1);
    ShardWriter writer(path_, text.size());
    const Error error = fixture::ErrorOf([&] { WritePlaced(&writer, text, 0, text.size()); });
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_EQ(error.path(), path_);
    EXPECT_FALSE(writer.complete());
  }
  std::filesystem::remove(path_);
  FaultyOs os;
  os.shorten = [](size_t) { return size_t{0}; };
  ShardWriter writer(path_, text.size());
  EXPECT_EQ(fixture::ErrorOf([&] { WritePlaced(&writer, text, 0, text.size()); }).code(), ErrorCode::kIo);
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
