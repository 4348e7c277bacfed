#include "ops/draft.h"

#include <utility>

namespace braid {

std::unique_ptr<OpenChunk> OpenPool::Take() {
  std::unique_lock lock(mutex_);
  if (free_.empty()) {
    if (left_ == 0) return nullptr;
    --left_;
    lock.unlock();
    return std::make_unique<OpenChunk>(sources_);
  }
  std::unique_ptr<OpenChunk> chunk = std::move(free_.back());
  free_.pop_back();
  chunk->count = 0;
  return chunk;
}

void OpenPool::Give(std::unique_ptr<OpenChunk> chunk) {
  std::lock_guard lock(mutex_);
  free_.push_back(std::move(chunk));
}

OpenElements& OpenElements::operator=(OpenElements&& other) noexcept {
  Clear();
  type = other.type;
  staying = std::move(other.staying);
  pool_ = other.pool_;
  chunks_ = std::exchange(other.chunks_, {});
  return *this;
}

OpenChunk* OpenElements::Room() {
  if (!chunks_.empty() && chunks_.back()->count < OpenChunk::kElements) return chunks_.back().get();
  std::unique_ptr<OpenChunk> chunk = pool_->Take();
  if (chunk == nullptr) return nullptr;
  chunks_.push_back(std::move(chunk));
  return chunks_.back().get();
}

void OpenElements::Clear() {
  for (auto& chunk : chunks_) pool_->Give(std::move(chunk));
  chunks_.clear();
}

}  // namespace braid
