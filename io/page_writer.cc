#include "io/page_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "io/error.h"

namespace braid {

// It takes a page cache whose smallest piece is our page, so no larger pages, and no file system with larger blocks
// (network file systems say so too, and are better off without). Opened by its descriptor, it is surely the same file.
PageWriter::PageWriter(int fd, std::string name) : fd_(fd), name_(std::move(name)) {
  struct stat status;
  if (TheOs().Fstat(fd, &status) < 0) throw SystemError(errno, "look at it", name_);
  if (static_cast<uint64_t>(status.st_blksize) > kPage || static_cast<uint64_t>(::getpagesize()) > kPage) return;
  direct_fd_ = Fd(TheOs().Open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_WRONLY | O_DIRECT));
  direct_ = static_cast<bool>(direct_fd_);
}

void PageWriter::Write(uint64_t offset, const void* data, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  const uint64_t end = offset + bytes;
  const uint64_t first = (offset + kPage - 1) / kPage * kPage, last = end / kPage * kPage;  // its whole pages
  if (!direct_ || first >= last || reinterpret_cast<uintptr_t>(data) % kPage != Phase(offset))
    return WriteExactly(fd_, from, bytes, offset, name_);
  WriteExactly(fd_, from, first - offset, offset, name_);
  WriteDirect(first, from + (first - offset), last - first);
  WriteExactly(fd_, from + (last - offset), end - last, last, name_);
}

void PageWriter::WriteDirect(uint64_t offset, const std::byte* data, size_t bytes) {
  while (bytes > 0 && direct_) {
    const ssize_t put = TheOs().Pwrite(direct_fd_.get(), data, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINVAL) {  // opened, but not for us: blocks of another size, or a write that stopped short
      direct_ = false;
      break;
    }
    if (put <= 0) throw SystemError(put < 0 ? errno : ENOSPC, "write it", name_);
    data += put, offset += static_cast<uint64_t>(put), bytes -= static_cast<size_t>(put);
  }
  WriteExactly(fd_, data, bytes, offset, name_);
}

}  // namespace braid
