#include "io/compressed_file.h"

#include <algorithm>

#include "io/error.h"

namespace braid {

void DecodedFrames::Read(const CompressedShard& shard, const CompressedFrame& frame, uint64_t begin, uint64_t bytes,
                         std::byte* to, const Fetch& fetch) {
  const bool whole = bytes == frame.bytes;
  if (whole && frame.split == PlaneSplit::kNone) return Decode(shard, frame, to, fetch);
  Slot* slot = nullptr;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      slot = Find(frame);
      if (slot != nullptr) return slot->decoded;
      return (slot = TakeOldest()) != nullptr;
    });
    ++slot->users;
    if (slot->frame != &frame) slot->frame = &frame, slot->decoded = false;
  }
  if (!slot->decoded) {   // then nobody else looks into it
    try {
      if (slot->content.size() == 0) slot->content = HugePages(sizes_.most_content);
      Decode(shard, frame, slot->content.data(), fetch);
    } catch (...) {
      std::lock_guard lock(mutex_);
      slot->frame = nullptr, slot->users = 0;
      changed_.notify_all();
      throw;
    }
    std::lock_guard lock(mutex_);
    slot->decoded = true;
    changed_.notify_all();
  }
  TakePlain(frame, slot->content.data(), begin, bytes, to);
  Release(slot, !whole);
}

void DecodedFrames::Decode(const CompressedShard& shard, const CompressedFrame& frame, std::byte* content,
                           const Fetch& fetch) {
  std::unique_ptr<Decoder> decoder;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !decoders_.empty() || num_decoders_ < sizes_.decoders; });
    if (decoders_.empty()) decoder = std::make_unique<Decoder>(), ++num_decoders_;
    else decoder = std::move(decoders_.back()), decoders_.pop_back();
  }
  const auto give_back = [&] {
    std::lock_guard lock(mutex_);
    decoders_.push_back(std::move(decoder));
    changed_.notify_all();
  };
  try {
    if (decoder->compressed.size() == 0)
      decoder->compressed = HugePages(sizes_.most_compressed + 2 * DirectFile::kBlock);
    decoder->decoder.Decode(shard, frame, fetch(frame, decoder->compressed.data()), content);
  } catch (...) {
    give_back();
    throw;
  }
  give_back();
}

DecodedFrames::Slot* DecodedFrames::Find(const CompressedFrame& frame) {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.frame == &frame; });
  return found == slots_.end() ? nullptr : &*found;
}

DecodedFrames::Slot* DecodedFrames::TakeOldest() {
  Slot* oldest = nullptr;
  for (Slot& slot : slots_)
    if (slot.users == 0 && (oldest == nullptr || slot.last_use < oldest->last_use)) oldest = &slot;
  return oldest;
}

void DecodedFrames::Release(Slot* slot, bool needed_again) {
  std::lock_guard lock(mutex_);
  slot->last_use = needed_again ? ++uses_ : 0;
  if (--slot->users == 0) changed_.notify_all();
}

CompressedFile::CompressedFile(std::shared_ptr<const CompressedShard> shard, const FileIdentity& expected, bool direct,
                               DecodedFrames* frames)
    : shard_(std::move(shard)), frames_(*frames) {
  if (direct) direct_.emplace(shard_->path(), expected);
  else cached_.emplace(shard_->path(), expected);
}

void CompressedFile::Read(uint64_t begin, uint64_t bytes, std::byte* to, const std::string& tensor) try {
  const DecodedFrames::Fetch fetch = [this](const CompressedFrame& frame, std::byte* compressed) {
    return Fetch(frame, compressed);
  };
  for (size_t f = bytes == 0 ? 0 : shard_->FrameAt(begin); bytes > 0; ++f) {
    const CompressedFrame& frame = shard_->frames()[f];
    const uint64_t skip = begin - frame.begin, here = std::min<uint64_t>(bytes, frame.bytes - skip);
    frames_.Read(*shard_, frame, skip, here, to, fetch);
    begin += here, to += here, bytes -= here;
  }
} catch (Error& error) {
  error.Tensor(tensor);
  throw;
}

const std::byte* CompressedFile::Fetch(const CompressedFrame& frame, std::byte* compressed) {
  if (cached_) {
    cached_->Read(frame.offset, frame.compressed, compressed);
    return compressed;
  }
  const DirectFile::Superset superset = DirectFile::SupersetOf(frame.offset, frame.compressed);
  direct_->Read(superset.begin, superset.bytes, superset.skip + frame.compressed, compressed);
  return compressed + superset.skip;
}

}  // namespace braid
