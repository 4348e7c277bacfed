#include "ops/bracket.h"

#include <algorithm>
#include <functional>
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

template <typename Visit>
void Candidates::ForEach(Visit visit) const {
  for (const CandidateChunk* chunk : chunks_)
    for (size_t i = 0; i < chunk->count; ++i) visit(chunk->keys[i], chunk->indices[i], i % 4);
}

Threshold Candidates::SelectAmongFew(uint64_t k) const {
  std::vector<uint32_t> keys;
  keys.reserve(size());
  ForEach([&](uint32_t key, uint32_t, size_t) { keys.push_back(key); });
  const auto kth = keys.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(keys.begin(), kth, keys.end(), std::greater());
  Threshold threshold{.key = *kth, .above = above};
  for (uint32_t key : keys) threshold.above += key > threshold.key, threshold.equal += key == threshold.key;
  return threshold;
}

// Within a bracket most keys share a few bins, and adding to one bin over and over waits for the store before: four
// tables in turn hide that.
std::optional<Threshold> Candidates::Select(uint64_t k, const Bracket& bracket) const {
  if (above >= k || above + size() < k) return std::nullopt;
  uint64_t wanted = k - above;
  if (size() <= kFewKeys) return SelectAmongFew(wanted);
  CriticalBin bin{.high = bracket.high >> 16};
  const uint32_t lowest = bracket.low >> 16, bins = bin.high - lowest + 1;
  if (bins > 1) {
    std::vector<uint64_t> counts(4 * bins);
    ForEach([&](uint32_t key, uint32_t, size_t lane) { ++counts[lane * bins + (key >> 16) - lowest]; });
    const auto count_of = [&](uint32_t high) {
      const size_t at = high - lowest;
      return counts[at] + counts[bins + at] + counts[2 * bins + at] + counts[3 * bins + at];
    };
    while (bin.high > lowest && bin.above + count_of(bin.high) < wanted) bin.above += count_of(bin.high--);
  }
  // Kept from one selection to the next: 1 MiB per thread, whose pages cost more to get than to clear.
  thread_local std::vector<uint32_t> tables;
  tables.assign(4 * kLowBins, 0);
  ForEach([&](uint32_t key, uint32_t, size_t lane) {
    if (key >> 16 == bin.high) ++tables[lane * kLowBins + (key & 0xffff)];
  });
  std::vector<uint64_t> low(kLowBins);
  for (size_t i = 0; i < kLowBins; ++i)
    low[i] = uint64_t{tables[i]} + tables[kLowBins + i] + tables[2 * kLowBins + i] + tables[3 * kLowBins + i];
  Threshold threshold = FindThreshold(bin, low.data(), wanted);
  threshold.above += above;
  return threshold;
}

// Again in two steps: the block of 65,536 indices that holds the last one, then its place there.
uint64_t Candidates::CutAfter(uint32_t key, uint64_t count) const {
  std::vector<uint64_t> blocks;
  ForEach([&](uint32_t candidate, uint32_t index, size_t) {
    if (candidate != key) return;
    if (index >> 16 >= blocks.size()) blocks.resize((index >> 16) + 1);
    ++blocks[index >> 16];
  });
  uint32_t block = 0;
  while (blocks[block] < count) count -= blocks[block++];
  std::vector<uint32_t> indices;
  ForEach([&](uint32_t candidate, uint32_t index, size_t) {
    if (candidate == key && index >> 16 == block) indices.push_back(index);
  });
  const auto last = indices.begin() + static_cast<ptrdiff_t>(count - 1);
  std::nth_element(indices.begin(), last, indices.end());
  return uint64_t{*last} + 1;
}

}  // namespace braid
