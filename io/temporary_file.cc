#include "io/temporary_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "io/error.h"

namespace braid {
namespace {

Fd OpenWithoutName(const std::string& directory) {
  Fd fd(TheOs().Open(directory.c_str(), O_TMPFILE | O_RDWR, 0600));
  if (fd || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
  const std::string path = fmt::format("{}/.braid-{}-{}", directory, ::getpid(), static_cast<const void*>(&directory));
  fd = Fd(TheOs().Open(path.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
  if (fd) TheOs().Unlink(path.c_str());
  return fd;
}

}  // namespace

std::string TemporaryDirectoryPath() {
  const char* set = std::getenv("TMPDIR");
  return set != nullptr && *set != '\0' ? set : "/tmp";
}

TemporaryFile::TemporaryFile(const std::string& directory)
    : path_(directory + "/(temporary file)"), fd_(OpenWithoutName(directory)) {
  if (!fd_)
    throw SystemError(errno, "create a temporary file in it", directory).Hint("set TMPDIR to a directory on a disk");
}

void TemporaryFile::Write(uint64_t offset, const void* data, size_t bytes) {
  WriteExactly(fd_.get(), data, bytes, offset, path_);
}

void TemporaryFile::Read(uint64_t offset, void* to, size_t bytes) const {
  ReadExactly(fd_.get(), to, bytes, offset, path_);
}

}  // namespace braid
