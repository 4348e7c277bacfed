#include "pipeline/read_buffers.h"

#include <algorithm>

namespace braid {
namespace {

// Far more than tiles of one tensor and its neighbours need, far fewer than the maps a process may have (65,530).
constexpr size_t kMostIdle = 4096;
}  // namespace

ReadBuffer& ReadBuffer::operator=(ReadBuffer&& other) noexcept {
  std::swap(shelf_, other.shelf_);
  std::swap(memory_, other.memory_);
  return *this;
}

ReadBuffer::~ReadBuffer() {
  if (shelf_ != nullptr) shelf_->Give(std::move(memory_));
}

ReadBuffer ReadBuffers::Take(size_t size) {
  ReadBuffer buffer;
  if (size == 0) return buffer;
  buffer.shelf_ = this;
  {
    std::vector<HugePages> surplus;   // let go of without the lock, and before anything new is made
    std::lock_guard lock(mutex_);
    used_bytes_ += size;
    buffer.memory_ = Reuse(size);
    surplus = TakeSurplus();
  }
  if (buffer.memory_.size() == 0) buffer.memory_ = HugePages(size);
  return buffer;
}

// Takes an idle buffer of exactly this size: a larger one would occupy more than the tile has taken from the budget,
// and tiles of the same tensor, as of the same tensor of every layer, need the same sizes.
HugePages ReadBuffers::Reuse(size_t size) {
  const auto found = std::find_if(idle_.rbegin(), idle_.rend(), [&](const HugePages& m) { return m.size() == size; });
  if (found == idle_.rend()) return {};
  HugePages memory = std::move(*found);
  idle_bytes_ -= size;
  idle_.erase(std::next(found).base());
  return memory;
}

// What the budget has lent, to this tile or to anything else, is not free any more: idle buffers make room for it.
std::vector<HugePages> ReadBuffers::TakeSurplus() {
  const uint64_t most = budget_.Free();
  auto keep = idle_.begin();
  for (; keep != idle_.end() && (idle_bytes_ > most || static_cast<size_t>(idle_.end() - keep) > kMostIdle); ++keep)
    idle_bytes_ -= keep->size();
  std::vector<HugePages> surplus(std::make_move_iterator(idle_.begin()), std::make_move_iterator(keep));
  idle_.erase(idle_.begin(), keep);
  return surplus;
}

// Idle bytes and the budget's free bytes grow in one step: TakeSurplus must not see the former without the latter.
void ReadBuffers::Give(HugePages memory) {
  const size_t size = memory.size();
  {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(memory));
    idle_bytes_ += size, used_bytes_ -= size;
    budget_.Give(size);
  }
  returned_.notify_one();
}

bool ReadBuffers::WaitForReturns(size_t most) {
  std::unique_lock lock(mutex_);
  returned_.wait(lock, [&] { return cancelled_ || used_bytes_ <= most; });
  return !cancelled_;
}

void ReadBuffers::Cancel() {
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  returned_.notify_all();
}

size_t ReadBuffers::IdleBytes() const {
  std::lock_guard lock(mutex_);
  return idle_bytes_;
}

}  // namespace braid
