// A compressed shard with a seek table: where each frame lies in the file, and what of the plain shard it holds
// (shard_frames.h). Every number is checked before it is used: the table against the file, frames against what the
// safetensors header says there must be, sizes against limits, and, when a frame is decoded, its own header and
// checksum against the table.
//
// CompressedShard is immutable; FrameDecoder is for one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/error.h"
#include "io/safetensors.h"
#include "io/seek_table.h"
#include "io/shard_frames.h"

struct ZSTD_DCtx_s;

namespace braid {

class FrameDecoder;

// A run of the plain shard that is decoded as a whole: a frame of zstd, or those of its marks and byte planes (parts).
struct CompressedFrame {
  uint64_t begin = 0;                // in the plain shard
  uint64_t offset = 0;               // in the file
  uint32_t bytes = 0, compressed = 0;
  uint32_t content = 0;              // bytes of all parts, decoded
  uint32_t marked = 0;               // elements in its byte planes, if it has some
  uint32_t first_part = 0;           // counted from the file's beginning
  PlaneSplit split = PlaneSplit::kNone;
};

class CompressedShard {
 public:
  // Frames of others may be larger than ours, but not so that one would not fit into memory.
  static constexpr uint64_t kMostFrameBytes = 16 << 20;

  struct Opened {
    std::shared_ptr<const CompressedShard> shard;
    SafetensorsHeader header;
  };
  // Reads the table and the safetensors header. Nothing: the file has no seek table, so it is not read here but from
  // its beginning, like a pipe. Throws Error(kBadInput) for one that has a table but is not what it says.
  static std::optional<Opened> Open(int fd, uint64_t file_bytes, const std::string& path);

  // The header's bytes of the plain shard again, length and JSON. Throws Error.
  std::string ReadHeaderBytes(int fd) const;

  const std::string& path() const { return path_; }
  Compression compression() const { return compression_; }   // by its content, not by its name
  uint64_t bytes() const { return bytes_; }                  // of the plain shard

  const std::vector<CompressedFrame>& frames() const { return frames_; }
  size_t FrameAt(uint64_t plain_offset) const;   // the frame that holds this byte of the plain shard
  const SeekEntry& Part(const CompressedFrame& frame, size_t part) const { return entries_[frame.first_part + part]; }

  uint64_t most_compressed() const { return most_compressed_; }  // bytes of a frame of data (not the header's)
  uint64_t most_content() const { return most_content_; }
  uint64_t MemoryBytes() const;

  // What is wrong with a frame, as an error that names it.
  Error FrameError(const CompressedFrame& frame, size_t part, std::string_view message) const;

 private:
  CompressedShard(std::string path, std::vector<SeekEntry> entries);
  void Recognise(int fd);
  CompressedFrame AppendFrame(int fd, CompressedFrame frame, FrameDecoder* decoder, std::string* text) const;
  void AddFrames(const SafetensorsHeader& header);
  void AddFrame(uint64_t bytes, PlaneSplit split, bool is_data, CompressedFrame* next);
  uint64_t ContentOf(const CompressedFrame& frame, size_t part) const;

  std::string path_;
  Compression compression_ = Compression::kZstd;
  uint64_t bytes_ = 0, most_compressed_ = 0, most_content_ = 0;
  std::vector<SeekEntry> entries_;
  std::vector<CompressedFrame> frames_;
};

class FrameDecoder {
 public:
  FrameDecoder();   // throws std::bad_alloc

  // `compressed`: the frame's bytes of the file. `content`: room for frame.content, which TakePlain makes plain. Throws
  // Error(kBadInput) naming file and frame.
  void Decode(const CompressedShard& shard, const CompressedFrame& frame, const std::byte* compressed,
              std::byte* content);

  static constexpr uint64_t kMemoryBytes = 128 << 10;   // of a decoder; 95,992 with zstd 1.5.4

 private:
  struct Free {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_DCtx_s, Free> context_;
};

// How much is decoded at once, and kept (compressed_file.h), and the memory that it takes. None: nothing is compressed.
struct DecodingSizes {
  uint32_t decoders = 0;                            // frames decoded at once
  uint32_t kept = 0;                                // decoded frames that are there at once; readers wait for one
  uint64_t most_compressed = 0, most_content = 0;   // bytes of a frame
  void Cover(const CompressedShard& shard);
  uint64_t MemoryBytes() const;
};

// Bytes [begin, begin + bytes) of a frame's plain bytes from its content as it was decoded; any of them.
void TakePlain(const CompressedFrame& frame, const std::byte* content, uint64_t begin, uint64_t bytes, std::byte* to);

}  // namespace braid
