// How a shard is compressed: which runs of its bytes become frames of their own. Decided by the layout of the shard
// alone (names and values, tiles, threads and budgets have no say), so that compressed bytes are as reproducible as
// plain ones, and a reader knows from the safetensors header which frame holds what.
//
// Both kinds of file are zstd files in the seekable format: independent frames, each with its content's size and
// checksum, and at the end a skippable frame with the sizes of all of them (seek_table.h).
//
//   X.safetensors.zst          frame 0 is the safetensors header (its 8 bytes of length, too), then frame after frame
//                              the data. `zstd -d` gives the shard.
//   X.safetensors.planes.zst   frame 0 is kPlanesPreamble, which says what this is to people and keeps every reader of
//                              safetensors from what `zstd -d` makes of the file. Frame 1 is the safetensors header.
//                              Then the same runs of data, but those of n bf16, f16 or f32 elements as one frame with
//                              a mark for each of them, one bit, (n + 7) / 8 bytes; and as one frame per byte plane of
//                              the k elements that are marked, k bytes each, from the most to the least significant
//                              (ops/byte_planes.h). What is not marked is zero. `braid cat` gives the shard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/byte_planes.h"
#include "ops/dtype.h"

namespace braid {

enum class Compression : uint8_t { kNone, kZstd, kPlanes };

std::string_view CompressionName(Compression compression);     // "none", "zstd", "planes": as recipes spell it
std::string_view CompressionSuffix(Compression compression);   // "", ".zst", ".planes.zst": behind a plain shard's name
// By the end of a file's name alone.
Compression CompressionOf(std::string_view file_name);
// The name without that end: "model.safetensors" of "model.safetensors.planes.zst".
std::string_view PlainName(std::string_view file_name);
// Whether a path is that of a shard, plain or compressed, rather than of a directory.
bool IsShardFile(std::string_view path);

inline constexpr std::string_view kPlanesPreamble =
    "braid planes 1: the byte planes of a safetensors file, which 'braid cat' puts together again.\n";

inline constexpr uint64_t kFrameBytes = 2 << 20;   // of a plain shard in one frame; the header's may have more

// A run of a plain shard that is compressed by itself: one frame, or those of its marks and byte planes.
struct ShardFrame {
  uint64_t begin = 0;                      // from the start of the plain shard
  uint64_t bytes = 0;
  PlaneSplit split = PlaneSplit::kNone;    // of its elements; what a zstd file does not care about
  bool header = false;                     // the first: the safetensors header
};

// Frames of zstd of a run in a planes file: of floats, their marks come first.
constexpr size_t kMostParts = 5;
constexpr size_t PartsOf(PlaneSplit split) { return split == PlaneSplit::kNone ? 1 : 1 + PlanesOf(split); }

// Lists the frames of a shard whose tensors are added in the order in which they lie in it: the header; then whole
// tensors together as long as they have the same split and 2 MiB hold them; of larger tensors, pieces of 2 MiB.
class ShardFrames {
 public:
  // `header_bytes`: all that is in front of the first tensor.
  explicit ShardFrames(uint64_t header_bytes);
  void Add(DType type, uint64_t bytes);

  uint64_t count() const { return count_; }
  // Once all tensors are added: one frame after the other, or nothing behind the last. A header that nobody has
  // compared with its data may claim frames without end, so they are not listed before they are asked for.
  std::optional<ShardFrame> Next();
  // All of them, of a shard that is as long as it says.
  std::vector<ShardFrame> Take();
  uint64_t MemoryBytes() const { return runs_.capacity() * sizeof(ShardFrame); }

 private:
  std::vector<ShardFrame> runs_;   // frames; of a large tensor all pieces as one
  uint64_t count_ = 1;
  size_t next_ = 0;                // what Next has not returned begins there
  bool open_ = false;              // whether the last frame may grow
};

}  // namespace braid
