#include "io/shard_writer.h"

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
  pages_.emplace(fd_.get(), path);
  // Whoever comes second finds it done: neither call takes anything away from a file of this size.
  if (TheOs().Fallocate(fd_.get(), static_cast<off_t>(bytes)) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) throw SystemError(errno, "reserve space for it", path);
  if (TheOs().Ftruncate(fd_.get(), static_cast<off_t>(bytes)) < 0) throw SystemError(errno, "size it", path);
}

void ShardWriter::Write(uint64_t offset, const void* data, size_t bytes) {
  if (bytes == 0) return;
  pages_->Write(offset, data, bytes);
  CountWritten(offset, bytes);
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
  struct stat status;
  if (TheOs().Fdatasync(fd_.get()) < 0 || TheOs().Fstat(fd_.get(), &status) < 0)
    throw SystemError(errno, "make it durable", path_);
  if (status.st_nlink == 0)
    throw Error(ErrorCode::kIo, "somebody has removed it while it was being written").Path(path_).Hint("run this again");
}

void ShardWriter::Finish() {
  if (TheOs().Fsync(fd_.get()) < 0) throw SystemError(errno, "make it durable", path_);
  TheOs().Fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
  pages_.reset();
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
