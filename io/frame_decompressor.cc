#include "io/frame_decompressor.h"

#include <algorithm>

namespace braid {
namespace {

constexpr size_t kSlotsPerThread = 4;   // half of them may be written while the others are decoded
constexpr size_t kThatWait = 1;         // threads beyond those that decode: for the disk
constexpr uint64_t kPage = DirectFile::kBlock, kHugePage = 2 << 20;

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
  // What a disk reads into should be huge pages (huge_pages.h), of which there are whole ones only.
  const uint64_t around = 2 * DirectFile::kBlock;
  sizes.most_compressed = (sizes.most_compressed + around + kHugePage - 1) / kHugePage * kHugePage - around;
  slot_bytes_ = (most + kPage - 1) / kPage * kPage;
  const uint64_t one = sizes.MemoryBytes() + kSlotsPerThread * slot_bytes_;
  threads = std::min<uint64_t>({threads + kThatWait, frames.size() - given_, kMostMemory / one});
  threads = std::max<size_t>(threads, 1);
  sizes.decoders = sizes.kept = static_cast<uint32_t>(threads);
  decoded_ = std::make_unique<DecodedFrames>(sizes);
  // From the disk, several direct reads at once are faster than readahead, and take less of a processor.
  const bool cached = MappedFile(shard_->path(), expected).CachedShare() >= 0.5;
  file_ = std::make_unique<CompressedFile>(shard_, expected, !cached, decoded_.get());
  slots_.resize(kSlotsPerThread * threads);
  memory_ = HugePages(slots_.size() * slot_bytes_ + kPage);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this](std::stop_token stop) { Loop(stop); });
}

std::span<const std::byte> FrameDecompressor::Next() {
  std::unique_lock lock(mutex_);
  freed_ = given_;
  changed_.notify_all();
  if (given_ == shard_->frames().size()) {
    file_->file().CheckUnchanged();
    return {};
  }
  Slot& slot = SlotOf(given_);
  changed_.wait(lock, [&] { return slot.done; });
  if (slot.error) std::rethrow_exception(slot.error);
  // Large writes are faster: beside several reads, one small write after the other gets a small part of the disk.
  const std::span<const std::byte> first = PlaceOf(given_);
  const std::byte* end = first.data();
  for (size_t n = 0; n < slots_.size() / 2 && GoesOn(end); ++n) {
    end += PlaceOf(given_).size();
    SlotOf(given_++).done = false;
  }
  return {first.data(), end};
}

// Whether the next frame is there, and continues what ends here.
bool FrameDecompressor::GoesOn(const std::byte* end) const {
  if (given_ == taken_) return false;
  const Slot& slot = slots_[given_ % slots_.size()];
  return slot.done && !slot.error && PlaceOf(given_).data() == end;
}

void FrameDecompressor::Loop(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, stop, [&] {
      // One less than there are: what ends behind its slot must not end in one that is still in use.
      return taken_ == shard_->frames().size() || taken_ - freed_ + 1 < slots_.size();
    });
    if (stop.stop_requested() || taken_ == shard_->frames().size()) return;
    const size_t frame = taken_++;
    Slot& slot = SlotOf(frame);
    lock.unlock();
    std::exception_ptr error;
    try {
      const std::span<std::byte> to = PlaceOf(frame);
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

// Whole frames lie in their slots as in the plain shard, so what comes behind one lies behind it. A page more than the
// slots is for the last one, which begins within a page; what is shorter than a slot ends in front of the next one's
// beginning.
std::span<std::byte> FrameDecompressor::PlaceOf(size_t index) const {
  const CompressedFrame& frame = shard_->frames()[index];
  const uint64_t begin = std::max(frame.begin, begin_);
  return {memory_.data() + index % slots_.size() * slot_bytes_ + begin % kPage, frame.begin + frame.bytes - begin};
}

}  // namespace braid
