#include "io/mapped_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "io/error.h"

namespace braid {
namespace {

namespace ipc = boost::interprocess;

// Lets Boost.Interprocess map a descriptor that we opened and checked ourselves.
class OpenedFile {
 public:
  explicit OpenedFile(int fd) : fd_(fd) {}
  ipc::mapping_handle_t get_mapping_handle() const { return ipc::ipcdetail::mapping_handle_from_file_handle(fd_); }

 private:
  int fd_;
};

constexpr uint64_t kPage = 4096;

Error Changed(const std::string& path, const char* what) {
  return Error(ErrorCode::kInputChanged, what)
      .Path(path).Hint("nothing was published; let whoever writes it finish, then run the merge again");
}

}  // namespace

MappedFile::MappedFile(const std::string& path, const FileIdentity& expected) : path_(path) {
  fd_ = OpenForReading(path, &identity_);
  if (identity_ != expected) throw Changed(path, "the file changed after the merge was planned");
  if (identity_.size == 0) return;
  try {
    region_ = ipc::mapped_region(OpenedFile(fd_.get()), ipc::read_only, 0, identity_.size);
  } catch (const ipc::interprocess_exception& e) {
    throw SystemError(e.get_native_error(), "map it", path);
  }
  // Residency in steps of a huge page would break the memory bound: 33 sources times 2 MiB.
  TheOs().Madvise(region_.get_address(), region_.get_size(), MADV_NOHUGEPAGE);
  guard_ = std::make_unique<GuardedRegion>(region_.get_address(), region_.get_size());
}

MappedFile::~MappedFile() = default;

void MappedFile::Touch(uint64_t offset, uint64_t bytes) const {
  const auto* p = reinterpret_cast<const volatile unsigned char*>(data());
  for (uint64_t at = offset; at < offset + bytes; at = (at / kPage + 1) * kPage) (void)p[at];
}

void MappedFile::Unmap(uint64_t offset, uint64_t bytes) const {
  const uint64_t begin = offset / kFaultAround * kFaultAround;
  const uint64_t end = std::min((offset + bytes + kFaultAround - 1) / kFaultAround * kFaultAround, identity_.size);
  if (begin < end) TheOs().Madvise(static_cast<std::byte*>(region_.get_address()) + begin, end - begin, MADV_DONTNEED);
}

void MappedFile::Evict(uint64_t offset, uint64_t bytes) const {
  TheOs().Fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

double MappedFile::CachedShare() const {
  constexpr uint64_t kSamples = 64;
  const uint64_t pages = identity_.size / kPage;
  uint64_t cached = 0, asked = 0;
  for (uint64_t i = 0; i < kSamples && pages > 0; ++i, ++asked) {
    unsigned char resident = 0;
    void* page = static_cast<std::byte*>(region_.get_address()) + pages * i / kSamples * kPage;
    if (mincore(page, kPage, &resident) == 0) cached += resident & 1;
  }
  return asked == 0 ? 0.0 : static_cast<double>(cached) / static_cast<double>(asked);
}

void MappedFile::CheckUnchanged() const {
  if (guard_ != nullptr && guard_->tripped()) throw Changed(path_, "the file shrank while it was being read");
  struct stat now;
  if (TheOs().Fstat(fd_.get(), &now) < 0) throw SystemError(errno, "look at it", path_);
  if (IdentityOf(now) != identity_) throw Changed(path_, "the file was written to while it was being read");
}

}  // namespace braid
