// The elements of a tile that a draft leaves open. A tile is drafted as if its open entries stayed; those that have one
// are put aside, as all sources have them, so that they can be merged again, alone, when the thresholds are known.
// The tile's sources are not needed a second time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/dtype.h"
#include "ops/kernels.h"

namespace braid {

// Open elements, in the order of their index: of each source padded lanes of at most 4 bytes.
class OpenChunk {
 public:
  static constexpr size_t kElements = 2048;
  explicit OpenChunk(size_t sources) : lanes_(new float[sources * kStride]) {}
  static size_t Bytes(size_t sources) { return sizeof(OpenChunk) + sources * kStride * sizeof(float); }

  template <typename Element>
  Element* lanes(size_t source) { return reinterpret_cast<Element*>(lanes_.get() + source * kStride); }
  template <typename Element>
  const Element* lanes(size_t source) const {
    return reinterpret_cast<const Element*>(lanes_.get() + source * kStride);
  }
  const void* lanes(DType type, size_t source, size_t at) const {
    return lanes<std::byte>(source) + at * static_cast<size_t>(LaneBytes(type));
  }

  size_t count = 0;
  uint32_t indices[kElements];   // in the tensor

 private:
  static constexpr size_t kStride = kElements + kLanePadding;
  std::unique_ptr<float[]> lanes_;
};

// The memory for open elements: chunks that are made once and reused, never more than `most_bytes` of them.
// Thread-safe.
class OpenPool {
 public:
  // `sources`: the base and all models.
  OpenPool(size_t sources, uint64_t most_bytes) : sources_(sources), left_(most_bytes / OpenChunk::Bytes(sources)) {}
  std::unique_ptr<OpenChunk> Take();   // empty; nullptr when all are in use
  void Give(std::unique_ptr<OpenChunk> chunk);

 private:
  const size_t sources_;
  std::mutex mutex_;
  uint64_t left_;           // chunks that may still be made
  std::vector<std::unique_ptr<OpenChunk>> free_;
};

// Those of one tile. Move-only; gives its chunks back on destruction.
class OpenElements {
 public:
  OpenElements() = default;
  OpenElements(OpenPool* pool, size_t thresholds) : staying(thresholds), pool_(pool) {}
  OpenElements(OpenElements&&) noexcept = default;
  OpenElements& operator=(OpenElements&& other) noexcept;
  ~OpenElements() { Clear(); }

  // Puts elements index + places[0] .. index + places[count - 1] aside, behind those that are there. copy(from, k,
  // chunk) adds the lanes of the k elements at from[0] .. from[k - 1] to a chunk, behind its `count`. False when the
  // pool is empty.
  template <typename Copy>
  bool PutAside(uint64_t index, const uint32_t* places, size_t count, Copy copy) {
    for (size_t done = 0, k; done < count; done += k) {
      OpenChunk* const chunk = Room();
      if (chunk == nullptr) return false;
      k = std::min(count - done, OpenChunk::kElements - chunk->count);
      const uint32_t* const from = places + done;
      for (size_t i = 0; i < k; ++i) chunk->indices[chunk->count + i] = static_cast<uint32_t>(index) + from[i];
      copy(from, k, chunk);
      chunk->count += k;
    }
    return true;
  }
  const std::vector<std::unique_ptr<OpenChunk>>& chunks() const { return chunks_; }
  void Clear();

  DType type = DType::kF32;        // of the lanes: F32 or BF16
  std::vector<uint64_t> staying;   // per threshold, as claims lie (ops/merger.h): entries that stay in the draft

 private:
  OpenChunk* Room();   // a chunk with room for at least one more; nullptr when the pool has none

  OpenPool* pool_ = nullptr;
  std::vector<std::unique_ptr<OpenChunk>> chunks_;
};

}  // namespace braid
