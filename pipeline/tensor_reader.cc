#include "pipeline/tensor_reader.h"

#include <algorithm>

#include "io/error.h"
#include "ops/merger.h"
#include "pipeline/budget.h"

namespace braid {

void ResidentRange::Load() {
  if (compressed_ != nullptr) compressed_->Read(begin_, bytes_, decoded_.get(), *tensor_);
}

void ResidentRange::CheckUnchanged() const {
  if (compressed_ != nullptr) return compressed_->file().CheckUnchanged();
  file_->CheckUnchanged();
  CheckGuard();
}

TensorReader::TensorReader(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {
  DecodingSizes sizes;
  for (const Shard& shard : checkpoint.shards)
    if (shard.compressed != nullptr) sizes.Cover(*shard.compressed);
  sizes.decoders = static_cast<uint32_t>(WindowsInFlight()), sizes.kept = sizes.decoders + 1;
  if (sizes.most_content > 0) frames_ = std::make_unique<DecodedFrames>(sizes);
}

ResidentRange TensorReader::Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes) {
  if ((file_ == nullptr && compressed_ == nullptr) || shard_ != tensor.shard) {
    const Shard& shard = checkpoint_.shards[tensor.shard];
    if (shard.stream != nullptr)
      throw Error(ErrorCode::kUsage, "the data of a stream is read by `braid merge` only; its header by `inspect`, too")
          .Path(shard.path)
          .Hint("save it to a file first, a zstd file with zstd -d");
    file_.reset(), compressed_.reset();
    if (shard.compressed != nullptr)
      compressed_ = std::make_shared<CompressedFile>(shard.compressed, shard.identity, false, frames_.get());
    else file_ = std::make_shared<const MappedFile>(shard.path, shard.identity);
    shard_ = tensor.shard;
  }
  ResidentRange range;
  range.bytes_ = bytes;
  if (compressed_ != nullptr) {
    range.compressed_ = compressed_;
    range.decoded_ = TakeBuffer();
    range.begin_ = tensor.info.offset + begin;
    range.tensor_ = &tensor.info.name;
  } else {
    range.file_ = file_;
    range.window_ = file_->Map(tensor.info.offset + begin, bytes);
    range.window_.Touch();
  }
  return range;
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
