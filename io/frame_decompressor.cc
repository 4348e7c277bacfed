#include "io/frame_decompressor.h"

#include <algorithm>

namespace braid {
namespace {

constexpr size_t kSlotsPerThread = 2;   // one is written while the other is decoded
constexpr size_t kThatWait = 1;         // threads beyond those that decode: for the disk
constexpr uint64_t kPage = DirectFile::kBlock;

}  // namespace

FrameDecompressor::FrameDecompressor(std::shared_ptr<const CompressedShard> shard, const FileIdentity& expected,
                                     uint64_t begin, size_t threads)
    : shard_(std::move(shard)), begin_(begin) {
  const std::vector<CompressedFrame>& frames = shard_->frames();
  uint64_t most = 0;
  given_ = begin < shard_->bytes() ? shard_->FrameAt(begin) : frames.size();
  for (size_t f = given_; f < frames.size(); ++f) most = std::max<uint64_t>(most, frames[f].bytes);
  taken_ = freed_ = given_;

  DecodingSizes sizes{.decoders = 1, .kept = 1};
  sizes.Cover(*shard_);
  const uint64_t one = sizes.MemoryBytes() + kSlotsPerThread * (most + kPage);
  threads = std::min<uint64_t>({threads + kThatWait, frames.size() - given_, kMostMemory / one});
  threads = std::max<size_t>(threads, 1);
  sizes.decoders = sizes.kept = static_cast<uint32_t>(threads);
  decoded_ = std::make_unique<DecodedFrames>(sizes);
  // From the disk, several direct reads at once are faster than readahead, and take less of a processor.
  const bool cached = MappedFile(shard_->path(), expected).CachedShare() >= 0.5;
  file_ = std::make_unique<CompressedFile>(shard_, expected, !cached, decoded_.get());
  for (size_t i = 0; i < kSlotsPerThread * threads; ++i) slots_.emplace_back().memory = HugePages(most + kPage);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

FrameDecompressor::~FrameDecompressor() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::span<const std::byte> FrameDecompressor::Next() {
  std::unique_lock lock(mutex_);
  if (giving_) ++freed_, giving_ = false, changed_.notify_all();
  if (given_ == shard_->frames().size()) {
    file_->file().CheckUnchanged();
    return {};
  }
  Slot& slot = SlotOf(given_);
  changed_.wait(lock, [&] { return slot.done; });
  if (slot.error) std::rethrow_exception(slot.error);
  slot.done = false;
  giving_ = true;
  return PlaceOf(given_++, slot);
}

void FrameDecompressor::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] {
      return stop_ || taken_ == shard_->frames().size() || taken_ - freed_ < slots_.size();
    });
    if (stop_ || taken_ == shard_->frames().size()) return;
    const size_t frame = taken_++;
    Slot& slot = SlotOf(frame);
    lock.unlock();
    std::exception_ptr error;
    try {
      const std::span<std::byte> to = PlaceOf(frame, slot);
      const uint64_t begin = std::max(shard_->frames()[frame].begin, begin_);
      file_->Read(begin, to.size(), to.data(), "");
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    slot.error = error;
    slot.done = true;
    changed_.notify_all();
  }
}

std::span<std::byte> FrameDecompressor::PlaceOf(size_t index, const Slot& slot) const {
  const CompressedFrame& frame = shard_->frames()[index];
  const uint64_t begin = std::max(frame.begin, begin_);
  return {slot.memory.data() + begin % kPage, frame.begin + frame.bytes - begin};
}

}  // namespace braid
