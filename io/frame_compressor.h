// Compresses shards whose plain bytes come in order: cuts them into their frames (shard_frames.h), compresses several
// frames at once on threads of its own, and passes them on in order, the seek table behind the last one.
//
//   FrameCompressor compressor(Compression::kZstd, 4);
//   compressor.Begin(header, std::move(frames), &stream);   // one shard after the other
//   compressor.Write(data, bytes);                          // all that is behind the header, in pieces of any size
//   compressor.End();
//
// One thread at a time. The stream is written by threads of the compressor, by one at a time, until End returns.
#pragma once

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string_view>
#include <thread>
#include <vector>

#include "io/byte_stream.h"
#include "io/frame_encoder.h"
#include "io/shard_frames.h"

namespace braid {

class FrameCompressor {
 public:
  FrameCompressor(Compression compression, size_t threads);
  FrameCompressor(const FrameCompressor&) = delete;

  // `frames`: of the whole shard, the first one being the header's. `to` must live until End has returned. Each of
  // these throws what compressing or writing has thrown.
  void Begin(std::string_view header, std::vector<ShardFrame> frames, ByteStream* to);
  void Write(const void* data, size_t bytes);
  void End();

  // What it occupies, for the budget; `header_bytes`: of the longest header.
  static uint64_t MemoryBytes(Compression compression, size_t threads, uint64_t header_bytes);
  // What a shard takes beside that: its list of frames, and the seek table.
  static uint64_t TableBytes(uint64_t frames);

 private:
  // A frame on its way. Of two for each thread, one fills while the other is compressed.
  struct Slot {
    std::unique_ptr<std::byte[]> plain, encoded;
    EncodedFrame result;
    bool done = false;   // compressed, and not passed on yet
  };

  Slot& SlotOf(size_t frame) { return slots_[frame % slots_.size()]; }
  void Loop(std::stop_token stop);
  void PassOn(std::unique_lock<std::mutex>* lock);
  void Append(const std::byte* bytes, const EncodedFrame& frame);

  const Compression compression_;
  std::vector<Slot> slots_;
  std::vector<ShardFrame> frames_;
  std::vector<SeekEntry> entries_;
  ByteStream* to_ = nullptr;
  size_t filling_ = 0;     // the frame that the next byte belongs to ...
  uint64_t filled_ = 0;    // ... behind so many of its bytes

  std::mutex mutex_;       // guards what follows, and the slots' `done`
  std::condition_variable_any changed_;
  size_t sealed_ = 0, taken_ = 0, passed_ = 0;   // frames before these are full, being compressed, gone
  bool passing_ = false;
  std::exception_ptr error_;
  std::vector<std::jthread> threads_;   // last: they end before what they use
};

}  // namespace braid
