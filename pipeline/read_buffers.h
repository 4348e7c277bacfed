// Memory that direct reads go into: one buffer for all sources of a tile, kept for the next tile when this one lets go of
// it. What is kept never exceeds what the budget has free, so that used and unused buffers together stay within it.
//
// Buffers begin at huge pages and are made of them as far as they reach: a request for 2 MiB in pages of 4 KiB has 512
// pieces, which the disk takes in many small requests (four readers, virtio: 1.1 GB/s; in huge pages 2.5 to 3.8).
//
// Take is for the I/O thread, which has taken the bytes from the budget before. With a buffer its bytes go back to the
// budget, on any thread. Buffers must not outlive the shelf.
#pragma once

#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "pipeline/budget.h"

namespace braid {

class ReadBuffers;

class ReadBuffer {
 public:
  ReadBuffer() = default;
  ReadBuffer(ReadBuffer&& other) noexcept { *this = std::move(other); }
  ReadBuffer& operator=(ReadBuffer&& other) noexcept;
  ~ReadBuffer();
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  friend class ReadBuffers;
  ReadBuffers* shelf_ = nullptr;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class ReadBuffers {
 public:
  explicit ReadBuffers(Budget* budget) : budget_(*budget) {}
  ~ReadBuffers();
  ReadBuffers(const ReadBuffers&) = delete;

  // `size` is a multiple of the page size, or 0. Throws Error(kMemory).
  ReadBuffer Take(size_t size);

  // Of buffers that are kept but not in use. Any thread.
  size_t IdleBytes() const;

 private:
  friend class ReadBuffer;
  struct Memory {
    std::byte* data;
    size_t size;
  };

  void Reuse(ReadBuffer* buffer);
  std::vector<Memory> TakeSurplus();
  void Give(Memory memory);

  Budget& budget_;
  mutable std::mutex mutex_;
  std::vector<Memory> idle_;  // the longest unused first
  size_t idle_bytes_ = 0;
};

}  // namespace braid
