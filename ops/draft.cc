#include "ops/draft.h"

#include <utility>

namespace braid {

std::unique_ptr<OpenChunk> OpenPool::Take(DType type) {
  std::unique_ptr<OpenChunk> chunk;
  {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      chunk = std::move(free_.back());
      free_.pop_back();
    } else if (left_ > 0) {
      --left_;
    } else {
      return nullptr;
    }
  }
  if (chunk == nullptr) chunk = std::make_unique<OpenChunk>(sources_);
  chunk->Begin(type);
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
  if (!chunks_.empty() && chunks_.back()->room() > 0) return chunks_.back().get();
  std::unique_ptr<OpenChunk> chunk = pool_->Take(type);
  if (chunk == nullptr) return nullptr;
  chunks_.push_back(std::move(chunk));
  return chunks_.back().get();
}

void OpenElements::Clear() {
  for (auto& chunk : chunks_) pool_->Give(std::move(chunk));
  chunks_.clear();
}

}  // namespace braid
