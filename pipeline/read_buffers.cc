#include "pipeline/read_buffers.h"

#include <sys/mman.h>

#include <algorithm>

#include "io/error.h"

namespace braid {
namespace {

// Far more than tiles of one tensor and its neighbours need, far fewer than the maps a process may have (65,530).
constexpr size_t kMostIdle = 4096;

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

std::vector<ReadBuffer> ReadBuffers::Take(const std::vector<size_t>& sizes) {
  std::vector<ReadBuffer> buffers(sizes.size());
  std::vector<Memory> surplus;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < sizes.size(); ++i) {
      buffers[i].shelf_ = this, buffers[i].size_ = sizes[i];
      if (sizes[i] > 0) Reuse(&buffers[i]);
    }
    surplus = TakeSurplus();
  }
  for (const Memory& memory : surplus) munmap(memory.data, memory.size);  // before anything new is made
  for (ReadBuffer& buffer : buffers) {
    if (buffer.size_ == 0 || buffer.data_ != nullptr) continue;
    void* made = mmap(nullptr, buffer.size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) throw Error(ErrorCode::kMemory, "the system gives no more memory").Hint("use a smaller --memory");
    buffer.data_ = static_cast<std::byte*>(made);
  }
  return buffers;
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
