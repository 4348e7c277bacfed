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

ShardFrames::ShardFrames(uint64_t header_bytes) { runs_.push_back({.bytes = header_bytes, .header = true}); }

void ShardFrames::Add(DType type, uint64_t bytes) {
  if (bytes == 0) return;
  const PlaneSplit split = SplitOf(type);
  const bool small = bytes <= kFrameBytes;
  if (ShardFrame& last = runs_.back(); open_ && small && last.split == split && bytes <= kFrameBytes - last.bytes) {
    last.bytes += bytes;
    return;
  }
  runs_.push_back({.begin = runs_.back().begin + runs_.back().bytes, .bytes = bytes, .split = split});
  count_ += (bytes - 1) / kFrameBytes + 1;
  open_ = small;
}

std::optional<ShardFrame> ShardFrames::Next() {
  if (next_ == runs_.size()) return std::nullopt;
  ShardFrame& run = runs_[next_];
  ShardFrame frame = run;
  if (!run.header) frame.bytes = std::min(run.bytes, kFrameBytes);
  run.begin += frame.bytes, run.bytes -= frame.bytes;
  if (run.bytes == 0) ++next_;
  return frame;
}

std::vector<ShardFrame> ShardFrames::Take() {
  std::vector<ShardFrame> frames;
  frames.reserve(count_);
  while (const std::optional<ShardFrame> frame = Next()) frames.push_back(*frame);
  return frames;
}

}  // namespace braid
