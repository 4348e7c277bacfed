// Frames of compressed shards: where they begin, and that libzstd makes of them what went in.
#include "io/frame_encoder.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "io/os.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

constexpr uint64_t kMiB = 1 << 20;

std::vector<ShardFrame> Frames(uint64_t header, const std::vector<std::pair<DType, uint64_t>>& tensors) {
  ShardFrames frames(header);
  for (const auto& [type, bytes] : tensors) frames.Add(type, bytes);
  return frames.Take();
}

TEST(ShardFrames, SmallTensorsTogetherLargeOnesInPieces) {
  const auto frames = Frames(100, {{DType::kBF16, kMiB}, {DType::kBF16, kMiB}, {DType::kBF16, 2},
                                   {DType::kBF16, 5 * kMiB}, {DType::kBF16, 8}, {DType::kF32, 8}, {DType::kF32, 0},
                                   {DType::kF32, 4}});
  std::vector<uint64_t> sizes;
  uint64_t end = 0;
  for (const ShardFrame& frame : frames) {
    EXPECT_EQ(frame.begin, end);
    EXPECT_EQ(frame.header, frame.begin == 0);
    end += frame.bytes;
    sizes.push_back(frame.bytes);
  }
  // A header; two tensors; one that did not fit; pieces of the large one; after it a new run; one more for f32.
  EXPECT_EQ(sizes, (std::vector<uint64_t>{100, 2 * kMiB, 2, 2 * kMiB, 2 * kMiB, kMiB, 8, 12}));
  EXPECT_EQ(frames[1].split, PlaneSplit::kTwo);
  EXPECT_EQ(frames[7].split, PlaneSplit::kFour);
}

TEST(ShardFrames, NamesAndSuffixes) {
  EXPECT_EQ(CompressionOf("model.safetensors"), Compression::kNone);
  EXPECT_EQ(CompressionOf("model.safetensors.zst"), Compression::kZstd);
  EXPECT_EQ(CompressionOf("model.safetensors.planes.zst"), Compression::kPlanes);
  for (const Compression c : {Compression::kNone, Compression::kZstd, Compression::kPlanes})
    EXPECT_EQ(CompressionOf("x" + std::string(CompressionSuffix(c))), c);
}

// --- encoding ---------------------------------------------------------------------------------------------

enum class Data { kNoise, kZeros, kWeights, kSparse, kRuns };

std::vector<std::byte> Make(Data data, DType type, size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<std::byte> out(bytes, std::byte{0});
  const auto size = static_cast<size_t>(DTypeBits(type)) / 8;
  for (size_t at = 0; at + size <= bytes; at += size) {
    if (data == Data::kZeros || (data == Data::kSparse && random() % 5 != 0)) continue;
    if (data == Data::kRuns && at % 10'000 > 100) continue;
    const uint64_t noise = random();
    float lane = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &lane, 4);
    if (type == DType::kBF16) bits >>= 16;
    const bool is_float = type == DType::kBF16 || type == DType::kF32;
    std::memcpy(out.data() + at, data != Data::kNoise && is_float ? static_cast<const void*>(&bits) : &noise, size);
  }
  return out;
}

// The plain bytes of a frame from what libzstd makes of its parts, each checked against its entry.
std::vector<std::byte> Decoded(Compression compression, const ShardFrame& frame, const EncodedFrame& encoded,
                               const std::byte* bytes) {
  std::vector<std::byte> content;
  size_t at = 0;
  for (const SeekEntry& entry : encoded.Entries()) {
    EXPECT_EQ(ZSTD_findFrameCompressedSize(bytes + at, entry.compressed), entry.compressed);
    EXPECT_EQ(ZSTD_getFrameContentSize(bytes + at, entry.compressed), entry.content);
    EXPECT_NE(static_cast<int>(bytes[at + 4]) & 4, 0) << "there is a checksum";
    content.resize(content.size() + entry.content);
    EXPECT_EQ(ZSTD_decompress(content.data() + content.size() - entry.content, entry.content, bytes + at,
                              entry.compressed),
              entry.content);
    at += entry.compressed;
  }
  EXPECT_EQ(at, encoded.bytes);
  if (compression == Compression::kZstd) return content;
  if (frame.header) content.erase(content.begin(), content.begin() + kPlanesPreamble.size());
  if (frame.header || frame.split == PlaneSplit::kNone) return content;
  std::vector<std::byte> plain(frame.bytes);
  const size_t n = frame.bytes / PlanesOf(frame.split);
  size_t marked = 0;
  EXPECT_TRUE(AreMarks(content.data(), n, &marked));
  EXPECT_EQ(content.size(), MarkBytes(n) + marked * PlanesOf(frame.split));
  JoinPlanes(frame.split, content.data(), n, content.data() + MarkBytes(n), marked, 0, n, plain.data());
  return plain;
}

TEST(FrameEncoder, EverythingComesBackAndAlwaysTheSame) {
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes}) {
    FrameEncoder encoder(compression);
    for (const DType type : {DType::kBF16, DType::kF16, DType::kF32, DType::kF64, DType::kI64, DType::kU8})
      for (const Data data : {Data::kNoise, Data::kZeros, Data::kWeights, Data::kSparse, Data::kRuns})
        for (const size_t elements : {1, 2, 7, 64, 1000, 16'384, 100'001, 262'144}) {
          const size_t bytes = elements * static_cast<size_t>(DTypeBits(type)) / 8;
          if (bytes > kFrameBytes) continue;
          const std::vector<std::byte> plain = Make(data, type, bytes, elements);
          const ShardFrame frame{.begin = 7, .bytes = bytes, .split = SplitOf(type)};
          std::vector<std::byte> to(FrameEncoder::MostBytes(bytes) + 1, std::byte{0x5a}), again(to);
          const EncodedFrame encoded = encoder.Encode(frame, plain.data(), to.data());
          ASSERT_LE(encoded.bytes, FrameEncoder::MostBytes(bytes));
          ASSERT_EQ(to.back(), std::byte{0x5a});
          ASSERT_EQ(Decoded(compression, frame, encoded, to.data()), plain);
          FrameEncoder other(compression);
          ASSERT_EQ(other.Encode(frame, plain.data(), again.data()).bytes, encoded.bytes);
          ASSERT_EQ(std::memcmp(to.data(), again.data(), encoded.bytes), 0);
        }
  }
}

TEST(FrameEncoder, HeadersOfAnySize) {
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes})
    for (const size_t bytes : {10, 1000, 5'000'000}) {
      const std::vector<std::byte> plain = Make(Data::kNoise, DType::kU8, bytes, 1);
      const ShardFrame frame{.bytes = bytes, .header = true};
      std::vector<std::byte> to(FrameEncoder::MostBytes(bytes));
      FrameEncoder encoder(compression);
      const EncodedFrame encoded = encoder.Encode(frame, plain.data(), to.data());
      EXPECT_LE(encoded.bytes, to.size());
      EXPECT_EQ(Decoded(compression, frame, encoded, to.data()), plain);
    }
}

// The aims of both modes, in shares of the plain size.
TEST(FrameEncoder, SizesOfWeightsAndOfTrimmedTaskVectors) {
  const auto share = [](Compression compression, Data data, DType type) {
    const std::vector<std::byte> plain = Make(data, type, kFrameBytes, 3);
    std::vector<std::byte> to(FrameEncoder::MostBytes(kFrameBytes));
    FrameEncoder encoder(compression);
    const ShardFrame frame{.bytes = kFrameBytes, .split = SplitOf(type)};
    return static_cast<double>(encoder.Encode(frame, plain.data(), to.data()).bytes) / static_cast<double>(kFrameBytes);
  };
  EXPECT_LE(share(Compression::kPlanes, Data::kWeights, DType::kBF16), 0.67);
  EXPECT_LE(share(Compression::kPlanes, Data::kSparse, DType::kBF16), 0.20);
  EXPECT_LE(share(Compression::kPlanes, Data::kSparse, DType::kF32), 0.20);
  EXPECT_LE(share(Compression::kPlanes, Data::kWeights, DType::kF32), 0.84);
  EXPECT_LE(share(Compression::kPlanes, Data::kRuns, DType::kBF16), 0.02);
  EXPECT_LE(share(Compression::kPlanes, Data::kZeros, DType::kF32), 0.001);
  EXPECT_LE(share(Compression::kZstd, Data::kWeights, DType::kBF16), 0.79);
  EXPECT_LE(share(Compression::kZstd, Data::kSparse, DType::kBF16), 0.29);
  EXPECT_LE(share(Compression::kZstd, Data::kRuns, DType::kBF16), 0.02);   // for which level 1 is needed
  EXPECT_LE(share(Compression::kZstd, Data::kZeros, DType::kF32), 0.001);
  EXPECT_LE(share(Compression::kPlanes, Data::kNoise, DType::kF32), 1.0001);
}

// --- the seek table ---------------------------------------------------------------------------------------

std::optional<std::vector<SeekEntry>> ReadTable(const std::string& bytes) {
  const fixture::TemporaryDirectory place;
  const std::string path = place.Write("x.zst", bytes);
  const Fd fd = OpenForReading(path);
  return ReadSeekTable(fd.get(), bytes.size(), path);
}

TEST(SeekTable, ComesBack) {
  const std::vector<SeekEntry> entries = {{10, 100}, {0xffff, 7}, {1, 0xffffffff}};
  const auto read = ReadTable(std::string(0x10000 + 10, 'x') + SeekTableBytes(entries));
  ASSERT_TRUE(read);
  ASSERT_EQ(read->size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ((*read)[i].compressed, entries[i].compressed);
    EXPECT_EQ((*read)[i].content, entries[i].content);
  }
}

TEST(SeekTable, NoneIsNotTheSameAsABrokenOne) {
  EXPECT_FALSE(ReadTable(""));
  EXPECT_FALSE(ReadTable("short"));
  EXPECT_FALSE(ReadTable(std::string(1000, 'x')));
  const std::string frames(110, 'x'), table = SeekTableBytes({{10, 100}, {100, 7}}), whole = frames + table;
  EXPECT_FALSE(ReadTable(whole + "y"));                              // what follows hides it
  EXPECT_FALSE(ReadTable(whole.substr(0, whole.size() - 1)));
  EXPECT_TRUE(ReadTable(whole));
  const auto message = [&](const std::string& bytes) {
    return std::string(fixture::ErrorOf([&] { ReadTable(bytes); }).what());
  };
  EXPECT_NE(message("x" + whole).find("says 110 bytes of frames, but there are 111"), std::string::npos);
  for (size_t at = 0; at < 8; ++at) {
    std::string bad = whole;
    bad[frames.size() + at] ^= 1;
    EXPECT_NE(message(bad).find("does not begin where"), std::string::npos) << at;
  }
  const size_t footer = whole.size() - 9;
  std::string bad = whole;
  bad[footer + 2] = 1;
  EXPECT_NE(message(bad).find("more than the file has room for"), std::string::npos);
  bad = whole, bad[footer + 4] = 0x40;
  EXPECT_NE(message(bad).find("unknown flags"), std::string::npos);
  bad = whole, bad[footer + 4] = static_cast<char>(0x80);   // entries of another length
  EXPECT_EQ(fixture::ErrorOf([&] { ReadTable(bad); }).code(), ErrorCode::kBadInput);
}

}  // namespace
}  // namespace braid
