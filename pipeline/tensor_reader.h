// Streams the tensors of a checkpoint through a bounded window: what inspect, diff and verify read with.
//
// Pages become resident in the order of the calls, which keeps a disk at its full speed, and leave this process
// when the range goes; the page cache is left alone. Frames of a compressed shard are decoded when a range is loaded,
// so that several threads do it. Streams are read as they come, into memory, when a range is asked for. One shard is
// open at a time (and those whose ranges are still held), so the limit on open files does not matter.
//
// TensorReader belongs to one thread at a time; a ResidentRange may be used and destroyed on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/compressed_file.h"
#include "io/huge_pages.h"
#include "io/mapped_file.h"
#include "io/tensor_stream.h"
#include "pipeline/shelf.h"

namespace braid {

// Bytes of a tensor, let go of on destruction. Move-only.
class ResidentRange {
 public:
  // To be called before data(), on any thread. Throws Error.
  void Load();
  const std::byte* data() const { return decoded_ != nullptr ? decoded_.get() : window_.data(); }
  uint64_t bytes() const { return bytes_; }

  // Throws Error when the bytes may not have been those of the file. Ask before trusting a result.
  void CheckUnchanged() const;

 private:
  friend class TensorReader;
  std::shared_ptr<const MappedFile> file_;
  MappedWindow window_;  // goes before its file
  std::shared_ptr<CompressedFile> compressed_;   // or this, or
  std::shared_ptr<InputStream> stream_;          // this, and
  std::shared_ptr<std::byte> decoded_;           // memory of the reader's
  uint64_t begin_ = 0;                           // in the plain shard
  const std::string* tensor_ = nullptr;
  uint64_t bytes_ = 0;
};

class TensorReader {
 public:
  explicit TensorReader(const Checkpoint& checkpoint);

  // `bytes` bytes from `begin` on, at most kWindowBytes and both within the tensor. Those of a stream in the order in
  // which they come. The reader and the checkpoint must outlive the range. Throws Error.
  ResidentRange Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes);

  // Reads what nobody has asked for of streams, which must end where they should. To be called when all is read.
  // Throws Error.
  void Finish();

 private:
  std::shared_ptr<std::byte> TakeBuffer();
  void Open(uint32_t shard);
  void FinishStream();

  const Checkpoint& checkpoint_;
  Shelf<HugePages> buffers_;
  std::unique_ptr<DecodedFrames> frames_;        // if any shard is compressed
  std::shared_ptr<const MappedFile> file_;       // one of these
  std::shared_ptr<CompressedFile> compressed_;
  std::optional<TensorStream> stream_;
  std::optional<uint32_t> shard_;   // of the file that is open
  std::vector<bool> finished_;      // streams that have ended where they should, by shard
};

// The most bytes of one source that are read at once. Times two sources and kMostWindows, what may be resident.
inline constexpr uint64_t kWindowBytes = 2 << 20;
inline constexpr size_t kMostWindows = 10;

// Windows that keep every core busy: never more than kMostWindows.
size_t WindowsInFlight();

// Whole reduction blocks of elements of so many bits that fill a window.
uint64_t WindowElements(int bits);

// Bytes of `elements` elements that fill whole bytes.
inline uint64_t BytesOf(uint64_t elements, int bits) { return elements / 8 * bits + elements % 8 * bits / 8; }

}  // namespace braid
