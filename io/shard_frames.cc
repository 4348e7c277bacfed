#include "io/shard_frames.h"

#include <algorithm>

namespace braid {

std::string_view CompressionName(Compression compression) {
  return compression == Compression::kZstd ? "zstd" : compression == Compression::kPlanes ? "planes" : "none";
}

std::string_view CompressionSuffix(Compression compression) {
  return compression == Compression::kZstd ? ".zst" : compression == Compression::kPlanes ? ".planes.zst" : "";
}

Compression CompressionOf(std::string_view file_name) {
  for (const Compression compression : {Compression::kPlanes, Compression::kZstd})
    if (file_name.ends_with(CompressionSuffix(compression))) return compression;
  return Compression::kNone;
}

std::string_view PlainName(std::string_view file_name) {
  file_name.remove_suffix(CompressionSuffix(CompressionOf(file_name)).size());
  return file_name;
}

bool IsShardFile(std::string_view path) { return PlainName(path).ends_with(".safetensors"); }

ShardFrames::ShardFrames(uint64_t header_bytes) { frames_.push_back({.bytes = header_bytes, .header = true}); }

void ShardFrames::Add(DType type, uint64_t bytes) {
  if (bytes == 0) return;
  const PlaneSplit split = SplitOf(type);
  const bool small = bytes <= kFrameBytes;
  if (ShardFrame& last = frames_.back(); open_ && small && last.split == split && bytes <= kFrameBytes - last.bytes) {
    last.bytes += bytes;
    return;
  }
  uint64_t begin = frames_.back().begin + frames_.back().bytes;
  for (uint64_t end = begin + bytes; begin < end; begin += kFrameBytes)
    frames_.push_back({.begin = begin, .bytes = std::min(kFrameBytes, end - begin), .split = split});
  open_ = small;
}

}  // namespace braid
