// FaultyOs for reads of data: refuses O_DIRECT, stops reads short, makes the nth of them fail, or says what kind of
// file system there is. Headers are read as ever: reads of data are those of whole blocks into aligned memory.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <optional>

#include "tests/io/faulty_os.h"

namespace braid::fixture {

class FaultyReads : public FaultyOs {
 public:
  bool refuse_direct_open = false;                  // as a file system without O_DIRECT
  bool refuse_direct_read = false;                  // as one whose blocks are larger
  std::function<size_t(size_t)> shorten_read;       // bytes asked for -> bytes read
  std::function<void(int)> before_read;             // gets the number of the read, from 1
  int fail_from = kNever, error_number = EIO;       // reads of data, counted from 1
  std::optional<uint32_t> magic;                    // of statfs

  int reads() const { return reads_; }
  int direct_reads() const { return direct_reads_; }
  int evictions() const { return evictions_; }

  int Open(const char* path, int flags, mode_t mode) override {
    if (refuse_direct_open && (flags & O_DIRECT) != 0) return errno = EINVAL, -1;
    return Os::Open(path, flags, mode);
  }
  ssize_t Pread(int fd, void* buffer, size_t bytes, off_t offset) override {
    const bool direct = (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
    const bool whole_blocks = bytes % 4096 == 0 && reinterpret_cast<uintptr_t>(buffer) % 4096 == 0;
    if (!direct && !whole_blocks) return Os::Pread(fd, buffer, bytes, offset);
    const int n = ++reads_;
    direct_reads_ += direct;
    if (before_read) before_read(n);
    if (n >= fail_from) return errno = error_number, -1;
    if (direct && refuse_direct_read) return errno = EINVAL, -1;
    const ssize_t got = Os::Pread(fd, buffer, bytes, offset);
    return got > 0 && shorten_read ? static_cast<ssize_t>(shorten_read(static_cast<size_t>(got))) : got;
  }
  int Fadvise(int fd, off_t offset, off_t bytes, int advice) override {
    evictions_ += advice == POSIX_FADV_DONTNEED;
    return Os::Fadvise(fd, offset, bytes, advice);
  }
  int Statfs(const char* path, struct statfs* out) override {
    const int result = Os::Statfs(path, out);
    if (magic) out->f_type = static_cast<decltype(out->f_type)>(*magic);
    return result;
  }

 private:
  std::atomic<int> reads_{0}, direct_reads_{0}, evictions_{0};
};

}  // namespace braid::fixture
