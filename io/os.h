// The one boundary to the operating system: every system call that touches a file goes through here, so that a
// test can replace the real one and make the nth call fail, stop short, or say that the disk is full.
//
// The methods have the meaning of the calls they are named after, and return -1 with errno set on failure.
// Only EINTR is dealt with inside. Thread-safe; the replacement is set before any thread starts.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace braid {

class Os {
 public:
  virtual ~Os() = default;

  virtual int Open(const char* path, int flags, mode_t mode = 0);  // O_CLOEXEC is added
  virtual int Close(int fd);
  virtual int Fstat(int fd, struct stat* out);
  virtual int Stat(const char* path, struct stat* out);
  virtual int Lstat(const char* path, struct stat* out);
  virtual ssize_t Readlink(const char* path, char* buffer, size_t bytes);
  virtual ssize_t Read(int fd, void* buffer, size_t bytes);
  virtual ssize_t Pread(int fd, void* buffer, size_t bytes, off_t offset);
  virtual ssize_t Pwrite(int fd, const void* buffer, size_t bytes, off_t offset);
  virtual int Fallocate(int fd, off_t bytes);
  virtual int Ftruncate(int fd, off_t bytes);
  virtual int Fdatasync(int fd);
  virtual int Fsync(int fd);
  virtual int SyncFileRange(int fd, off_t offset, off_t bytes, unsigned flags);
  virtual int SetFlags(int fd, int status_flags);  // F_SETFL
  virtual int Flags(int fd);                       // F_GETFL
  virtual int Duplicate(int fd);
  virtual int SetPipeSize(int fd, int bytes);      // F_SETPIPE_SZ
  virtual int Poll(int fd, int milliseconds);      // positive: there is something to read, or the end; 0: not yet
  virtual int Fadvise(int fd, off_t offset, off_t bytes, int advice);
  virtual int Madvise(void* address, size_t bytes, int advice);
  virtual int Flock(int fd, int operation);
  virtual int Statfs(const char* path, struct statfs* out);
  virtual int Mkdir(const char* path, mode_t mode);
  virtual int Rename(const char* from, const char* to, unsigned renameat2_flags);
  virtual int Unlink(const char* path);
  virtual int Rmdir(const char* path);
  virtual ssize_t Write(int fd, const void* buffer, size_t bytes);
  virtual ssize_t SendNow(int fd, const void* buffer, size_t bytes);  // into a socket, what it takes at once
  virtual off_t Lseek(int fd, off_t offset, int whence);
  virtual int WaitToWrite(int fd, int milliseconds);  // until it takes bytes, or is broken; no longer than that
};

// The system in use: the real one unless a test has set another.
Os& TheOs();

// For tests; nullptr restores the real one. Not thread-safe. The caller keeps ownership.
void SetOsForTesting(Os* os);

// An open file descriptor, closed on destruction. Move-only.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Fd& operator=(Fd&& other) noexcept;
  ~Fd() { Reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Reset();

 private:
  int fd_ = -1;
};

// What makes a file the file we planned with; a difference later means that it changed under us.
struct FileIdentity {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t mtime_ns = 0;
  bool operator==(const FileIdentity&) const = default;
};
FileIdentity IdentityOf(const struct stat& status);

// Opens a regular file for reading; a FIFO, device or directory is refused without blocking. `direct`: asks for
// O_DIRECT, and learns whether the file system granted it. Throws Error.
Fd OpenForReading(const std::string& path, FileIdentity* identity = nullptr, bool* direct = nullptr);

// Reads exactly `bytes`; a short file is Error(kBadInput) naming the offset. Throws Error.
void ReadExactly(int fd, void* buffer, size_t bytes, uint64_t offset, const std::string& path);

// Writes all of it, however often the kernel stops short. Throws Error.
void WriteExactly(int fd, const void* buffer, size_t bytes, uint64_t offset, const std::string& path);

// The whole of a small file as a string. Larger than `limit` is Error(kBadInput). Throws Error.
std::string ReadSmallFile(const std::string& path, uint64_t limit = 16u << 20);

// Whether a path exists (following links). Throws only on errors other than "no".
bool FileExists(const std::string& path);

}  // namespace braid
