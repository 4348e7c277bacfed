// Writes ranges of an open file. The whole pages of a range go straight from memory to the disk (O_DIRECT) where it
// lies in memory as it does in the file (`Phase`) and the file system lets us; the rest goes through the page cache.
//
// A page of the file is written either directly, by the one call that covers all of it, or through the page cache:
// never both, as the two would overwrite each other. Thread-safe for ranges that are apart.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "io/os.h"

namespace braid {

class PageWriter {
 public:
  static constexpr uint64_t kPage = 4096;
  // Where within a page a buffer must begin for its bytes to be written directly.
  static constexpr uint64_t Phase(uint64_t offset) { return offset % kPage; }

  // `fd` stays the caller's, and open. `name`: for errors. Throws Error.
  PageWriter(int fd, std::string name);

  // Throws Error.
  void Write(uint64_t offset, const void* data, size_t bytes);

 private:
  void WriteDirect(uint64_t offset, const std::byte* data, size_t bytes);

  int fd_;
  std::string name_;
  Fd direct_fd_;
  std::atomic<bool> direct_{false};
};

}  // namespace braid
