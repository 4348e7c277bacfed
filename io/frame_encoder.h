// Compresses the frames of a shard, one after another, in any order: the caller puts them together (shard_frames.h).
//
//   FrameEncoder encoder(Compression::kPlanes);            // one per thread
//   for (const ShardFrame& frame : frames) {               // any of them on any thread
//     EncodedFrame encoded = encoder.Encode(frame, plain_bytes_of_the_frame, to);
//     ... append `encoded.bytes` bytes, and encoded.Entries() to the list for SeekTableBytes
//   }
//
// The same bytes for the same plain bytes, whatever the encoder did before, with the same libzstd. Not thread-safe;
// takes no memory per frame once it has compressed one (but for the header's frame, where that is large).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "io/seek_table.h"
#include "io/shard_frames.h"

struct ZSTD_CCtx_s;

namespace braid {

// A frame of a shard as one or more frames of zstd (marks and planes; the header's of a planes file has the preamble in
// front), one behind the other.
struct EncodedFrame {
  size_t bytes = 0;
  std::array<SeekEntry, kMostParts> entries;
  size_t num_entries = 0;
  std::span<const SeekEntry> Entries() const { return std::span(entries).first(num_entries); }
};

class FrameEncoder {
 public:
  explicit FrameEncoder(Compression compression);   // kZstd or kPlanes. Throws Error(kMemory)

  // `plain`: the frame.bytes bytes of the shard from frame.begin on. `to`: room for MostBytes of that. Throws Error.
  EncodedFrame Encode(const ShardFrame& frame, const std::byte* plain, std::byte* to);

  // What a frame of so many plain bytes can become at most.
  static size_t MostBytes(uint64_t plain_bytes);

  // What an encoder occupies, for the budget. The header's frame takes its own size besides.
  static uint64_t MemoryBytes(Compression compression);

 private:
  struct Free {
    void operator()(ZSTD_CCtx_s* context) const;
  };

  int LevelFor(const std::byte* content, size_t bytes, std::byte* to);
  size_t Compress(const std::byte* content, size_t bytes, int level, std::byte* to);
  size_t CompressPlane(const std::byte* plane, size_t bytes, std::byte* to);

  Compression compression_;
  std::unique_ptr<ZSTD_CCtx_s, Free> context_;
  std::unique_ptr<std::byte[]> marks_, planes_;   // of a frame
};

}  // namespace braid
