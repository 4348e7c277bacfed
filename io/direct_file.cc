#include "io/direct_file.h"

#include <cerrno>

namespace braid {

DirectFile::DirectFile(const std::string& path, const FileIdentity& expected)
    : InputFile(path, expected, Caching::kBypass), direct_(bypasses_cache()) {}

void DirectFile::Read(uint64_t begin, size_t bytes, size_t needed, std::byte* to) {
  for (size_t at = 0; at < needed;) {
    const bool was_direct = direct();
    const ssize_t got = TheOs().Pread(fd(), to + at, bytes - at, static_cast<off_t>(begin + at));
    if (got < 0) {
      if (errno != EINVAL || !was_direct) throw SystemError(errno, "read it", path());
      ReadPlainly();  // its blocks are larger than ours, or it promised more than it can do
      continue;
    }
    if (got == 0) throw InputChanged(path(), "the file shrank while it was being read");
    at += static_cast<size_t>(got);
    if (at < needed && was_direct) ReadPlainly();  // the rest may begin within a block
  }
}

void DirectFile::ReadPlainly() {
  if (TheOs().SetFlags(fd(), 0) < 0) throw SystemError(errno, "read it", path());
  direct_ = false;
}

}  // namespace braid
