// Writes one output file whose size is known beforehand, in any order, durably, without leaving dirty pages.
//
// Space is reserved when the file is made, so that a full disk shows before the work starts. Written bytes go to
// the disk in windows of 8 MiB: when a window is full its writeback starts; two windows later it is waited for and
// dropped from the page cache. Not thread-safe; one writer thread drives all shards of an output.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "io/os.h"

namespace braid {

class ShardWriter {
 public:
  // Creates `path`, which must not exist. Throws Error.
  ShardWriter(const std::string& path, uint64_t bytes);

  void Write(uint64_t offset, const void* data, size_t bytes);

  // Makes everything durable and closes. Call once, after the last byte.
  void Finish();

  // Every byte was written (each exactly once).
  bool complete() const { return written_ == size_; }

  static constexpr uint64_t kWindow = 8 << 20;

 private:
  void CleanWindow(uint64_t window);

  std::string path_;
  uint64_t size_;
  uint64_t written_ = 0;
  Fd fd_;
  std::vector<uint32_t> missing_;    // bytes per window still to come
  std::deque<uint64_t> in_flight_;   // windows whose writeback has started
};

// A small file, written and fsynced. Fails if it exists. Throws Error.
void WriteDurably(const std::string& path, std::string_view text);

// A copy of a file of any size, fsynced. Fails if `to` exists. Throws Error.
void CopyDurably(const std::string& from, const std::string& to);

// fsync of a directory, so that the names in it survive a crash. Throws Error.
void SyncDirectory(const std::string& path);

}  // namespace braid
