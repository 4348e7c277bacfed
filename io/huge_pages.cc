#include "io/huge_pages.h"

#include <sys/mman.h>


#include "io/error.h"

namespace braid {
namespace {

constexpr size_t kPage = 4096, kHugePage = 2 << 20;

}  // namespace

HugePages::HugePages(size_t bytes) : size_((bytes + kPage - 1) / kPage * kPage) {
  if (size_ == 0) return;
  const size_t room = size_ + kHugePage;
  void* const mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    throw Error(ErrorCode::kMemory, "the system has no memory for buffers").Hint("use a smaller --memory");
  auto* const begin = static_cast<std::byte*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  data_ = begin + before;
  if (before > 0) munmap(begin, before);
  if (room > before + size_) munmap(data_ + size_, room - before - size_);
  madvise(data_, size_, MADV_HUGEPAGE);   // only a hint
}

HugePages& HugePages::operator=(HugePages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HugePages::~HugePages() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace braid
