// Frames that several threads compress are the frames that one encoder makes, in order; and a stream that fails ends
// it.
#include "io/frame_compressor.h"

#include <gtest/gtest.h>


#include "tests/ops/test_support.h"

namespace braid {
namespace {

class Collected : public ByteStream {
 public:
  explicit Collected(size_t most = SIZE_MAX) : most_(most) {}
  void Write(const void* data, size_t bytes) override {
    if (bytes > most_ - text.size()) throw Error(ErrorCode::kIo, "full");
    text.append(static_cast<const char*>(data), bytes);
  }
  void Finish() override {}
  std::string text;

 private:
  size_t most_;
};

struct Shard {
  std::string header, data = {};
  std::vector<ShardFrame> frames = {};
};

Shard RandomShard(test::Random& random) {
  Shard shard{.header = std::string(8 + random.Below(10'000), 'h')};
  if (random.Chance(0.2)) shard.header.resize(3 << 20, ' ');   // longer than a frame
  ShardFrames frames(shard.header.size());
  for (size_t tensor = random.Below(6); tensor > 0; --tensor) {
    const uint64_t elements = random.Chance(0.5) ? random.Below(1000) : random.Below(4 << 20);
    const DType type = random.Chance(0.5) ? DType::kBF16 : random.Chance(0.5) ? DType::kF32 : DType::kU8;
    const uint64_t bytes = elements * static_cast<uint64_t>(DTypeBits(type)) / 8;
    frames.Add(type, bytes);
    const uint64_t first = shard.data.size();
    shard.data.resize(first + bytes);
    for (uint64_t i = first; i < shard.data.size(); ++i)
      shard.data[i] = static_cast<char>(random.Below(i % 2 ? 5 : 256));
  }
  shard.frames = frames.Take();
  return shard;
}

std::string Expected(Compression compression, const Shard& shard) {
  FrameEncoder encoder(compression);
  const std::string plain = shard.header + shard.data;
  std::string out;
  std::vector<SeekEntry> entries;
  for (const ShardFrame& frame : shard.frames) {
    std::vector<std::byte> to(FrameEncoder::MostBytes(frame.bytes));
    const EncodedFrame encoded =
        encoder.Encode(frame, reinterpret_cast<const std::byte*>(plain.data()) + frame.begin, to.data());
    out.append(reinterpret_cast<const char*>(to.data()), encoded.bytes);
    entries.insert(entries.end(), encoded.Entries().begin(), encoded.Entries().end());
  }
  return out + SeekTableBytes(entries);
}

TEST(FrameCompressor, ShardsOneAfterTheOther) {
  test::Random random;
  for (const Compression compression : {Compression::kZstd, Compression::kPlanes})
    for (const size_t threads : {1, 3}) {
      FrameCompressor compressor(compression, threads);
      for (int i = 0; i < 5; ++i) {
        const Shard shard = RandomShard(random);
        Collected out;
        compressor.Begin(shard.header, shard.frames, &out);
        for (size_t at = 0; at < shard.data.size();) {
          const size_t bytes = std::min<size_t>(1 + random.Below(3 << 20), shard.data.size() - at);
          compressor.Write(shard.data.data() + at, bytes);
          at += bytes;
        }
        compressor.End();
        EXPECT_TRUE(out.text == Expected(compression, shard)) << threads << " threads, shard " << i;
      }
    }
}

// Wherever it fails, Write or End says so, and nobody waits for ever.
TEST(FrameCompressor, AStreamThatFails) {
  test::Random random;
  Shard shard{.header = "header"};
  ShardFrames frames(shard.header.size());
  shard.data.resize(20 << 20);
  for (char& byte : shard.data) byte = static_cast<char>(random.Below(256));
  frames.Add(DType::kBF16, shard.data.size());
  shard.frames = frames.Take();
  const size_t whole = Expected(Compression::kZstd, shard).size();
  for (const size_t most : {size_t{0}, size_t{100}, whole / 3, whole - 100, whole - 1, whole}) {
    SCOPED_TRACE(most);
    FrameCompressor compressor(Compression::kZstd, 3);
    Collected out(most);
    const auto run = [&] {
      compressor.Begin(shard.header, shard.frames, &out);
      compressor.Write(shard.data.data(), shard.data.size());
      compressor.End();
    };
    if (most == whole) EXPECT_NO_THROW(run());
    else EXPECT_THROW(run(), Error);
  }
}

TEST(FrameCompressor, AShardLeftIncomplete) {
  ShardFrames frames(4);
  frames.Add(DType::kU8, 1000);
  FrameCompressor compressor(Compression::kZstd, 1);
  Collected out;
  compressor.Begin("head", frames.Take(), &out);
  compressor.Write("abc", 3);
  EXPECT_THROW(compressor.End(), Error);
}

}  // namespace
}  // namespace braid
