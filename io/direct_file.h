// An input file read past the page cache (O_DIRECT) into memory of the caller's. The disk gives whole blocks, so what
// is read is the aligned superset of what is wanted; where the file system refuses O_DIRECT, or a read does not end
// where it should, the file is read plainly from then on, through the page cache.
//
// Beside MappedFile it needs no page faults and no readahead, which network file systems and old kernels do a few
// pages at a time, it leaves the page cache alone, and a file that shrinks is an error of a call, not a signal. Only
// several reads in flight make it fast. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "io/input_file.h"

namespace braid {

class DirectFile : public InputFile {
 public:
  // Offsets, lengths and addresses of reads are multiples of this.
  static constexpr uint64_t kBlock = 4096;

  // Whole blocks around a range of a file; the range begins `skip` bytes behind their beginning.
  struct Superset {
    uint64_t begin;
    size_t skip, bytes;
  };
  static Superset SupersetOf(uint64_t offset, uint64_t bytes) {
    const uint64_t begin = offset / kBlock * kBlock, skip = offset - begin;
    return {begin, skip, (skip + bytes + kBlock - 1) / kBlock * kBlock};
  }

  // As InputFile.
  DirectFile(const std::string& path, const FileIdentity& expected);

  // Whether reads go past the page cache. May turn false at any time, never true again.
  bool direct() const { return direct_.load(std::memory_order_relaxed); }

  // Fills `to` with bytes [begin, begin + bytes) of the file; all three are multiples of kBlock. The first `needed`
  // bytes must be there, those behind them only if the file reaches so far. Throws Error: kInputChanged when the file
  // ends before, kIo when the disk cannot read it.
  void Read(uint64_t begin, size_t bytes, size_t needed, std::byte* to);

 private:
  void ReadPlainly();

  std::atomic<bool> direct_;
};

}  // namespace braid
