// Any range of a compressed shard, as if it were plain. Frames are decoded by whoever reads, so several threads decode
// at once; a frame that a range cuts is kept for the range that comes next, as far as there is room, because tiles and
// small tensors come in the order of the file. Frames that are wanted as a whole are decoded to where they are wanted
// (or, of byte planes, joined there) and not kept.
//
// Thread-safe. All memory is that of a DecodedFrames, which many files share.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "io/compressed_shard.h"
#include "io/direct_file.h"
#include "io/huge_pages.h"
#include "io/mapped_file.h"

namespace braid {

// Decoders, and frames that are kept. Memory is taken when it is first needed and goes with the object, which outlives
// all files that use it.
class DecodedFrames {
 public:
  // `sizes`: of all shards that will be read.
  explicit DecodedFrames(const DecodingSizes& sizes) : sizes_(sizes), slots_(sizes.kept) {}

  // Fills `compressed` with the bytes of a frame of the file and whole blocks around it; returns where it begins.
  using Fetch = std::function<const std::byte*(const CompressedFrame& frame, std::byte* compressed)>;

  // Bytes [begin, begin + bytes) of a frame's plain bytes. Throws Error.
  void Read(const CompressedShard& shard, const CompressedFrame& frame, uint64_t begin, uint64_t bytes, std::byte* to,
            const Fetch& fetch);

 private:
  struct Decoder {
    FrameDecoder decoder;
    HugePages compressed;
  };
  struct Slot {
    const CompressedFrame* frame = nullptr;
    bool decoded = false;
    size_t users = 0;
    uint64_t last_use = 0;
    HugePages content;
  };

  void Decode(const CompressedShard& shard, const CompressedFrame& frame, std::byte* content, const Fetch& fetch);
  Slot* Find(const CompressedFrame& frame);
  Slot* TakeOldest();
  void Release(Slot* slot, bool needed_again);

  const DecodingSizes sizes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Decoder>> decoders_;   // those that nobody uses
  size_t num_decoders_ = 0;
  uint64_t uses_ = 0;
};

class CompressedFile {
 public:
  // As InputFile. `direct`: past the page cache. Keeps the shard; `frames` must outlive it.
  CompressedFile(std::shared_ptr<const CompressedShard> shard, const FileIdentity& expected, bool direct,
                 DecodedFrames* frames);

  // Copies bytes [begin, begin + bytes) of the plain shard, which must lie in it, frame by frame. `tensor`: whose they
  // are, for errors. Throws Error.
  void Read(uint64_t begin, uint64_t bytes, std::byte* to, const std::string& tensor);

  const CompressedShard& shard() const { return *shard_; }
  const InputFile& file() const { return direct_ ? static_cast<const InputFile&>(*direct_) : *cached_; }
  const MappedFile* cached() const { return cached_ ? &*cached_ : nullptr; }   // null: read past the page cache

 private:
  const std::byte* Fetch(const CompressedFrame& frame, std::byte* compressed);

  std::shared_ptr<const CompressedShard> shard_;
  DecodedFrames& frames_;
  std::optional<MappedFile> cached_;   // one of these
  std::optional<DirectFile> direct_;
};

}  // namespace braid
