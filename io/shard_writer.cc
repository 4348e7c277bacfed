#include "io/shard_writer.h"

#include <algorithm>
#include <cerrno>

#include "io/error.h"

namespace braid {
namespace {

constexpr int kCreate = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;

Fd Create(const std::string& path) {
  Fd fd(TheOs().Open(path.c_str(), kCreate, 0666));
  if (!fd) throw SystemError(errno, "create it", path);
  return fd;
}

}  // namespace

ShardWriter::ShardWriter(const std::string& path, uint64_t bytes)
    : path_(path), size_(bytes), fd_(Create(path)), missing_((bytes + kWindow - 1) / kWindow, kWindow) {
  if (bytes == 0) return;
  if (bytes % kWindow != 0) missing_.back() = static_cast<uint32_t>(bytes % kWindow);
  if (TheOs().Fallocate(fd_.get(), static_cast<off_t>(bytes)) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) throw SystemError(errno, "reserve space for it", path);
  if (TheOs().Ftruncate(fd_.get(), static_cast<off_t>(bytes)) < 0) throw SystemError(errno, "size it", path);
}

void ShardWriter::Write(uint64_t offset, const void* data, size_t bytes) {
  WriteExactly(fd_.get(), data, bytes, offset, path_);
  written_ += bytes;
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    const uint64_t window = at / kWindow;
    const uint64_t here = std::min(end, (window + 1) * kWindow) - at;
    missing_[window] -= static_cast<uint32_t>(here);
    at += here;
    if (missing_[window] > 0) continue;
    TheOs().SyncFileRange(fd_.get(), static_cast<off_t>(window * kWindow), kWindow, SYNC_FILE_RANGE_WRITE);
    in_flight_.push_back(window);
    if (in_flight_.size() > 2) CleanWindow(in_flight_.front()), in_flight_.pop_front();
  }
}

// Failures here are not lost: fdatasync in Finish reports them.
void ShardWriter::CleanWindow(uint64_t window) {
  const off_t offset = static_cast<off_t>(window * kWindow);
  TheOs().SyncFileRange(fd_.get(), offset, kWindow,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  TheOs().Fadvise(fd_.get(), offset, kWindow, POSIX_FADV_DONTNEED);
}

void ShardWriter::Finish() {
  if (TheOs().Fsync(fd_.get()) < 0) throw SystemError(errno, "make it durable", path_);
  TheOs().Fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  fd_.Reset();
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
