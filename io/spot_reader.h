// Reads a few bytes of a file here and there without leaving a trace: from the page cache when most of the file is
// there, otherwise past it. Through a map, on a disk that reads 8 MiB ahead, 256 spots read 2 GiB; and single pages
// that stay in the cache cut the large reads to come into pieces (240 KB instead of 4 MB, 1.5 GB/s instead of 2.8, with
// 8,192 spots in 2 GB).
//
// Not thread-safe.
#pragma once

#include <optional>
#include <string>

#include "io/direct_file.h"

namespace braid {

class SpotReader {
 public:
  static constexpr size_t kMostBytes = DirectFile::kBlock;   // of one spot

  // As InputFile. `cached`: most of the file is in the page cache.
  SpotReader(const std::string& path, const FileIdentity& expected, bool cached);

  // Throws Error.
  void Read(uint64_t offset, size_t bytes, void* out);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Fd cached_;                            // one of these
  std::optional<DirectFile> uncached_;
  alignas(DirectFile::kBlock) std::byte blocks_[2 * DirectFile::kBlock];
};

}  // namespace braid
