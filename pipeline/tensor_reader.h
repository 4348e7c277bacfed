// Streams the tensors of a checkpoint through a bounded window: what inspect, diff and verify read with.
//
// Pages become resident in the order of the calls, which keeps a disk at its full speed, and leave this process
// when the range goes; the page cache is left alone. One shard is open at a time (and those whose ranges are still
// held), so the limit on open files does not matter.
//
// TensorReader belongs to one thread at a time; a ResidentRange may be used and destroyed on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "io/checkpoint.h"
#include "io/mapped_file.h"

namespace braid {

// Bytes of a tensor, unmapped again on destruction. Move-only.
class ResidentRange {
 public:
  ResidentRange(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t bytes);

  const std::byte* data() const { return window_.data(); }
  uint64_t bytes() const { return bytes_; }

  // Throws Error when the bytes may not have been those of the file. Ask before trusting a result.
  void CheckUnchanged() const;

 private:
  std::shared_ptr<const MappedFile> file_;
  MappedWindow window_;  // goes before its file
  uint64_t bytes_;
};

class TensorReader {
 public:
  explicit TensorReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // `bytes` bytes from `begin` on, both within the tensor. Throws Error.
  ResidentRange Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes);

 private:
  const Checkpoint& checkpoint_;
  std::shared_ptr<const MappedFile> file_;
  uint32_t shard_ = 0;  // of file_
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
