// A file for what does not fit memory, gone when the process ends, however it ends: it never has a name (or, where the
// file system cannot do that, only while it is being opened). Sparse: what was never written takes no space.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "io/os.h"

namespace braid {

// TMPDIR, or /tmp.
std::string TemporaryDirectoryPath();

class TemporaryFile {
 public:
  // Throws Error.
  explicit TemporaryFile(const std::string& directory = TemporaryDirectoryPath());

  // Throw Error; reading more than was written is one.
  void Write(uint64_t offset, const void* data, size_t bytes);
  void Read(uint64_t offset, void* to, size_t bytes) const;

 private:
  std::string path_;   // for messages
  Fd fd_;
};

}  // namespace braid
