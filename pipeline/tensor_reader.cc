#include "pipeline/tensor_reader.h"

#include <algorithm>
#include <utility>

#include "ops/merger.h"
#include "pipeline/budget.h"

namespace braid {

ResidentRange::ResidentRange(std::shared_ptr<const MappedFile> file, uint64_t offset, uint64_t bytes)
    : file_(std::move(file)), window_(file_->Map(offset, bytes)), bytes_(bytes) {
  window_.Touch();
}

void ResidentRange::CheckUnchanged() const {
  file_->CheckUnchanged();
  CheckGuard();
}

ResidentRange TensorReader::Read(const CheckpointTensor& tensor, uint64_t begin, uint64_t bytes) {
  if (file_ == nullptr || shard_ != tensor.shard) {
    const Shard& shard = checkpoint_.shards[tensor.shard];
    file_ = std::make_shared<const MappedFile>(shard.path, shard.identity);
    shard_ = tensor.shard;
  }
  return {file_, tensor.info.offset + begin, bytes};
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
