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

// Open elements, in the order of their index: of each source padded lanes, all of one type. A chunk's size does not
// depend on the type: of BF16 it holds nearly twice as many elements as of F32.
class OpenChunk {
 public:
  explicit OpenChunk(size_t sources) : sources_(sources), bytes_(new std::byte[StorageBytes(sources)]) {}
  static size_t Bytes(size_t sources) { return sizeof(OpenChunk) + StorageBytes(sources); }
  static size_t Capacity(DType type, size_t sources) {
    const auto lane = static_cast<size_t>(LaneBytes(type));
    return (StorageBytes(sources) - sources * kLanePadding * lane) / (sizeof(uint32_t) + sources * lane);
  }

  // Empty, for lanes of at most 4 bytes.
  void Begin(DType type) {
    count = 0;
    capacity_ = Capacity(type, sources_);
    stride_ = (capacity_ + kLanePadding) * static_cast<size_t>(LaneBytes(type));
  }
  size_t room() const { return capacity_ - count; }

  uint32_t* indices() { return reinterpret_cast<uint32_t*>(bytes_.get()); }   // in the tensor
  const uint32_t* indices() const { return reinterpret_cast<const uint32_t*>(bytes_.get()); }
  template <typename Element>
  Element* lanes(size_t source) { return reinterpret_cast<Element*>(bytes_.get() + LanesAt(source)); }
  template <typename Element>
  const Element* lanes(size_t source) const { return reinterpret_cast<const Element*>(bytes_.get() + LanesAt(source)); }
  const void* lanes(DType type, size_t source, size_t at) const {
    return lanes<std::byte>(source) + at * static_cast<size_t>(LaneBytes(type));
  }

  size_t count = 0;

 private:
  static size_t StorageBytes(size_t sources) {   // of 2,048 elements of F32
    return 2048 * (sizeof(uint32_t) + sources * sizeof(float)) + sources * kLanePadding * sizeof(float);
  }
  size_t LanesAt(size_t source) const { return capacity_ * sizeof(uint32_t) + source * stride_; }

  const size_t sources_;
  size_t capacity_ = 0, stride_ = 0;   // elements, bytes
  std::unique_ptr<std::byte[]> bytes_;
};

// The memory for open elements: chunks that are made once and reused, never more than `most_bytes` of them.
// Thread-safe.
class OpenPool {
 public:
  // `sources`: the base and all models.
  OpenPool(size_t sources, uint64_t most_bytes) : sources_(sources), left_(most_bytes / OpenChunk::Bytes(sources)) {}
  std::unique_ptr<OpenChunk> Take(DType type);   // empty; nullptr when all are in use
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
      k = std::min(count - done, chunk->room());
      const uint32_t* const from = places + done;
      for (size_t i = 0; i < k; ++i) chunk->indices()[chunk->count + i] = static_cast<uint32_t>(index) + from[i];
      copy(from, k, chunk);
      chunk->count += k;
    }
    return true;
  }
  const std::vector<std::unique_ptr<OpenChunk>>& chunks() const { return chunks_; }
  void Clear();

  DType type = DType::kF32;        // of the lanes, before any is put aside: F32 or BF16
  std::vector<uint64_t> staying;   // per threshold, as claims lie (ops/merger.h): entries that stay in the draft

 private:
  OpenChunk* Room();   // a chunk with room for at least one more; nullptr when the pool has none

  OpenPool* pool_ = nullptr;
  std::vector<std::unique_ptr<OpenChunk>> chunks_;
};

}  // namespace braid
