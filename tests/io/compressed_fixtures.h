// Plain shards made into compressed ones.
#pragma once

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "io/frame_encoder.h"
#include "io/safetensors.h"
#include "io/seek_table.h"

namespace braid::fixture {

// The most that this process has had in memory so far, in bytes.
inline uint64_t PeakMemory() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) << 10;
}

struct CompressedBytes {
  std::string frames;                // all but the seek table
  std::vector<SeekEntry> entries;
  std::string file() const { return frames + SeekTableBytes(entries); }
};

inline CompressedBytes Compressed(const std::string& shard, Compression compression) {
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(shard[i]);
  const SafetensorsHeader header = ParseSafetensorsHeader(shard.substr(8, length), shard.size(), "a shard");
  ShardFrames layout(header.data_offset);
  for (const TensorInfo& tensor : header.tensors) layout.Add(tensor.dtype, tensor.bytes);
  FrameEncoder encoder(compression);
  CompressedBytes out;
  for (const ShardFrame& frame : layout.Take()) {
    std::vector<std::byte> to(FrameEncoder::MostBytes(frame.bytes));
    const EncodedFrame encoded =
        encoder.Encode(frame, reinterpret_cast<const std::byte*>(shard.data() + frame.begin), to.data());
    out.frames.append(reinterpret_cast<const char*>(to.data()), encoded.bytes);
    out.entries.insert(out.entries.end(), encoded.Entries().begin(), encoded.Entries().end());
  }
  return out;
}

inline std::string BytesOfFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Puts a compressed shard where a plain one was; returns its path.
inline std::string CompressFile(const std::string& path, Compression compression) {
  const std::string to = path + std::string(CompressionSuffix(compression));
  std::ofstream(to, std::ios::binary) << Compressed(BytesOfFile(path), compression).file();
  std::filesystem::remove(path);
  return to;
}

// The same for all shards below a directory; `choose` says how each is compressed, kNone leaves it as it is.
template <typename Choose>
void CompressShards(const std::string& directory, Choose choose) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory))
    if (entry.is_regular_file() && entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  for (const std::string& path : paths)
    if (const Compression compression = choose(); compression != Compression::kNone) CompressFile(path, compression);
}

}  // namespace braid::fixture
