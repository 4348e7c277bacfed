// An input file, seen through windows that are mapped when they are needed and unmapped behind the cursor.
//
// A window is a map of its own, not a range of one large map, because that is what bounds resident memory: since
// Linux 6.18 a fault maps the whole folio around it, often megabytes, but never beyond the map (measured: 16 MiB of
// windows of one large map with MADV_DONTNEED behind the cursor kept 88 MB resident). The page cache stays as it is;
// Evict drops ranges of it that nobody will read again. All windows share one descriptor and so its readahead.
//
// The map of a large window is of whole huge pages. Where the page cache has them, as it has since Linux 6.16 of what
// was read in order on ext4, one fault then maps 2 MiB, but only what the map has all of: 44,000 to 64,000 faults
// instead of 78,000 to 92,000, and 0.22 s of system time instead of 0.32, in the warm merge of 1.24 B (EPYC VM).
//
// Thread-safe. A window may outlive its file, whose descriptor it does not need.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <string>

#include "io/input_file.h"
#include "io/sigbus_guard.h"

namespace braid {

class MappedWindow {
 public:
  MappedWindow() = default;

  const std::byte* data() const { return static_cast<const std::byte*>(region_.get_address()) + skip_; }
  size_t size() const { return bytes_; }

  // Makes every page resident, in order. What cannot be read shows in CheckGuard. `cached`: the file is likely in the
  // page cache, where a fault brings its neighbours along, so touching a few pages is enough.
  void Touch(bool cached = false) const;

 private:
  friend class MappedFile;
  boost::interprocess::mapped_region region_;
  size_t skip_ = 0, bytes_ = 0;   // of the region: what is not ours, and what is
  GuardedRegion guard_;
};

class MappedFile : public InputFile {
 public:
  using InputFile::InputFile;

  // Maps bytes [offset, offset + bytes), which must lie in the file; any alignment. No bytes: an empty window.
  // Throws Error.
  MappedWindow Map(uint64_t offset, uint64_t bytes) const;
  // What a window of so many bytes may keep resident, on average over those that follow each other: they share the huge
  // pages at their ends.
  static uint64_t ResidentBytes(uint64_t bytes);

  // Copies bytes of the file, through the page cache: for ranges too short for a map of their own. Throws Error.
  void Read(uint64_t offset, uint64_t bytes, std::byte* to) const;

  // Share of the file (0 to 1) in the page cache, estimated from a few samples.
  double CachedShare() const;
};

// Throws when a guarded access failed: Error(kInputChanged) for a file that shrank, Error(kIo) for a disk that
// could not read it.
void CheckGuard();

}  // namespace braid
