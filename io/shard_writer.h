// Writes one output file whose size is known beforehand, in any order, durably, without leaving dirty pages.
//
// Space is reserved when the file is made, so that a full disk shows before the work starts. The whole pages of a
// write go straight from its buffer to the disk (O_DIRECT), so Write returns when the disk has taken them and takes
// next to no processor time; what it has of pages that it shares with its neighbours goes through the page cache.
//
// Where the file system has no direct writes, or the buffer does not lie as the file does (`Phase`), everything goes
// through the page cache, and from there to the disk in windows of 8 MiB: when a window is full its writeback starts;
// two windows later it is waited for and dropped from the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/os.h"
#include "io/page_writer.h"

namespace braid {

// Of a file.
struct ByteRange {
  uint64_t begin = 0, end = 0;
};

class ShardWriter {
 public:
  // Creates `path`, which must not exist. Throws Error.
  ShardWriter(const std::string& path, uint64_t bytes);

  // Of the file, these ranges alone, ascending and apart. Others write the rest, before, after or meanwhile, and any of
  // them may have created it. Throws Error.
  ShardWriter(const std::string& path, uint64_t bytes, std::span<const ByteRange> ranges);

  // Every byte of the file, or of the ranges, by exactly one call. Any thread, several at once. Throws Error.
  void Write(uint64_t offset, const void* data, size_t bytes);

  // What has been written is durable now, in a file that nobody has removed. Any thread. Throws Error.
  void Sync();

  // Makes everything durable and closes. Call once, after the last byte. Throws Error.
  void Finish();

  // Every byte was written. Not while a Write runs.
  bool complete() const { return written_ == to_write_; }

  // Where within a page a buffer must begin for its bytes to be written directly.
  static constexpr uint64_t Phase(uint64_t offset) { return PageWriter::Phase(offset); }

  static constexpr uint64_t kPage = PageWriter::kPage;
  static constexpr uint64_t kWindow = 8 << 20;

 private:
  ShardWriter(const std::string& path, uint64_t bytes, std::span<const ByteRange> ranges, int flags);
  void CountWritten(uint64_t offset, uint64_t bytes);
  void CleanWindow(uint64_t window);

  std::string path_;
  uint64_t to_write_ = 0;
  Fd fd_;
  std::optional<PageWriter> pages_;

  std::mutex mutex_;                 // guards what follows
  uint64_t written_ = 0;
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
