// Compressed shards that are not what they claim: truncated, flipped, with tables that lie. Every one is an error that
// names the file, and none is read as something else.
#include "io/compressed_shard.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <chrono>
#include <random>
#include <thread>

#include "io/checkpoint.h"
#include "io/compressed_file.h"
#include "io/plain_shard.h"
#include "io/input_stream.h"
#include "tests/io/compressed_fixtures.h"
#include "tests/io/model_fixtures.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using fixture::Compressed;
using fixture::CompressedBytes;

struct Piece {
  std::string name;
  DType type;
  uint64_t elements;
};

// A shard of these tensors, noise that compresses a little.
std::string ShardOf(const std::vector<Piece>& pieces, uint64_t seed = 1) {
  std::vector<TensorInfo> infos;
  uint64_t bytes = 0;
  for (const Piece& piece : pieces) {
    const uint64_t size = piece.elements * static_cast<uint64_t>(DTypeBits(piece.type)) / 8;
    infos.push_back({piece.name, piece.type, {piece.elements}, piece.elements, 0, size});
    bytes += size;
  }
  std::string shard = MakeSafetensorsHeader(infos, {{"format", "pt"}});
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < bytes; ++i) shard += static_cast<char>(random() & random() & 0xff);
  return shard;
}

const std::vector<Piece>& Pieces() {
  static const std::vector<Piece> pieces = {
      {"a", DType::kBF16, 1'500'001}, {"b", DType::kBF16, 3},  {"c", DType::kF32, 700'003}, {"d", DType::kI64, 17},
      {"e", DType::kU8, 3'000'001},   {"f", DType::kF16, 999}, {"g", DType::kF64, 5},       {"h", DType::kBool, 1}};
  return pieces;
}

class CompressedShardTest : public testing::TestWithParam<Compression> {
 protected:
  std::string Write(const std::string& bytes) {
    return place_.Write("x.safetensors" + std::string(CompressionSuffix(GetParam())), bytes);
  }
  // The whole shard as it is read from a file of these bytes, in ranges of many sizes.
  std::string Read(const std::string& bytes, bool direct = false) {
    Shard shard;
    shard.path = Write(bytes);
    ReadShard(&shard);
    if (shard.stream != nullptr) return ReadAsStream(shard);
    DecodingSizes sizes{.decoders = 1, .kept = 2};
    sizes.Cover(*shard.compressed);
    DecodedFrames frames(sizes);
    CompressedFile file(shard.compressed, shard.identity, direct, &frames);
    std::string plain = ReadHeaderBytes(shard);
    const uint64_t header = plain.size();
    plain.resize(shard.bytes());
    std::mt19937_64 random(7);
    for (uint64_t at = header; at < plain.size();) {
      const uint64_t most = random() % 3 == 0 ? 5'000'000 : 9000;
      const uint64_t here = std::min<uint64_t>(plain.size() - at, random() % most);
      file.Read(at, here, reinterpret_cast<std::byte*>(plain.data() + at), "some tensor");
      at += here;
    }
    return plain;
  }
  // What has lost its table is read from its beginning, to its end.
  std::string ReadAsStream(const Shard& shard) {
    std::string plain = ReadHeaderBytes(shard);
    const size_t header = plain.size(), data = shard.bytes() - header;
    plain.resize(header + data + 1);
    if (shard.stream->Read(reinterpret_cast<std::byte*>(plain.data() + header), data + 1) != data)
      throw Error(ErrorCode::kBadInput, "it has another length than its header says").Path(shard.path);
    plain.pop_back();
    return plain;
  }
  // What has no seek table, or has lost it.
  static std::string ReadAsStream(const std::string& path) {
    std::string plain;
    ReadPlainShard(path, 3, nullptr, [&](const std::byte* bytes, size_t size) {
      plain.append(reinterpret_cast<const char*>(bytes), size);
    });
    return plain;
  }
  // All that comes before the end or an error.
  struct InOrder {
    std::string plain, error;
  };
  static InOrder ReadInOrder(const std::string& path, size_t threads) {
    InOrder read;
    try {
      ReadPlainShard(path, threads, nullptr, [&](const std::byte* bytes, size_t size) {
        read.plain.append(reinterpret_cast<const char*>(bytes), size);
      });
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
      read.error = error.what();
    }
    return read;
  }
  Error ErrorOf(const std::string& bytes) {
    const Error error = fixture::ErrorOf([&] { Read(bytes); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
    EXPECT_NE(error.path().find("x.safetensors"), std::string::npos) << error.what();
    return error;
  }

  fixture::TemporaryDirectory place_;
};

INSTANTIATE_TEST_SUITE_P(Both, CompressedShardTest, testing::Values(Compression::kZstd, Compression::kPlanes),
                         [](const auto& tested) { return std::string(CompressionName(tested.param)); });

TEST_P(CompressedShardTest, ComesBackInAnyRanges) {
  const std::string shard = ShardOf(Pieces());
  const std::string file = Compressed(shard, GetParam()).file();
  EXPECT_TRUE(Read(file) == shard);
  EXPECT_TRUE(Read(file, true) == shard);
  EXPECT_EQ(file, Compressed(shard, GetParam()).file());
  for (const auto& pieces : std::vector<std::vector<Piece>>{{}, {{"empty", DType::kF32, 0}},
                                                            {{"one", DType::kU8, 1}}}) {
    const std::string small = ShardOf(pieces);
    EXPECT_TRUE(Read(Compressed(small, GetParam()).file()) == small);
  }
}

TEST_P(CompressedShardTest, SeveralThreadsShareFrames) {
  const std::string plain = ShardOf(Pieces());
  Shard shard;
  shard.path = Write(Compressed(plain, GetParam()).file());
  ReadShard(&shard);
  DecodingSizes sizes{.decoders = 2, .kept = 3};
  sizes.Cover(*shard.compressed);
  DecodedFrames frames(sizes);
  CompressedFile file(shard.compressed, shard.identity, false, &frames);
  std::vector<std::jthread> threads;
  for (uint64_t t = 0; t < 6; ++t)
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::string got;
      for (int i = 0; i < 200; ++i) {
        const uint64_t begin = shard.data_offset + random() % (plain.size() - shard.data_offset);
        got.resize(std::min<uint64_t>(plain.size() - begin, random() % 100'000));
        file.Read(begin, got.size(), reinterpret_cast<std::byte*>(got.data()), "t");
        if (plain.compare(begin, got.size(), got) != 0) ADD_FAILURE() << begin << " + " << got.size();
      }
    });
}

// In order, whatever is decoded first; and what is in front of a damaged frame comes before the error.
TEST_P(CompressedShardTest, SeveralThreadsDecodeInOrder) {
  const std::string shard = ShardOf(Pieces());
  const CompressedBytes bytes = Compressed(shard, GetParam());
  for (const size_t threads : {1, 2, 9})
    EXPECT_TRUE(ReadInOrder(Write(bytes.file()), threads).plain == shard) << threads;
  size_t at = 0;
  for (size_t i = 0; i < bytes.entries.size(); ++i) {
    std::string bad = bytes.file();
    bad[at + bytes.entries[i].compressed / 2] ^= 1, at += bytes.entries[i].compressed;
    std::optional<InOrder> first;
    for (const size_t threads : {1, 4}) {
      const InOrder read = ReadInOrder(Write(bad), threads);
      EXPECT_TRUE(shard.starts_with(read.plain));
      if (read.error.empty()) continue;   // a bit that means nothing
      EXPECT_NE(read.error.find("frame "), std::string::npos) << read.error;
      if (!first) first = read;
      EXPECT_EQ(read.plain.size(), first->plain.size());
      EXPECT_EQ(read.error, first->error);
      EXPECT_EQ(read.error.find("tensor '") != std::string::npos, !read.plain.empty()) << read.error;
    }
  }
}

TEST_P(CompressedShardTest, TruncatedAnywhere) {
  const CompressedBytes bytes = Compressed(ShardOf(Pieces()), GetParam());
  const std::string file = bytes.file();
  size_t at = 0;
  std::vector<size_t> ends = {file.size() - 1, file.size() - 9, bytes.frames.size() + 1};
  for (const SeekEntry& entry : bytes.entries) {
    ends.push_back(at), ends.push_back(at + entry.compressed / 2);
    at += entry.compressed;
  }
  for (const size_t end : ends) ErrorOf(file.substr(0, end));
  EXPECT_TRUE(Read(bytes.frames) == ShardOf(Pieces())) << "nothing but the table is missing";
  // Frames that are missing, with a table of those that are there.
  for (size_t keep = 0; keep + 1 < bytes.entries.size(); ++keep) {
    CompressedBytes cut;
    for (size_t i = 0; i < keep; ++i) cut.entries.push_back(bytes.entries[i]);
    size_t size = 0;
    for (const SeekEntry& entry : cut.entries) size += entry.compressed;
    cut.frames = bytes.frames.substr(0, size);
    ErrorOf(cut.file());
  }
}

TEST_P(CompressedShardTest, FlippedBits) {
  const std::string shard = ShardOf({{"a", DType::kBF16, 3000}, {"b", DType::kI64, 100}, {"c", DType::kF32, 500}});
  const std::string file = Compressed(shard, GetParam()).file();
  test::Random random;
  for (int i = 0; i < 3000; ++i) {
    std::string bad = file;
    const size_t at = random() % bad.size();
    const char bit = static_cast<char>(1 << random() % 8);
    bad[at] = static_cast<char>(bad[at] ^ bit);
    try {
      EXPECT_TRUE(Read(bad) == shard) << "byte " << at << ", bit " << static_cast<int>(bit);   // some bits mean nothing
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
      EXPECT_FALSE(error.path().empty());
    }
  }
}

TEST_P(CompressedShardTest, TrailingData) {
  const CompressedBytes bytes = Compressed(ShardOf(Pieces()), GetParam());
  ErrorOf(bytes.file() + "x");                                                       // hides the table
  ErrorOf(bytes.frames + "x" + SeekTableBytes(bytes.entries));                       // behind the last frame
  const CompressedBytes twice{bytes.frames + bytes.frames, [&] {
                                auto entries = bytes.entries;
                                entries.insert(entries.end(), bytes.entries.begin(), bytes.entries.end());
                                return entries;
                              }()};
  ErrorOf(twice.file());
}

TEST_P(CompressedShardTest, TablesThatLie) {
  const CompressedBytes bytes = Compressed(ShardOf(Pieces()), GetParam());
  for (size_t i = 0; i < bytes.entries.size(); ++i) {
    for (const int64_t more : {-1, 1, 1000}) {   // of the content
      CompressedBytes bad = bytes;
      bad.entries[i].content = static_cast<uint32_t>(bad.entries[i].content + more);
      ErrorOf(bad.file());
    }
    if (i + 1 == bytes.entries.size()) continue;
    CompressedBytes bad = bytes;   // the border between two frames is elsewhere
    ++bad.entries[i].compressed, --bad.entries[i + 1].compressed;
    const Error error = ErrorOf(bad.file());
    EXPECT_NE(error.message().find("frame "), std::string::npos) << error.what();
    if (bytes.entries[i].content == bytes.entries[i + 1].content) continue;
    bad = bytes;                   // contents change places: the sum is right
    std::swap(bad.entries[i].content, bad.entries[i + 1].content);
    ErrorOf(bad.file());
  }
}

// A table may name as many empty frames as it has room for; looking at each must cost next to nothing.
TEST_P(CompressedShardTest, AMillionEmptyFrames) {
  CompressedBytes bytes = Compressed(ShardOf(Pieces()), GetParam());
  const int header = GetParam() == Compression::kPlanes ? 1 : 0;   // in front of that
  bytes.entries.insert(bytes.entries.begin() + header, 1'000'000, {0, 0});
  const auto start = std::chrono::steady_clock::now();
  if (GetParam() == Compression::kZstd) EXPECT_TRUE(Read(bytes.file()) == ShardOf(Pieces()));
  else ErrorOf(bytes.file());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

// Of a planes file: marks that are fewer or more than the planes have elements, or go on behind the last one.
TEST(CompressedShard, MarksThatLie) {
  const std::string shard = ShardOf({{"a", DType::kBF16, 1001}});
  const CompressedBytes bytes = Compressed(shard, Compression::kPlanes);
  ASSERT_EQ(bytes.entries.size(), 5u);   // the preamble, the header, marks and two planes
  const size_t at = bytes.entries[0].compressed + bytes.entries[1].compressed;
  const size_t behind = at + bytes.entries[2].compressed;
  for (const auto& [byte, value] : std::vector<std::pair<size_t, char>>{{0, 0x7f}, {125, 3}, {125, 0}, {125, 2}}) {
    std::string marks(126, '\xff'), frame(ZSTD_compressBound(126), '\0');
    marks[125] = 1;
    marks[byte] = value;
    frame.resize(ZSTD_compress(frame.data(), frame.size(), marks.data(), marks.size(), 1));
    CompressedBytes bad = bytes;
    bad.frames = bytes.frames.substr(0, at) + frame + bytes.frames.substr(behind);
    bad.entries[2].compressed = static_cast<uint32_t>(frame.size());
    const fixture::TemporaryDirectory place;
    for (const std::string& file : {bad.file(), bad.frames}) {   // by its table, and as a stream
      const std::string path = place.Write("x.safetensors.planes.zst", file);
      const Error error = fixture::ErrorOf([&] { ReadPlainShard(path, 1, nullptr, [](const std::byte*, size_t) {}); });
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
    }
  }
}

TEST_P(CompressedShardTest, Bombs) {
  const CompressedBytes bytes = Compressed(ShardOf(Pieces()), GetParam());
  // A frame that says little and holds much; one whose table and header agree on more than may be decoded.
  std::string zeros(64 << 20, '\0'), frame(ZSTD_compressBound(zeros.size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), zeros.data(), zeros.size(), 1));
  CompressedBytes bad = bytes;
  bad.frames.resize(bad.frames.size() - bad.entries.back().compressed);
  bad.frames += frame;
  bad.entries.back().compressed = static_cast<uint32_t>(frame.size());
  ErrorOf(bad.file());
  bad.entries.back().content = static_cast<uint32_t>(zeros.size());
  ErrorOf(bad.file());
  bad.entries.back().content = 0xffffffff;
  ErrorOf(bad.file());
  // A header that would be endless.
  CompressedBytes header;
  for (int i = 0; i < 3; ++i) {
    header.frames += frame;
    header.entries.push_back({static_cast<uint32_t>(frame.size()), 64 << 20});
  }
  ErrorOf(header.file());
  header.entries = {{0, 0xffffffff}, {static_cast<uint32_t>(header.frames.size()), 100}};
  ErrorOf(header.file());
}

// A table of frames of 4 GiB that take no room agrees with a header that asks for as much.
TEST(CompressedShard, FramesThatTakeNoRoom) {
  constexpr uint64_t kFrames = 16'384, kEach = 0xffffffff, kClaimed = kFrames * kEach;   // 64 TiB
  const std::string header = MakeSafetensorsHeader({{"a", DType::kU8, {kFrames, kEach}, kClaimed, 0, kClaimed}}, {});
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes}) {
    const ShardFrame frame{.begin = 0, .bytes = header.size(), .header = true};
    std::vector<std::byte> to(FrameEncoder::MostBytes(header.size()));
    FrameEncoder encoder(compression);
    const EncodedFrame encoded = encoder.Encode(frame, reinterpret_cast<const std::byte*>(header.data()), to.data());
    CompressedBytes bytes{{reinterpret_cast<const char*>(to.data()), encoded.bytes},
                          {encoded.Entries().begin(), encoded.Entries().end()}};
    bytes.entries.resize(bytes.entries.size() + kFrames, {0, kEach});
    const fixture::TemporaryDirectory place;
    Shard shard;
    shard.path = place.Write("x.safetensors" + std::string(CompressionSuffix(compression)), bytes.file());
    const uint64_t before = fixture::PeakMemory();
    EXPECT_EQ(fixture::ErrorOf([&] { ReadShard(&shard); }).code(), ErrorCode::kBadInput);
    EXPECT_LT(fixture::PeakMemory() - before, 64u << 20);
  }
}

// Files of other programs: frames of any size, none as we would cut them, the header in two of them.
TEST(CompressedShard, FramesOfOthers) {
  const std::string shard = ShardOf(Pieces());
  for (const size_t step : {100, 70'001, 3'000'000}) {
    if (shard.size() / step > 100'000) continue;
    CompressedBytes bytes;
    for (size_t at = 0; at < shard.size(); at += step) {
      const size_t size = std::min(step, shard.size() - at);
      std::string frame(ZSTD_compressBound(size), '\0');
      frame.resize(ZSTD_compress(frame.data(), frame.size(), shard.data() + at, size, 1));
      bytes.frames += frame;
      bytes.entries.push_back({static_cast<uint32_t>(frame.size()), static_cast<uint32_t>(size)});
    }
    const fixture::TemporaryDirectory place;
    Shard opened;
    opened.path = place.Write("x.safetensors.zst", bytes.file());
    EXPECT_EQ(ReadShard(&opened).tensors.size(), Pieces().size());
    DecodingSizes sizes{.decoders = 1, .kept = 1};
    sizes.Cover(*opened.compressed);
    DecodedFrames frames(sizes);
    std::string plain(shard.size() - opened.data_offset, '\0');
    CompressedFile(opened.compressed, opened.identity, false, &frames)
        .Read(opened.data_offset, plain.size(), reinterpret_cast<std::byte*>(plain.data()), "t");
    EXPECT_TRUE(shard.compare(opened.data_offset, std::string::npos, plain) == 0) << step;
    for (const size_t threads : {1, 4}) {   // decoded in order: frames that begin and end anywhere in a page
      std::string whole;
      ReadPlainShard(opened.path, threads, nullptr, [&](const std::byte* bytes_read, size_t size) {
        whole.append(reinterpret_cast<const char*>(bytes_read), size);
      });
      EXPECT_TRUE(whole == shard) << step << ", " << threads << " threads";
    }
  }
}

TEST(CompressedShard, NoSeekTableIsSaid) {
  const std::string shard = ShardOf(Pieces());
  std::string frame(ZSTD_compressBound(shard.size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), shard.data(), shard.size(), 1));
  const fixture::TemporaryDirectory place;
  const std::string path = place.Write("x.safetensors.zst", frame);
  const Fd fd = OpenForReading(path);
  EXPECT_FALSE(CompressedShard::Open(fd.get(), frame.size(), path));
}

// --- checkpoints ------------------------------------------------------------------------------------------

TEST(CompressedCheckpoint, KeepsPlainNames) {
  const fixture::TemporaryDirectory place;
  const std::string one = ShardOf({{"a", DType::kBF16, 30}}), two = ShardOf({{"b", DType::kF32, 3}});
  place.Write("m/model-1.safetensors.zst", Compressed(one, Compression::kZstd).file());
  place.Write("m/model-2.safetensors.planes.zst", Compressed(two, Compression::kPlanes).file());
  place.Write("m/other.safetensors.zst", "not looked at");
  place.Write("m/model.safetensors.index.json",
              R"({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})");
  const Checkpoint checkpoint = OpenCheckpoint(place / "m");
  ASSERT_EQ(checkpoint.shards.size(), 2u);
  EXPECT_EQ(checkpoint.shards[0].name, "model-1.safetensors");
  EXPECT_EQ(checkpoint.shards[1].name, "model-2.safetensors");
  EXPECT_EQ(checkpoint.shards[1].compressed->compression(), Compression::kPlanes);
  EXPECT_EQ(checkpoint.shards[0].bytes(), one.size());
  EXPECT_EQ(checkpoint.shards[1].bytes(), two.size());
  ASSERT_EQ(checkpoint.warnings.size(), 1u);
  EXPECT_NE(checkpoint.warnings[0].find("other.safetensors.zst"), std::string::npos);

  const Checkpoint single = OpenCheckpoint(place / "m/model-1.safetensors.zst");
  EXPECT_EQ(single.shards.at(0).name, "model-1.safetensors");
  EXPECT_EQ(single.tensors.at(0).info.name, "a");
}

}  // namespace
}  // namespace braid
