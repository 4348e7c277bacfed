// Streams the tensors of a checkpoint through a bounded window: what inspect, diff and verify read with.
//
// Pages become resident in the order of the calls, which keeps a disk at its full speed, and leave this process
// when the range goes; the page cache is left alone. Frames of a compressed shard are decoded when a range is loaded,
// so that several threads do it. One shard is open at a time (and those whose ranges are still held), so the limit on
// open files does not matter.
//
// TensorReader belongs to one thread at a time; a ResidentRange may be used and destroyed on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "io/checkpoint.h"
#include "io/compressed_file.h"
#include "io/huge_pages.h"
#include "io/mapped_file.h"
#include "pipeline/shelf.h"

namespace braid {

// Bytes of a tensor, let go of on destruction. Move-only.
class ResidentRange {
 public:
  // To be called before data(), on any thread. Throws Error.
  void Load();
  const std::byte* data() const { return compressed_ != nullptr ? decoded_.get() : window_.data(); }
  uint64_t bytes() const { return bytes_; }

  // Throws Error when the bytes may not have been those of the file. Ask before trusting a result.
  void CheckUnchanged() const;

 private:
  friend class TensorReader;
  std::shared_ptr<const MappedFile> file_;
  MappedWindow window_;  // goes before its file
  std::shared_ptr<CompressedFile> compressed_;   // or this, and
  std::shared_ptr<std::byte> decoded_;           // memory of the reader's
  uint64_t begin_ = 0;                           // in the plain shard
  const std::string* tensor_ = nullptr;
  uint64_t bytes_ = 0;
};

class TensorReader {
 public:
  explicit TensorReader(const Checkpoint& checkpoint);

  // `bytes` bytes from `begin` on, at most kWindowBytes and both within the tensor. The reader and the checkpoint must
  // outlive the range. Throws Error.
  ResidentRange Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes);

 private:
  std::shared_ptr<std::byte> TakeBuffer();

  const Checkpoint& checkpoint_;
  Shelf<HugePages> buffers_;
  std::unique_ptr<DecodedFrames> frames_;        // if any shard is compressed
  std::shared_ptr<const MappedFile> file_;       // one of these
  std::shared_ptr<CompressedFile> compressed_;
  uint32_t shard_ = 0;  // of the file that is open
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
