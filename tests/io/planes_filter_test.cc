// Compressed shards as streams: what leaves the filters is the plain shard, or an error.
#include "io/planes_filter.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/iostreams/compose.hpp>
#include <random>

#include "io/plain_shard.h"
#include "io/zstd_filter.h"
#include "tests/io/compressed_fixtures.h"
#include "tests/io/model_fixtures.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

namespace bio = boost::iostreams;

// Gives a few bytes at a time, as pipes do.
struct Trickle {
  using char_type = char;
  using category = bio::source_tag;
  const std::string* bytes;
  size_t at = 0;
  std::streamsize read(char* to, std::streamsize n) {
    if (at == bytes->size()) return -1;
    const size_t here = bytes->copy(to, std::min<size_t>(static_cast<size_t>(n), 1 + at % 50'000), at);
    at += here;
    return static_cast<std::streamsize>(here);
  }
};

std::string Plain(const std::string& file, size_t step = 70'001) {
  auto chain = bio::compose(PlanesFilter("a stream"), bio::compose(ZstdFilter("a stream"), Trickle{&file}));
  std::string plain, piece(step, '\0');
  for (;;) {
    const std::streamsize got = bio::read(chain, piece.data(), static_cast<std::streamsize>(step));
    if (got < 0) return plain;
    plain.append(piece, 0, static_cast<size_t>(got));
  }
}

std::string Shard(uint64_t bf16, uint64_t f32, uint64_t u8) {
  const std::vector<TensorInfo> infos = {{"a", DType::kBF16, {bf16}, bf16, 0, 2 * bf16},
                                         {"b", DType::kF32, {f32}, f32, 0, 4 * f32},
                                         {"c", DType::kU8, {u8}, u8, 0, u8}};
  std::string shard = MakeSafetensorsHeader(infos, {});
  std::mt19937 random(3);
  for (uint64_t i = 0; i < 2 * bf16 + 4 * f32 + u8; ++i) shard += static_cast<char>(random() & random());
  return shard;
}

TEST(PlanesFilter, GivesThePlainShard) {
  for (const std::string& shard : {Shard(1'500'001, 600'003, 77), Shard(0, 0, 0), Shard(1, 1, 1),
                                   Shard(5, 0, 3'000'000)})
    for (const Compression compression : {Compression::kZstd, Compression::kPlanes}) {
      const std::string file = fixture::Compressed(shard, compression).file();
      EXPECT_TRUE(Plain(file) == shard) << CompressionName(compression) << ", " << shard.size();
      EXPECT_TRUE(Plain(file, 1 << 22) == shard);
    }
  const std::string small = Shard(100, 100, 100);
  EXPECT_TRUE(Plain(fixture::Compressed(small, Compression::kPlanes).file(), 1) == small);
}

TEST(PlanesFilter, NeedsNoSeekTable) {
  const std::string shard = Shard(3000, 200, 10);
  EXPECT_TRUE(Plain(fixture::Compressed(shard, Compression::kPlanes).frames) == shard);
}

TEST(PlanesFilter, WhatIsCutOffOrGoesOnIsAnError) {
  const std::string shard = Shard(3000, 200, 10);
  const fixture::CompressedBytes bytes = fixture::Compressed(shard, Compression::kPlanes);
  for (size_t end = bytes.entries[0].compressed; end < bytes.frames.size(); end += 1 + end % 7) {
    const Error error = fixture::ErrorOf([&] { Plain(bytes.frames.substr(0, end)); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << end;
    EXPECT_EQ(error.path(), "a stream");
  }
  EXPECT_EQ(fixture::ErrorOf([&] { Plain(bytes.frames + bytes.frames); }).code(), ErrorCode::kBadInput);
  EXPECT_EQ(fixture::ErrorOf([&] { Plain(bytes.file() + "x"); }).code(), ErrorCode::kBadInput);
}

TEST(PlanesFilter, FlippedBits) {
  const std::string shard = Shard(500, 20, 10), file = fixture::Compressed(shard, Compression::kPlanes).file();
  test::Random random;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = file;
    const size_t at = random() % bad.size();
    bad[at] = static_cast<char>(bad[at] ^ 1 << random() % 8);
    try {
      // Of the preamble, what is then no planes file comes out as it is; of the seek table nobody looks at anything.
      const std::string plain = Plain(bad);
      EXPECT_TRUE(plain == shard || !plain.starts_with(shard.substr(0, 8))) << "byte " << at;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
    }
  }
}

// A short stream may say that it is as long as a header allows: frames are made of what comes, not of what is said.
TEST(PlanesFilter, AHeaderThatClaimsFramesWithoutEnd) {
  constexpr uint64_t kClaimed = uint64_t{1} << 49;   // 268 million frames
  const std::string header = MakeSafetensorsHeader({{"a", DType::kU8, {1 << 20, 1 << 29}, kClaimed, 0, kClaimed}}, {});
  const ShardFrame frame{.begin = 0, .bytes = header.size(), .header = true};
  std::vector<std::byte> to(FrameEncoder::MostBytes(header.size()));
  FrameEncoder encoder(Compression::kPlanes);
  const size_t size = encoder.Encode(frame, reinterpret_cast<const std::byte*>(header.data()), to.data()).bytes;
  const uint64_t before = fixture::PeakMemory();
  const Error error = fixture::ErrorOf([&] { Plain({reinterpret_cast<const char*>(to.data()), size}); });
  EXPECT_EQ(error.code(), ErrorCode::kBadInput);
  EXPECT_NE(error.message().find("byte planes 1 of 268435456"), std::string::npos) << error.message();
  EXPECT_LT(fixture::PeakMemory() - before, 64u << 20);
}

// --- whole files, as `braid cat` reads them ---------------------------------------------------------------

std::string Cat(const std::string& path) {
  std::string plain;
  ReadPlainShard(path, 3, nullptr, [&](const std::byte* bytes, size_t size) {
    plain.append(reinterpret_cast<const char*>(bytes), size);
  });
  return plain;
}

TEST(PlainShard, OfFilesOfEveryKind) {
  const fixture::TemporaryDirectory place;
  const std::string shard = Shard(1'500'001, 600'003, 77);
  EXPECT_TRUE(Cat(place.Write("x.safetensors", shard)) == shard);
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes}) {
    const std::string name = "x.safetensors" + std::string(CompressionSuffix(compression));
    EXPECT_TRUE(Cat(place.Write(name, fixture::Compressed(shard, compression).file())) == shard);
  }
}

TEST(PlainShard, ChecksTheTableFirstAndNamesTheTensor) {
  const fixture::TemporaryDirectory place;
  fixture::CompressedBytes bytes = fixture::Compressed(Shard(1'500'001, 600'003, 77), Compression::kPlanes);
  bytes.frames[bytes.frames.size() - 200] ^= 1;
  const Error damaged = fixture::ErrorOf([&] { Cat(place.Write("x.safetensors.planes.zst", bytes.file())); });
  EXPECT_EQ(damaged.code(), ErrorCode::kBadInput);
  EXPECT_EQ(damaged.tensor(), "b");
  EXPECT_NE(damaged.message().find("frame "), std::string::npos);
  bytes.entries.back().content += 1;
  const Error table = fixture::ErrorOf([&] { Cat(place.Write("y.safetensors.planes.zst", bytes.file())); });
  EXPECT_EQ(table.code(), ErrorCode::kBadInput);
  const Error missing = fixture::ErrorOf([&] { Cat(place / "z.safetensors.zst"); });
  EXPECT_EQ(missing.path(), place / "z.safetensors.zst");
}

}  // namespace
}  // namespace braid
