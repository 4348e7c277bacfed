// A read-only map of one input file, made resident ahead of its use and released behind it.
//
// Two different things are given back: Unmap returns the process's pages (what VmHWM counts) and leaves the page
// cache alone; Evict drops the page cache of ranges nobody will read again. Addresses stay valid throughout: a
// page touched too late only costs a fault.
//
// Any thread may read; Touch, Unmap and Evict may be called from any thread for any range.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "io/os.h"
#include "io/sigbus_guard.h"

namespace braid {

class MappedFile {
 public:
  // Opens and maps the file, which must still be the one that `expected` describes, otherwise
  // Error(kInputChanged). An empty file maps to nothing. Throws Error.
  MappedFile(const std::string& path, const FileIdentity& expected);
  ~MappedFile();

  const std::byte* data() const { return static_cast<const std::byte*>(region_.get_address()); }
  uint64_t size() const { return identity_.size; }
  const std::string& path() const { return path_; }

  // Faults every page of the range in, in order.
  void Touch(uint64_t offset, uint64_t bytes) const;

  // Unmaps the pages of the range, widened to the kernel's fault-around (64 KiB): a fault at the edge maps its
  // neighbours too, and without widening they would stay behind one by one.
  void Unmap(uint64_t offset, uint64_t bytes) const;

  // Takes the range out of the page cache. Works in whole large folios only: use multiples of kEvictWindow.
  void Evict(uint64_t offset, uint64_t bytes) const;

  // Share of the file (0 to 1) in the page cache, estimated from a few samples.
  double CachedShare() const;

  // Throws Error(kInputChanged) when the file shrank under the map or is no longer the one that was opened.
  void CheckUnchanged() const;

  static constexpr uint64_t kEvictWindow = 8 << 20;
  static constexpr uint64_t kFaultAround = 64 << 10;

 private:
  std::string path_;
  FileIdentity identity_;
  Fd fd_;
  boost::interprocess::mapped_region region_;
  std::unique_ptr<GuardedRegion> guard_;
};

}  // namespace braid
