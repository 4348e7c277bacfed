#include "pipeline/tensor_reader.h"

#include <algorithm>
#include <span>

#include "io/error.h"
#include "ops/merger.h"
#include "pipeline/budget.h"

namespace braid {
namespace {

struct ByShard {
  bool operator()(const CheckpointTensor& tensor, uint32_t shard) const { return tensor.shard < shard; }
  bool operator()(uint32_t shard, const CheckpointTensor& tensor) const { return shard < tensor.shard; }
};

}  // namespace

void ResidentRange::Load() {
  if (compressed_ != nullptr) compressed_->Read(begin_, bytes_, decoded_.get(), *tensor_);
}

void ResidentRange::CheckUnchanged() const {
  if (compressed_ != nullptr) return compressed_->file().CheckUnchanged();
  if (stream_ != nullptr) return stream_->CheckUnchanged();
  file_->CheckUnchanged();
  CheckGuard();
}

TensorReader::TensorReader(const Checkpoint& checkpoint)
    : checkpoint_(checkpoint), finished_(checkpoint.shards.size()) {
  DecodingSizes sizes;
  for (const Shard& shard : checkpoint.shards)
    if (shard.compressed != nullptr) sizes.Cover(*shard.compressed);
  sizes.decoders = static_cast<uint32_t>(WindowsInFlight()), sizes.kept = sizes.decoders + 1;
  if (sizes.most_content > 0) frames_ = std::make_unique<DecodedFrames>(sizes);
}

void TensorReader::Open(uint32_t number) {
  if (shard_ == number) return;
  if (stream_) FinishStream();
  file_.reset(), compressed_.reset(), stream_.reset();
  const Shard& shard = checkpoint_.shards[number];
  if (shard.stream != nullptr) {
    const auto of_shard = std::equal_range(checkpoint_.tensors.begin(), checkpoint_.tensors.end(), number, ByShard());
    stream_.emplace(shard.stream.get(), std::span(of_shard.first, of_shard.second), shard.identity.size);
  } else if (shard.compressed != nullptr) {
    compressed_ = std::make_shared<CompressedFile>(shard.compressed, shard.identity, false, frames_.get());
  } else {
    file_ = std::make_shared<const MappedFile>(shard.path, shard.identity);
  }
  shard_ = number;
}

ResidentRange TensorReader::Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes) {
  Open(tensor.shard);
  const uint64_t at = tensor.info.offset + begin;
  ResidentRange range;
  range.bytes_ = bytes;
  if (file_ != nullptr) {
    range.file_ = file_;
    range.window_ = file_->Map(at, bytes);
    range.window_.Touch();
    return range;
  }
  range.decoded_ = TakeBuffer();
  if (compressed_ != nullptr) {
    range.compressed_ = compressed_;
    range.begin_ = at;
    range.tensor_ = &tensor.info.name;
    return range;
  }
  range.stream_ = checkpoint_.shards[tensor.shard].stream;
  if (at < stream_->position())
    throw Error(ErrorCode::kInternal, "it was to be read in order").Path(range.stream_->name());
  stream_->PassOver(at);
  stream_->Take(range.decoded_.get(), bytes);
  return range;
}

// Files that come as streams, and are gone back to, are put aside and decoded anew.
void TensorReader::FinishStream() {
  if (stream_->position() < stream_->end()) return checkpoint_.shards[*shard_].stream->Park();
  if (!finished_[*shard_]) stream_->Finish();
  finished_[*shard_] = true;
}

void TensorReader::Finish() {
  for (uint32_t s = 0; s < checkpoint_.shards.size(); ++s) {
    if (checkpoint_.shards[s].stream == nullptr || finished_[s]) continue;
    Open(s);
    stream_->Finish();
    finished_[s] = true;
  }
}

std::shared_ptr<std::byte> TensorReader::TakeBuffer() {
  HugePages* const memory = buffers_.Take(kWindowBytes);
  return {memory->data(), [this, memory](std::byte*) { buffers_.Give(memory); }};
}

size_t WindowsInFlight() {
  // Two more than threads: one being read, one waiting to be added up in order.
  return std::min(static_cast<size_t>(DefaultThreads()) + 2, kMostWindows);
}

uint64_t WindowElements(int bits) {
  const uint64_t elements = kWindowBytes * 8 / static_cast<uint64_t>(bits);
  return elements / kReductionBlock * kReductionBlock;
}

}  // namespace braid
