#include "io/input_file.h"

#include <cerrno>
#include <mutex>
#include <set>

namespace braid {
namespace {

const std::string& Interned(const std::string& path) {
  static std::mutex mutex;
  static std::set<std::string> paths;
  std::lock_guard lock(mutex);
  return *paths.insert(path).first;
}

void CheckSame(const std::string& path, const FileIdentity& expected, const struct stat& now) {
  if (static_cast<uint64_t>(now.st_size) < expected.size)
    throw InputChanged(path, "the file shrank while it was being read");
  if (IdentityOf(now) != expected) throw InputChanged(path, "the file was written to while it was being read");
}

}  // namespace

InputFile::InputFile(const std::string& path, const FileIdentity& expected, Caching caching)
    : path_(Interned(path)),
      fd_(OpenForReading(path, &identity_, caching == Caching::kBypass ? &bypasses_cache_ : nullptr)) {
  if (identity_ != expected) throw InputChanged(path, "the file changed after it was first looked at");
}

void InputFile::Evict(uint64_t offset, uint64_t bytes) const {
  TheOs().Fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

void InputFile::CheckUnchanged() const {
  struct stat now;
  if (TheOs().Fstat(fd_.get(), &now) < 0) throw SystemError(errno, "look at it", path_);
  CheckSame(path_, identity_, now);
}

void CheckUnchanged(const std::string& path, const FileIdentity& expected) {
  struct stat now;
  if (TheOs().Stat(path.c_str(), &now) < 0) throw InputChanged(path, "the file went away while it was being read");
  CheckSame(path, expected, now);
}

Error InputChanged(const std::string& path, const char* what) {
  return Error(ErrorCode::kInputChanged, what)
      .Path(path).Hint("nothing was published; let whoever writes it finish, then run this again");
}

}  // namespace braid
