#include "io/os.h"

#include <fmt/format.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "io/error.h"

namespace braid {
namespace {

// Repeats a call that a signal interrupted.
template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

Os* g_replacement = nullptr;

}  // namespace

int Os::Open(const char* path, int flags, mode_t mode) {
  return Retry([&] { return ::open(path, flags | O_CLOEXEC, mode); });
}
int Os::Close(int fd) { return ::close(fd); }  // never retried: Linux has freed the descriptor
int Os::Fstat(int fd, struct stat* out) { return ::fstat(fd, out); }
int Os::Stat(const char* path, struct stat* out) { return ::stat(path, out); }
int Os::Lstat(const char* path, struct stat* out) { return ::lstat(path, out); }
ssize_t Os::Readlink(const char* path, char* buffer, size_t bytes) { return ::readlink(path, buffer, bytes); }
ssize_t Os::Read(int fd, void* buffer, size_t bytes) {
  return Retry([&] { return ::read(fd, buffer, bytes); });
}
ssize_t Os::Pread(int fd, void* buffer, size_t bytes, off_t offset) {
  return Retry([&] { return ::pread(fd, buffer, bytes, offset); });
}
ssize_t Os::Pwrite(int fd, const void* buffer, size_t bytes, off_t offset) {
  return Retry([&] { return ::pwrite(fd, buffer, bytes, offset); });
}
int Os::Fallocate(int fd, off_t bytes) { return Retry([&] { return ::fallocate(fd, 0, 0, bytes); }); }
int Os::Ftruncate(int fd, off_t bytes) { return Retry([&] { return ::ftruncate(fd, bytes); }); }
int Os::Fdatasync(int fd) { return Retry([&] { return ::fdatasync(fd); }); }
int Os::Fsync(int fd) { return Retry([&] { return ::fsync(fd); }); }
int Os::SyncFileRange(int fd, off_t offset, off_t bytes, unsigned flags) {
  return Retry([&] { return ::sync_file_range(fd, offset, bytes, flags); });
}
int Os::SetFlags(int fd, int status_flags) { return ::fcntl(fd, F_SETFL, status_flags); }
int Os::Flags(int fd) { return ::fcntl(fd, F_GETFL); }
int Os::Duplicate(int fd) { return ::fcntl(fd, F_DUPFD_CLOEXEC, 3); }
int Os::SetPipeSize(int fd, int bytes) { return ::fcntl(fd, F_SETPIPE_SZ, bytes); }
int Os::Poll(int fd, int milliseconds) {
  pollfd one{.fd = fd, .events = POLLIN, .revents = 0};
  const int ready = ::poll(&one, 1, milliseconds);
  return ready < 0 && errno == EINTR ? 0 : ready;  // a signal may mean that waiting is over
}
int Os::Fadvise(int fd, off_t offset, off_t bytes, int advice) {
  int error_number = ::posix_fadvise(fd, offset, bytes, advice);
  if (error_number == 0) return 0;
  errno = error_number;
  return -1;
}
int Os::Madvise(void* address, size_t bytes, int advice) { return ::madvise(address, bytes, advice); }
int Os::Flock(int fd, int operation) { return Retry([&] { return ::flock(fd, operation); }); }
int Os::Statfs(const char* path, struct statfs* out) { return Retry([&] { return ::statfs(path, out); }); }
int Os::Mkdir(const char* path, mode_t mode) { return ::mkdir(path, mode); }
int Os::Rename(const char* from, const char* to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
}
int Os::Unlink(const char* path) { return ::unlink(path); }
int Os::Rmdir(const char* path) { return ::rmdir(path); }
ssize_t Os::Write(int fd, const void* buffer, size_t bytes) {
  return Retry([&] { return ::write(fd, buffer, bytes); });
}
ssize_t Os::SendNow(int fd, const void* buffer, size_t bytes) {
  return Retry([&] { return ::send(fd, buffer, bytes, MSG_DONTWAIT | MSG_NOSIGNAL); });
}
off_t Os::Lseek(int fd, off_t offset, int whence) { return ::lseek(fd, offset, whence); }
int Os::WaitToWrite(int fd, int milliseconds) {
  pollfd waited{.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&waited, 1, milliseconds);
}

Os& TheOs() {
  static Os real;
  return g_replacement != nullptr ? *g_replacement : real;
}

void SetOsForTesting(Os* os) { g_replacement = os; }

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) Reset(), fd_ = std::exchange(other.fd_, -1);
  return *this;
}

void Fd::Reset() {
  if (fd_ >= 0) TheOs().Close(fd_);
  fd_ = -1;
}

FileIdentity IdentityOf(const struct stat& s) {
  return {static_cast<uint64_t>(s.st_dev), static_cast<uint64_t>(s.st_ino), static_cast<uint64_t>(s.st_size),
          s.st_mtim.tv_sec * 1'000'000'000LL + s.st_mtim.tv_nsec};
}

Fd OpenForReading(const std::string& path, FileIdentity* identity, bool* direct) {
  // O_NONBLOCK: opening a FIFO must not hang; it has no effect on regular files.
  Fd fd(TheOs().Open(path.c_str(), O_RDONLY | O_NONBLOCK | (direct != nullptr ? O_DIRECT : 0)));
  if (direct != nullptr) {
    *direct = static_cast<bool>(fd);
    if (!fd && errno == EINVAL) fd = Fd(TheOs().Open(path.c_str(), O_RDONLY | O_NONBLOCK));
  }
  if (!fd) throw SystemError(errno, "open it", path);
  struct stat status;
  if (TheOs().Fstat(fd.get(), &status) < 0) throw SystemError(errno, "look at it", path);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::kBadInput, "this is not a regular file").Path(path);
  if (identity != nullptr) *identity = IdentityOf(status);
  return fd;
}

void ReadExactly(int fd, void* buffer, size_t bytes, uint64_t offset, const std::string& path) {
  char* to = static_cast<char*>(buffer);
  while (bytes > 0) {
    ssize_t got = TheOs().Pread(fd, to, bytes, static_cast<off_t>(offset));
    if (got < 0) throw SystemError(errno, "read it", path);
    if (got == 0)
      throw Error(ErrorCode::kBadInput, fmt::format("the file ends here, {} bytes are missing", bytes))
          .Path(path).Offset(offset).Hint("it is truncated: copy or download it again");
    to += got, offset += static_cast<uint64_t>(got), bytes -= static_cast<size_t>(got);
  }
}

void WriteExactly(int fd, const void* buffer, size_t bytes, uint64_t offset, const std::string& path) {
  const char* from = static_cast<const char*>(buffer);
  while (bytes > 0) {
    ssize_t put = TheOs().Pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (put < 0) throw SystemError(errno, "write it", path);
    if (put == 0) throw SystemError(ENOSPC, "write it", path);
    from += put, offset += static_cast<uint64_t>(put), bytes -= static_cast<size_t>(put);
  }
}

std::string ReadSmallFile(const std::string& path, uint64_t limit) {
  FileIdentity identity;
  Fd fd = OpenForReading(path, &identity);
  if (identity.size > limit)
    throw Error(ErrorCode::kBadInput, fmt::format("{} bytes is too large for such a file (limit {})",
                                                  identity.size, limit)).Path(path);
  std::string text(identity.size, '\0');
  ReadExactly(fd.get(), text.data(), text.size(), 0, path);
  return text;
}

bool FileExists(const std::string& path) {
  struct stat status;
  if (TheOs().Stat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  throw SystemError(errno, "look at it", path);
}

}  // namespace braid
