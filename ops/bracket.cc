#include "ops/bracket.h"

#include <algorithm>
#include <cmath>

#include "ops/kernels.h"

namespace braid {

std::optional<Bracket> BracketOf(std::vector<uint32_t>* sample, uint64_t k, uint64_t n) {
  const double size = static_cast<double>(sample->size());
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const double rank = share * size, margin = 3 * std::sqrt(size * share * (1 - share)) + 8;
  if (size < 1024) return std::nullopt;
  // The sample's key of that rank, counted from the largest; beyond its ends, the ends of all keys.
  const auto key_at = [&](double r) {
    const auto place = sample->begin() + static_cast<ptrdiff_t>(r);
    std::nth_element(sample->begin(), place, sample->end(), std::greater<>());
    return *place;
  };
  Bracket bracket{.low = 0, .high = kNanKey};
  if (rank + margin < size) bracket.low = key_at(rank + margin);
  if (rank - margin >= 0) bracket.high = key_at(rank - margin);
  return bracket;
}

CandidateChunk* CandidatePool::Take() {
  std::lock_guard lock(mutex_);
  CandidateChunk* chunk = nullptr;
  if (!free_.empty()) {
    chunk = free_.back();
    free_.pop_back();
  } else if (left_ > 0) {
    --left_;
    made_.push_back(std::unique_ptr<CandidateChunk>(new CandidateChunk));
    chunk = made_.back().get();
  }
  if (chunk != nullptr) chunk->count = 0;
  return chunk;
}

void CandidatePool::Give(CandidateChunk* chunk) {
  std::lock_guard lock(mutex_);
  free_.push_back(chunk);
}

CandidateChunk* Candidates::RoomFor(size_t entries) {
  if (!chunks_.empty() && chunks_.back()->count + entries <= CandidateChunk::kEntries) return chunks_.back();
  CandidateChunk* chunk = pool_->Take();
  if (chunk != nullptr) chunks_.push_back(chunk);
  return chunk;
}

void Candidates::TakeOver(Candidates* other) {
  above += other->above;
  // The partly filled chunk stays last, where it goes on being filled.
  chunks_.insert(chunks_.begin(), other->chunks_.begin(), other->chunks_.end());
  other->chunks_.clear();
}

void Candidates::Clear() {
  for (CandidateChunk* chunk : chunks_) pool_->Give(chunk);
  chunks_.clear();
  above = 0;
}

uint64_t Candidates::size() const {
  uint64_t size = 0;
  for (const CandidateChunk* chunk : chunks_) size += chunk->count;
  return size;
}

std::optional<Threshold> Candidates::Select(uint64_t k) const {
  if (above >= k || above + size() < k) return std::nullopt;
  std::vector<uint64_t> bins(kHighBins);
  for (const CandidateChunk* chunk : chunks_)
    for (size_t i = 0; i < chunk->count; ++i) ++bins[chunk->keys[i] >> 16];
  const CriticalBin bin = FindCriticalBin(bins.data(), k - above);
  bins.assign(kLowBins, 0);
  for (const CandidateChunk* chunk : chunks_)
    for (size_t i = 0; i < chunk->count; ++i)
      if (chunk->keys[i] >> 16 == bin.high) ++bins[chunk->keys[i] & 0xffff];
  Threshold threshold = FindThreshold(bin, bins.data(), k - above);
  threshold.above += above;
  return threshold;
}

uint64_t Candidates::CutAfter(uint32_t key, uint64_t count) const {
  std::vector<uint32_t> indices;
  for (const CandidateChunk* chunk : chunks_)
    for (size_t i = 0; i < chunk->count; ++i)
      if (chunk->keys[i] == key) indices.push_back(chunk->indices[i]);
  const auto last = indices.begin() + static_cast<ptrdiff_t>(count - 1);
  std::nth_element(indices.begin(), last, indices.end());
  return uint64_t{*last} + 1;
}

}  // namespace braid
