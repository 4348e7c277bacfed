// The plain bytes of a compressed shard in order: several frames are decoded at once, on threads of its own, into a
// ring whose oldest one is given out.
//
//   FrameDecompressor decompressor(shard, identity, begin, 4);
//   for (auto piece = decompressor.Next(); !piece.empty(); piece = decompressor.Next()) ...
//
// For one thread, beside those that it has itself.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "io/compressed_file.h"
#include "io/huge_pages.h"

namespace braid {

class FrameDecompressor {
 public:
  // The file that `expected` describes, from byte `begin` of the plain shard on, the first one of a tensor. Throws
  // Error. `threads`: fewer where the frames of others are so large that they would take more than kMostMemory.
  FrameDecompressor(std::shared_ptr<const CompressedShard> shard, const FileIdentity& expected, uint64_t begin,
                    size_t threads);
  FrameDecompressor(const FrameDecompressor&) = delete;

  // What comes next, a frame or several, which stays until the next call; nothing: the end. It lies in memory as it
  // does in the plain shard, seen modulo pages, so that a file of it is written directly. Throws Error once all that is
  // in front of a damaged frame has been given out.
  std::span<const std::byte> Next();

  static constexpr uint64_t kMostMemory = 256 << 20;

 private:
  struct Slot {
    bool done = false;
    std::exception_ptr error;
  };

  Slot& SlotOf(size_t frame) { return slots_[frame % slots_.size()]; }
  void Loop(std::stop_token stop);
  bool GoesOn(const std::byte* end) const;
  std::span<std::byte> PlaceOf(size_t frame) const;

  const std::shared_ptr<const CompressedShard> shard_;
  const uint64_t begin_;
  HugePages memory_;        // of all slots, one behind the other
  uint64_t slot_bytes_ = 0;
  std::unique_ptr<DecodedFrames> decoded_;
  std::unique_ptr<CompressedFile> file_;
  size_t given_ = 0;        // the frame that is given out next

  std::mutex mutex_;        // guards what follows
  std::condition_variable_any changed_;
  std::vector<Slot> slots_;
  size_t taken_ = 0, freed_ = 0;   // frames before these are being decoded or done; are no longer needed
  std::vector<std::jthread> threads_;   // last: they end before what they use
};

}  // namespace braid
