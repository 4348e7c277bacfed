#include "io/frame_compressor.h"

#include <algorithm>
#include <cstring>

namespace braid {

FrameCompressor::FrameCompressor(Compression compression, size_t threads)
    : compression_(compression), slots_(2 * threads) {
  for (Slot& slot : slots_) {
    slot.plain = std::make_unique_for_overwrite<std::byte[]>(kFrameBytes);
    slot.encoded = std::make_unique_for_overwrite<std::byte[]>(FrameEncoder::MostBytes(kFrameBytes));
  }
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this](std::stop_token stop) { Loop(stop); });
}

// The header's frame may be longer than others, and nothing else is under way yet.
void FrameCompressor::Begin(std::string_view header, std::vector<ShardFrame> frames, ByteStream* to) {
  to_ = to;
  entries_.clear();
  {
    const auto encoded = std::make_unique_for_overwrite<std::byte[]>(FrameEncoder::MostBytes(header.size()));
    FrameEncoder encoder(compression_);
    Append(encoded.get(),
           encoder.Encode(frames.front(), reinterpret_cast<const std::byte*>(header.data()), encoded.get()));
  }
  frames_ = std::move(frames);
  filling_ = 1, filled_ = 0;
  std::lock_guard lock(mutex_);
  sealed_ = taken_ = passed_ = 1;
}

void FrameCompressor::Write(const void* data, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    if (filled_ == 0) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return error_ || filling_ - passed_ < slots_.size(); });
      if (error_) std::rethrow_exception(error_);
    }
    const ShardFrame& frame = frames_.at(filling_);
    const size_t part = std::min<uint64_t>(bytes, frame.bytes - filled_);
    std::memcpy(SlotOf(filling_).plain.get() + filled_, from, part);
    from += part, bytes -= part, filled_ += part;
    if (filled_ < frame.bytes) return;
    filled_ = 0, ++filling_;
    {
      std::lock_guard lock(mutex_);
      sealed_ = filling_;
    }
    changed_.notify_all();
  }
}

void FrameCompressor::End() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return error_ || passed_ == sealed_; });
    if (error_) std::rethrow_exception(error_);
  }
  if (filling_ != frames_.size()) throw Error(ErrorCode::kInternal, "a shard was left incomplete");
  const std::string table = SeekTableBytes(entries_);
  to_->Write(table.data(), table.size());
}

void FrameCompressor::Loop(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  try {
    FrameEncoder encoder(compression_);
    for (;;) {
      changed_.wait(lock, stop, [&] { return error_ || taken_ < sealed_; });
      if (stop.stop_requested() || error_) return;
      const size_t frame = taken_++;
      Slot& slot = SlotOf(frame);
      lock.unlock();
      slot.result = encoder.Encode(frames_[frame], slot.plain.get(), slot.encoded.get());
      lock.lock();
      slot.done = true;
      PassOn(&lock);
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    if (!error_) error_ = std::current_exception();
    changed_.notify_all();
  }
}

// Whoever has compressed the frame whose turn it is, passes on what is ready.
void FrameCompressor::PassOn(std::unique_lock<std::mutex>* lock) {
  while (!passing_ && !error_ && passed_ < taken_ && SlotOf(passed_).done) {
    Slot& slot = SlotOf(passed_);
    passing_ = true;
    lock->unlock();
    Append(slot.encoded.get(), slot.result);
    lock->lock();
    passing_ = false;
    slot.done = false;
    ++passed_;
    changed_.notify_all();
  }
}

void FrameCompressor::Append(const std::byte* bytes, const EncodedFrame& frame) {
  to_->Write(bytes, frame.bytes);
  const auto entries = frame.Entries();
  entries_.insert(entries_.end(), entries.begin(), entries.end());
}

uint64_t FrameCompressor::MemoryBytes(Compression compression, size_t threads, uint64_t header_bytes) {
  const uint64_t slot = kFrameBytes + FrameEncoder::MostBytes(kFrameBytes);
  return threads * (FrameEncoder::MemoryBytes(compression) + 2 * slot) + FrameEncoder::MemoryBytes(compression) +
         2 * FrameEncoder::MostBytes(header_bytes);
}

// Lists that grow may be twice as large as what is in them; the table is written out beside its entries.
uint64_t FrameCompressor::TableBytes(uint64_t frames) {
  return frames * 3 * (sizeof(ShardFrame) + kMostParts * sizeof(SeekEntry));
}

}  // namespace braid
