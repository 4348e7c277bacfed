#include "io/shard_writer.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "io/error.h"

namespace braid {
namespace {

constexpr int kShare = O_WRONLY | O_CREAT | O_NOFOLLOW, kCreate = kShare | O_EXCL;

Fd Create(const std::string& path, int flags = kCreate) {
  Fd fd(TheOs().Open(path.c_str(), flags, 0666));
  if (!fd) throw SystemError(errno, "create it", path);
  return fd;
}

// visit(window, bytes of the range in it)
template <typename Visit>
void ForEachWindow(uint64_t begin, uint64_t end, Visit visit) {
  for (uint64_t at = begin; at < end;) {
    const uint64_t window = at / ShardWriter::kWindow, next = std::min(end, (window + 1) * ShardWriter::kWindow);
    visit(window, static_cast<uint32_t>(next - at));
    at = next;
  }
}

}  // namespace

ShardWriter::ShardWriter(const std::string& path, uint64_t bytes)
    : ShardWriter(path, bytes, std::array{ByteRange{0, bytes}}, kCreate) {}

ShardWriter::ShardWriter(const std::string& path, uint64_t bytes, std::span<const ByteRange> ranges)
    : ShardWriter(path, bytes, ranges, kShare) {}

ShardWriter::ShardWriter(const std::string& path, uint64_t bytes, std::span<const ByteRange> ranges, int flags)
    : path_(path), fd_(Create(path, flags)), missing_((bytes + kWindow - 1) / kWindow) {
  for (const ByteRange& range : ranges) {
    to_write_ += range.end - range.begin;
    ForEachWindow(range.begin, range.end, [&](uint64_t window, uint32_t here) { missing_[window] += here; });
  }
  if (bytes == 0) return;
  OpenDirect();
  // Whoever comes second finds it done: neither call takes anything away from a file of this size.
  if (TheOs().Fallocate(fd_.get(), static_cast<off_t>(bytes)) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) throw SystemError(errno, "reserve space for it", path);
  if (TheOs().Ftruncate(fd_.get(), static_cast<off_t>(bytes)) < 0) throw SystemError(errno, "size it", path);
}

// A page of the file is written either directly, by the one call that covers all of it, or through the page cache:
// never both, as the two would overwrite each other. That takes a page cache whose smallest piece is our page, so no
// larger pages, and no file system with larger blocks (network file systems say so too, and are better off without).
void ShardWriter::OpenDirect() {
  struct stat status;
  if (TheOs().Fstat(fd_.get(), &status) < 0) throw SystemError(errno, "look at it", path_);
  if (static_cast<uint64_t>(status.st_blksize) > kPage || static_cast<uint64_t>(::getpagesize()) > kPage) return;
  direct_fd_ = Fd(TheOs().Open(path_.c_str(), O_WRONLY | O_DIRECT | O_NOFOLLOW));
  direct_ = static_cast<bool>(direct_fd_);
}

void ShardWriter::Write(uint64_t offset, const void* data, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  const uint64_t end = offset + bytes;
  const uint64_t first = (offset + kPage - 1) / kPage * kPage, last = end / kPage * kPage;  // its whole pages
  if (direct_ && first < last && reinterpret_cast<uintptr_t>(data) % kPage == Phase(offset)) {
    WriteExactly(fd_.get(), from, first - offset, offset, path_);
    WriteDirect(first, from + (first - offset), last - first);
    WriteExactly(fd_.get(), from + (last - offset), end - last, last, path_);
  } else {
    WriteExactly(fd_.get(), from, bytes, offset, path_);
  }
  CountWritten(offset, bytes);
}

void ShardWriter::WriteDirect(uint64_t offset, const std::byte* data, size_t bytes) {
  while (bytes > 0 && direct_) {
    const ssize_t put = TheOs().Pwrite(direct_fd_.get(), data, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINVAL) {  // opened, but not for us: blocks of another size, or a write that stopped short
      direct_ = false;
      break;
    }
    if (put <= 0) throw SystemError(put < 0 ? errno : ENOSPC, "write it", path_);
    data += put, offset += static_cast<uint64_t>(put), bytes -= static_cast<size_t>(put);
  }
  WriteExactly(fd_.get(), data, bytes, offset, path_);
}

// Also what was written directly: a window may hold pages that were not, and a file system may have passed direct
// writes through the page cache on its own account.
void ShardWriter::CountWritten(uint64_t offset, uint64_t bytes) {
  std::vector<uint64_t> to_clean;
  {
    std::lock_guard lock(mutex_);
    written_ += bytes;
    ForEachWindow(offset, offset + bytes, [&](uint64_t window, uint32_t here) {
      missing_[window] -= here;
      if (missing_[window] > 0) return;
      TheOs().SyncFileRange(fd_.get(), static_cast<off_t>(window * kWindow), kWindow, SYNC_FILE_RANGE_WRITE);
      in_flight_.push_back(window);
      if (in_flight_.size() > 2) to_clean.push_back(in_flight_.front()), in_flight_.pop_front();
    });
  }
  for (uint64_t window : to_clean) CleanWindow(window);
}

// Failures here are not lost: fdatasync in Finish reports them.
void ShardWriter::CleanWindow(uint64_t window) {
  const off_t offset = static_cast<off_t>(window * kWindow);
  TheOs().SyncFileRange(fd_.get(), offset, kWindow,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  TheOs().Fadvise(fd_.get(), offset, kWindow, POSIX_FADV_DONTNEED);
}

void ShardWriter::Sync() {
  if (TheOs().Fdatasync(fd_.get()) < 0) throw SystemError(errno, "make it durable", path_);
}

void ShardWriter::Finish() {
  if (TheOs().Fsync(fd_.get()) < 0) throw SystemError(errno, "make it durable", path_);
  TheOs().Fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  fd_.Reset();
  direct_fd_.Reset();
}

void WriteDurably(const std::string& path, std::string_view text) {
  Fd fd = Create(path);
  WriteExactly(fd.get(), text.data(), text.size(), 0, path);
  if (TheOs().Fsync(fd.get()) < 0) throw SystemError(errno, "make it durable", path);
}

void CopyDurably(const std::string& from, const std::string& to) {
  FileIdentity identity;
  const Fd source = OpenForReading(from, &identity);
  Fd fd = Create(to);
  std::vector<char> buffer(std::min<uint64_t>(identity.size, 1 << 20));
  for (uint64_t at = 0; at < identity.size; at += buffer.size()) {
    const size_t bytes = std::min<uint64_t>(buffer.size(), identity.size - at);
    ReadExactly(source.get(), buffer.data(), bytes, at, from);
    WriteExactly(fd.get(), buffer.data(), bytes, at, to);
  }
  if (TheOs().Fsync(fd.get()) < 0) throw SystemError(errno, "make it durable", to);
}

void SyncDirectory(const std::string& path) {
  Fd fd(TheOs().Open(path.c_str(), O_RDONLY | O_DIRECTORY));
  if (!fd) throw SystemError(errno, "open it", path);
  if (TheOs().Fsync(fd.get()) < 0 && errno != EINVAL) throw SystemError(errno, "make it durable", path);
}

}  // namespace braid
