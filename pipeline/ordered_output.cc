// The ordered output: one shard after the other, each from its header on.
//
// Tiles come in the order of the plan's scopes, which is nearly that of the files, and a scope's tiles come in order.
// Those of a scope that had to wait for another one, of a whole model, whose tensors go by their names, and what comes
// behind a draft that did not come out, may be early. A tile that is early goes to its place in a sparse temporary file
// at once, so that it never keeps a buffer from the tile whose turn it is; it is read back when its turn comes.
#include <filesystem>
#include <map>
#include <optional>

#include "io/byte_stream.h"
#include "io/error.h"
#include "io/frame_compressor.h"
#include "io/temporary_file.h"
#include "pipeline/interrupt.h"
#include "pipeline/shard_output.h"

namespace braid {
namespace {

constexpr size_t kSpillBuffer = 1 << 20;
constexpr uint64_t kEarlyRange = 64;   // in a map; most tensors are no more than one

class OrderedOutput : public ShardOutput {
 public:
  OrderedOutput(const Plan& plan, const std::vector<std::string>& paths, Progress* progress,
                const std::atomic<bool>* cancelled)
      : plan_(plan), paths_(paths), progress_(*progress), cancelled_(cancelled) {
    for (const PlannedShard& shard : plan.shards) begins_.push_back(total_), total_ += shard.bytes;
    if (plan.totals.bytes_spilled > 0) OpenSpill();   // while nothing has left yet
    OpenStream();
    if (plan.recipe.output.compress != Compression::kNone)
      compressor_.emplace(plan.recipe.output.compress, plan.memory.encoders);
  }

  bool any_order() const override { return false; }

  void Write(uint32_t shard, uint64_t offset, const void* data, size_t bytes) override {
    if (bytes == 0) return;
    BeginShards();
    const uint64_t at = begins_[shard] + offset;
    if (at != next_) return Spill(at, data, bytes);
    Put(data, bytes);
    PutWhatWaits();
  }

  void Sync(uint32_t) override { throw Error(ErrorCode::kInternal, "bytes that leave in order have no share"); }

  void Finish(const std::string&, const std::vector<XXH128_hash_t>&, const std::atomic<int>& interrupt) override {
    BeginShards();
    if (next_ != total_) throw Error(ErrorCode::kInternal, "a shard was left incomplete").Path(paths_[shard_]);
    for (const auto& stream : streams_) {
      ThrowIfInterrupted(interrupt);
      stream->Finish();
    }
  }

  uint64_t bytes_written() const override { return written_; }
  uint64_t bytes_spilled() const override { return spilled_; }

 private:
  void OpenStream() {
    const std::string& path = paths_[streams_.size()];
    streams_.push_back(path == kStandardOutput ? StandardOutputStream(&written_, cancelled_)
                                               : AppendingStream(path, &written_));
  }

  // The shard whose turn it is: its header is the first that leaves. One without tensors is complete with that.
  void BeginShards() {
    while (next_ < total_ && next_ == begins_[shard_]) {
      const std::string& header = plan_.shards[shard_].header;
      if (streams_.size() == shard_) OpenStream();
      if (compressor_) compressor_->Begin(header, FramesOfShard(), streams_.back().get());
      else streams_.back()->Write(header.data(), header.size());
      progress_.of(Stage::kWrite).bytes += header.size();
      Advance(header.size());
    }
  }

  std::vector<ShardFrame> FramesOfShard() {
    ShardFrames frames(plan_.shards[shard_].header.size());
    for (; tensor_ < plan_.tensors.size() && plan_.tensors[tensor_].shard == shard_; ++tensor_)
      frames.Add(plan_.tensors[tensor_].type, plan_.tensors[tensor_].bytes);
    return frames.Take();
  }

  void Put(const void* data, size_t bytes) {
    if (compressor_) compressor_->Write(data, bytes);
    else streams_.back()->Write(data, bytes);
    Advance(bytes);
  }

  void Advance(size_t bytes) {
    next_ += bytes;
    if (next_ < begins_[shard_] + plan_.shards[shard_].bytes) return;
    if (compressor_) compressor_->End();
    if (next_ < total_) ++shard_;
  }

  void OpenSpill() {
    spill_.emplace(SpillDirectory(paths_));
    buffer_ = std::make_unique_for_overwrite<std::byte[]>(kSpillBuffer);
  }

  void Spill(uint64_t at, const void* data, size_t bytes) {
    if (!spill_) OpenSpill();
    spill_->Write(at, data, bytes);
    spilled_ += bytes;
    const auto behind = early_.lower_bound(at);
    uint64_t end = at + bytes;
    if (behind != early_.end() && behind->first == end) end = behind->second, early_.erase(behind);
    const auto after = early_.lower_bound(at);
    if (after != early_.begin() && std::prev(after)->second == at) std::prev(after)->second = end;
    else early_.emplace(at, end);
  }

  void PutWhatWaits() {
    for (BeginShards(); !early_.empty() && early_.begin()->first == next_; BeginShards()) {
      const uint64_t end = early_.begin()->second;
      early_.erase(early_.begin());
      while (next_ < end) {
        const size_t bytes = std::min<uint64_t>(kSpillBuffer, end - next_);
        spill_->Read(next_, buffer_.get(), bytes);
        Put(buffer_.get(), bytes);
      }
    }
  }

  const Plan& plan_;
  const std::vector<std::string>& paths_;
  Progress& progress_;
  const std::atomic<bool>* cancelled_;

  // Positions count from the first byte of the first shard through all of them.
  std::vector<uint64_t> begins_;              // of the shards
  uint64_t total_ = 0, next_ = 0;             // all bytes; those that have left
  uint32_t shard_ = 0;                        // which `next_` belongs to; at the end, the last one
  uint32_t tensor_ = 0;                       // the first one behind that shard, once it has begun
  std::atomic<uint64_t> written_{0};
  std::vector<std::unique_ptr<ByteStream>> streams_;
  std::optional<FrameCompressor> compressor_;

  std::optional<TemporaryFile> spill_;
  std::unique_ptr<std::byte[]> buffer_;       // to read it back
  std::map<uint64_t, uint64_t> early_;        // begin -> end of what waits in it; no two touch
  uint64_t spilled_ = 0;
};

uint64_t FramesOf(const Plan& plan) {   // at most, of all shards together
  return plan.shards.size() + plan.tensors.size() + plan.totals.bytes_written / kFrameBytes;
}

}  // namespace

std::unique_ptr<ShardOutput> MakeOrderedOutput(const Plan& plan, const std::vector<std::string>& paths,
                                               Progress* progress, const std::atomic<bool>* cancelled) {
  return std::make_unique<OrderedOutput>(plan, paths, progress, cancelled);
}

std::string SpillDirectory(const std::vector<std::string>& paths) {
  if (paths.front() == kStandardOutput) return TemporaryDirectoryPath();
  return std::filesystem::path(paths.front()).parent_path().string();
}

uint64_t OrderingBytes(const Plan& plan, uint32_t encoders) {
  uint64_t header = 0;
  for (const PlannedShard& shard : plan.shards) header = std::max<uint64_t>(header, shard.header.size());
  const uint64_t fixed = kSpillBuffer + plan.tensors.size() * kEarlyRange;
  if (encoders == 0) return fixed;
  return fixed + FrameCompressor::TableBytes(FramesOf(plan)) +
         FrameCompressor::MemoryBytes(plan.recipe.output.compress, encoders, header);
}

uint64_t BytesThatComeEarly(const Plan& plan) {
  std::vector<bool> came(plan.tensors.size());
  uint64_t early = 0;
  size_t next = 0;
  const auto skip = [&] {
    while (next < came.size() && (came[next] || plan.tensors[next].elements == 0)) ++next;
  };
  skip();
  for (const PlannedScope& scope : plan.scopes) {
    for (uint32_t t : scope.tensors) {
      if (t != next) early += plan.tensors[t].bytes;
      came[t] = true;
      skip();
    }
  }
  return early;
}

}  // namespace braid
