#include "io/input_stream.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include "io/safetensors.h"
#include "io/temporary_file.h"
#include "tests/io/feeder.h"
#include "tests/io/model_fixtures.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using fixture::ErrorOf;
using fixture::Feeder;
using fixture::TemporaryDirectory;

std::string Noise(test::Random& random, size_t bytes) {
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random.Below(40));
  return text;
}

std::string Compressed(const std::string& text, int level = 3, bool checksum = true, int window_log = 0) {
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, checksum);
  if (window_log > 0) {
    ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
  }
  std::string out(ZSTD_compressBound(text.size()) + 64, '\0');
  ZSTD_inBuffer in{text.data(), text.size(), 0};
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  // Streamed: no size.
  EXPECT_EQ(window_log > 0 ? ZSTD_compressStream2(context, &to, &in, ZSTD_e_continue) & 0 : 0u, 0u);
  EXPECT_EQ(ZSTD_compressStream2(context, &to, &in, ZSTD_e_end), 0u);
  ZSTD_freeCCtx(context);
  out.resize(to.pos);
  return out;
}

std::string Skippable(const std::string& text) {
  std::string out("\x50\x2a\x4d\x18", 4);
  for (int i = 0; i < 4; ++i) out += static_cast<char>(text.size() >> (8 * i) & 0xff);
  return out + text;
}

// Reads to the end in pieces of random sizes.
std::string ReadAll(InputStream* stream, test::Random& random) {
  std::string all;
  for (;;) {
    std::string piece(1 + random.Below(200'000), '\0');
    const size_t got = stream->Read(reinterpret_cast<std::byte*>(piece.data()), piece.size());
    all.append(piece, 0, got);
    if (got < piece.size()) return all;
  }
}

class Streams : public testing::Test {
 protected:
  std::string ReadOf(const std::string& bytes) {
    const Feeder feeder(place_ / "fifo", bytes, 1 + random_.Below(100'000));
    InputStream stream(place_ / "fifo");
    return ReadAll(&stream, random_);
  }
  Error ErrorFor(const std::string& bytes) {
    return ErrorOf([&] { ReadOf(bytes); });
  }

  test::Random random_;
  TemporaryDirectory place_;
};

TEST_F(Streams, AreReadToTheirEnd) {
  for (const size_t bytes : {0, 1, 3, 4, 5, 1000, 65'536, 3'000'000}) {
    SCOPED_TRACE(bytes);
    const std::string text = Noise(random_, bytes);
    EXPECT_TRUE(ReadOf(text) == text);
  }
}

TEST_F(Streams, OfZstdAreDecoded) {
  for (const size_t bytes : {0, 1, 1000, 65'536, 1 << 17, 3'000'000}) {
    SCOPED_TRACE(bytes);
    const std::string a = Noise(random_, bytes), b = Noise(random_, 1000);
    EXPECT_TRUE(ReadOf(Compressed(a)) == a);
    EXPECT_TRUE(ReadOf(Compressed(a, 19, false)) == a);
    EXPECT_TRUE(ReadOf(Compressed(a) + Compressed(b) + Compressed("") + Compressed(a, -5)) == a + b + a);
    EXPECT_TRUE(ReadOf(Skippable("seek table") + Compressed(a) + Skippable("") + Compressed(b) + Skippable(b)) ==
                a + b);
  }
}

TEST_F(Streams, OfZstdThatAreCutOff) {
  const std::string text = Noise(random_, 20'000), whole = Compressed(text) + Compressed("more") + Skippable("table");
  const size_t first = Compressed(text).size(), second = first + Compressed("more").size();
  for (size_t cut = 4; cut < whole.size(); cut += cut < 30 ? 1 : 1 + random_.Below(400)) {
    SCOPED_TRACE(cut);
    if (cut == first || cut == second) continue;
    const Error error = ErrorFor(whole.substr(0, cut));
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    EXPECT_NE(error.message().find("the stream ends within it"), std::string::npos) << error.message();
    EXPECT_EQ(error.path(), place_ / "fifo");
  }
}

TEST_F(Streams, OfZstdThatAreDamaged) {
  const std::string text = Noise(random_, 20'000), whole = Compressed(text);
  for (int i = 0; i < 100; ++i) {
    std::string damaged = whole;
    const size_t at = 6 + random_.Below(whole.size() - 6);
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random_.Below(8)));
    SCOPED_TRACE(testing::Message() << "byte " << at << " of " << whole.size());
    EXPECT_EQ(ErrorFor(damaged).code(), ErrorCode::kBadInput);
  }
  EXPECT_NE(ErrorFor(whole + "garbage").message().find("zstd frame 1"), std::string::npos);
  EXPECT_EQ(ErrorFor(whole + "x").code(), ErrorCode::kBadInput);
}

// A frame may look back as far as the first one, or 8 MiB; the first as far as 128 MiB.
TEST_F(Streams, OfZstdTakeBoundedMemory) {
  const std::string text = Noise(random_, 100'000);
  const auto memory = [&](const std::string& bytes) {
    const Feeder feeder(place_ / "fifo", bytes);
    InputStream stream(place_ / "fifo");
    std::byte first;
    stream.Read(&first, 1);
    return stream.MemoryBytes();
  };
  EXPECT_EQ(memory(text), 0u);
  EXPECT_LT(memory(Compressed(text)), 9u << 20);
  EXPECT_GT(memory(Compressed(text, 3, true, 27)), 128u << 20);
  EXPECT_TRUE(ReadOf(Compressed(text, 3, true, 27) + Compressed(text, 3, true, 27)) == text + text);
  const Error error = ErrorFor(Compressed(text) + Compressed(text, 3, true, 24));
  EXPECT_NE(error.message().find("zstd frame 1"), std::string::npos) << error.message();
}

TEST_F(Streams, HeadersAreReadNoFurther) {
  const std::string file = fixture::SmallFile({"a", "b"});
  for (const std::string& bytes : {file, Compressed(file)}) {
    const Feeder feeder(place_ / "fifo", bytes);
    InputStream stream(place_ / "fifo");
    std::string text;
    const SafetensorsHeader header = ReadSafetensorsHeader(&stream, &text);
    EXPECT_EQ(header.tensors.size(), 2u);
    EXPECT_EQ(header.file_bytes, file.size());
    EXPECT_EQ(stream.position(), header.data_offset);
    EXPECT_EQ(text, file.substr(0, header.data_offset));
    EXPECT_EQ(ReadAll(&stream, random_).size(), file.size() - header.data_offset);
    EXPECT_EQ(stream.position(), file.size());
  }
}

TEST(TemporaryFiles, HaveNoName) {
  const TemporaryDirectory place;
  TemporaryFile file(place.path());
  EXPECT_TRUE(std::filesystem::is_empty(place.path()));
  file.Write(1'000'000, "there", 5);
  file.Write(10, "here", 4);
  char text[6] = {};
  file.Read(1'000'000, text, 5);
  EXPECT_STREQ(text, "there");
  EXPECT_EQ(ErrorOf([&] { file.Read(1'000'001, text, 5); }).code(), ErrorCode::kBadInput);
  EXPECT_EQ(ErrorOf([&] { TemporaryFile(place / "nowhere"); }).code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace braid
