#include "pipeline/read_buffers.h"

#include <sys/mman.h>

#include <algorithm>

#include "io/error.h"

namespace braid {
namespace {

// Far more than tiles of one tensor and its neighbours need, far fewer than the maps a process may have (65,530).
constexpr size_t kMostIdle = 4096;
constexpr size_t kHugePage = 2 << 20;

// At the beginning of a huge page, and not a byte more than asked for: so much becomes resident at most.
std::byte* MapMemory(size_t size) {
  const size_t room = size + kHugePage;
  void* const mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    throw Error(ErrorCode::kMemory, "the system has no memory for reading").Hint("use a smaller --memory");
  auto* const begin = static_cast<std::byte*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  std::byte* const data = begin + before;
  if (before > 0) munmap(begin, before);
  if (room > before + size) munmap(data + size, room - before - size);
  madvise(data, size, MADV_HUGEPAGE);  // where there are none, small pages do
  return data;
}

}  // namespace

ReadBuffer& ReadBuffer::operator=(ReadBuffer&& other) noexcept {
  std::swap(shelf_, other.shelf_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

ReadBuffer::~ReadBuffer() {
  if (data_ != nullptr) shelf_->Give({data_, size_});
}

ReadBuffers::~ReadBuffers() {
  for (const Memory& memory : idle_) munmap(memory.data, memory.size);
}

ReadBuffer ReadBuffers::Take(size_t size) {
  ReadBuffer buffer;
  if (size == 0) return buffer;
  buffer.shelf_ = this, buffer.size_ = size;
  std::vector<Memory> surplus;
  {
    std::lock_guard lock(mutex_);
    Reuse(&buffer);
    surplus = TakeSurplus();
  }
  for (const Memory& memory : surplus) munmap(memory.data, memory.size);  // before anything new is made
  if (buffer.data_ == nullptr) buffer.data_ = MapMemory(size);
  return buffer;
}

// Takes an idle buffer of exactly this size: a larger one would occupy more than the tile has taken from the budget,
// and tiles of the same tensor, as of the same tensor of every layer, need the same sizes.
void ReadBuffers::Reuse(ReadBuffer* buffer) {
  const auto found = std::find_if(idle_.rbegin(), idle_.rend(), [&](const Memory& m) { return m.size == buffer->size_; });
  if (found == idle_.rend()) return;
  buffer->data_ = found->data;
  idle_bytes_ -= found->size;
  idle_.erase(std::next(found).base());
}

// What the budget has lent, to this tile or to anything else, is not free any more: idle buffers make room for it.
std::vector<ReadBuffers::Memory> ReadBuffers::TakeSurplus() {
  const uint64_t most = budget_.Free();
  auto keep = idle_.begin();
  for (; keep != idle_.end() && (idle_bytes_ > most || static_cast<size_t>(idle_.end() - keep) > kMostIdle); ++keep)
    idle_bytes_ -= keep->size;
  std::vector<Memory> surplus(idle_.begin(), keep);
  idle_.erase(idle_.begin(), keep);
  return surplus;
}

// Idle bytes and the budget's free bytes grow in one step: TakeSurplus must not see the former without the latter.
void ReadBuffers::Give(Memory memory) {
  std::lock_guard lock(mutex_);
  idle_.push_back(memory);
  idle_bytes_ += memory.size;
  budget_.Give(memory.size);
}

size_t ReadBuffers::IdleBytes() const {
  std::lock_guard lock(mutex_);
  return idle_bytes_;
}

}  // namespace braid
