// Memory that direct reads go into: one buffer for all sources of a tile, kept for the next tile when this one lets go
// of it. What is kept never exceeds what the budget has free, so that used and unused buffers together stay within it.
//
// Take is for the I/O thread, which has taken the bytes from the budget before. With a buffer its bytes go back to the
// budget, on any thread. Buffers must not outlive the shelf.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "io/huge_pages.h"
#include "pipeline/budget.h"

namespace braid {

class ReadBuffers;

class ReadBuffer {
 public:
  ReadBuffer() = default;
  ReadBuffer(ReadBuffer&& other) noexcept { *this = std::move(other); }
  ReadBuffer& operator=(ReadBuffer&& other) noexcept;
  ~ReadBuffer();
  std::byte* data() const { return memory_.data(); }
  size_t size() const { return memory_.size(); }

 private:
  friend class ReadBuffers;
  ReadBuffers* shelf_ = nullptr;
  HugePages memory_;
};

class ReadBuffers {
 public:
  explicit ReadBuffers(Budget* budget) : budget_(*budget) {}
  ReadBuffers(const ReadBuffers&) = delete;

  // `size` is a multiple of the page size, or 0. Throws Error(kMemory).
  ReadBuffer Take(size_t size);

  // Returns when at most so many bytes are in buffers that are in use, at once if they are; false when cancelled.
  bool WaitForReturns(size_t most);
  void Cancel();   // any thread; for good

  // Of buffers that are kept but not in use. Any thread.
  size_t IdleBytes() const;

 private:
  friend class ReadBuffer;
  HugePages Reuse(size_t size);   // empty when there is none
  std::vector<HugePages> TakeSurplus();
  void Give(HugePages memory);

  Budget& budget_;
  mutable std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<HugePages> idle_;  // the longest unused first
  size_t idle_bytes_ = 0, used_bytes_ = 0;
  bool cancelled_ = false;
};

}  // namespace braid
