#include "io/mapped_file.h"

#include <sys/mman.h>

#include <algorithm>

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

constexpr uint64_t kPage = 4096, kHugePage = 2 << 20;
constexpr uint64_t kLargeWindow = 4 * kHugePage;   // which whole huge pages make a quarter larger
constexpr uint64_t kFaultAround = 64 << 10;  // the kernel's default

}  // namespace

// From the disk, MADV_POPULATE_READ (Linux 5.14) reads as fast as touching page by page, with fewer faults; an older
// kernel, or a page that cannot be read, is left to the touch. From the page cache, one touch per fault-around window
// maps 55 GB/s where MADV_POPULATE_READ, which visits every page, maps 40 (2 MiB windows, EPYC).
void MappedWindow::Touch(bool cached) const {
  if (size() == 0) return;
  const auto* p = reinterpret_cast<const volatile unsigned char*>(data());
  const size_t step = cached ? kFaultAround : kPage;
  const size_t skew = reinterpret_cast<uintptr_t>(data()) % step;
  if (!cached) {
    auto* first_page = const_cast<std::byte*>(data()) - skew;
    if (TheOs().Madvise(first_page, size() + skew, MADV_POPULATE_READ) == 0) return;
  }
  for (size_t at = 0; at < size(); at = at == 0 ? step - skew : at + step) (void)p[at];
}

MappedWindow MappedFile::Map(uint64_t offset, uint64_t bytes) const {
  MappedWindow window;
  if (bytes == 0) return window;
  uint64_t begin = offset, end = offset + bytes;
  if (bytes >= kLargeWindow) {
    begin = begin / kHugePage * kHugePage;
    end = std::min((end + kHugePage - 1) / kHugePage * kHugePage, size());
  }
  window.skip_ = offset - begin, window.bytes_ = bytes;
  try {
    window.region_ =
        ipc::mapped_region(OpenedFile(fd()), ipc::read_only, static_cast<ipc::offset_t>(begin), end - begin);
  } catch (const ipc::interprocess_exception& e) {
    throw SystemError(e.get_native_error(), "map it", path());
  }
  window.guard_ = GuardedRegion(window.data(), bytes, &path());
  return window;
}

uint64_t MappedFile::ResidentBytes(uint64_t bytes) {
  return bytes + (bytes >= kLargeWindow ? kHugePage : 2 * kPage);
}

void MappedFile::Read(uint64_t offset, uint64_t bytes, std::byte* to) const {
  ReadExactly(fd(), to, bytes, offset, path());
}

double MappedFile::CachedShare() const {
  constexpr uint64_t kSamples = 64;
  const uint64_t pages = size() / kPage;
  if (pages == 0) return 0;
  uint64_t cached = 0;
  for (uint64_t i = 0; i < kSamples; ++i) {
    const MappedWindow page = Map(pages * i / kSamples * kPage, kPage);
    unsigned char resident = 0;
    if (mincore(const_cast<std::byte*>(page.data()), kPage, &resident) == 0) cached += resident & 1;
  }
  return static_cast<double>(cached) / kSamples;
}

void CheckGuard() {
  const std::string* path = GuardedRegion::TrippedPath();
  if (path == nullptr) return;
  struct stat now;
  const bool gone = TheOs().Stat(path->c_str(), &now) < 0;
  // Which it was shows in the size only; the caller's CheckUnchanged has the exact word when the file is still open.
  if (!gone) throw InputChanged(*path, "the file shrank while it was being read, or the disk could not read it");
  throw SystemError(EIO, "read it", *path);
}

}  // namespace braid
