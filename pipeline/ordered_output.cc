// The ordered output: one shard after the other, each from its header on. Of a share, those that it has; each of them
// appears when it is complete.
//
// Tiles come in the order of the plan's scopes, which is nearly that of the files, and a scope's tiles come in order.
// Those of a scope that had to wait for another one, of a whole model, whose tensors go by their names, and what comes
// behind a draft that did not come out, may be early. A tile that is early goes to its place in a sparse temporary file
// at once, so that it never keeps a buffer from the tile whose turn it is; it is read back when its turn comes.
#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "io/byte_stream.h"
#include "io/error.h"
#include "io/frame_compressor.h"
#include "io/temporary_file.h"
#include "pipeline/interrupt.h"
#include "pipeline/rank_files.h"
#include "pipeline/shard_output.h"

namespace braid {
namespace {

constexpr size_t kSpillBuffer = 1 << 20;
constexpr uint64_t kEarlyRange = 64;   // in a map; most tensors are no more than one

class OrderedOutput : public ShardOutput {
 public:
  OrderedOutput(const Plan& plan, const Share& share, const std::vector<std::string>& paths, Progress* progress,
                const std::atomic<bool>* cancelled)
      : plan_(plan), paths_(paths), everything_(share.everything()), progress_(*progress), cancelled_(cancelled),
        streams_(plan.shards.size()) {
    for (uint32_t s = 0; s < plan.shards.size(); ++s) {
      begins_.push_back(total_);
      if (!share.Written(s).empty()) order_.push_back(s), total_ += plan.shards[s].bytes;
    }
    if (order_.empty()) return;
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

  bool HasLeft(uint32_t shard) override {
    BeginShards();   // one that has no bytes to be written
    return next_ >= begins_[shard] + plan_.shards[shard].bytes;
  }

  void Sync(uint32_t shard) override {
    streams_[shard]->Finish();
    streams_[shard].reset();
  }

  void Finish(const std::string&, const std::vector<XXH128_hash_t>&, const std::atomic<int>& interrupt) override {
    BeginShards();
    if (next_ != total_) throw Error(ErrorCode::kInternal, "a shard was left incomplete").Path(paths_[shard()]);
    for (uint32_t s : order_) {
      if (streams_[s] == nullptr) continue;
      ThrowIfInterrupted(interrupt);
      Sync(s);
    }
    if (paths_.front() == kStandardOutput) stream_sum_ = sum_.Take();
  }

  uint64_t bytes_written() const override { return written_; }
  uint64_t bytes_spilled() const override { return spilled_; }
  std::optional<XXH128_hash_t> stream_sum() const override { return stream_sum_; }

 private:
  uint32_t shard() const { return order_[turn_]; }
  ByteStream& stream() { return *streams_[shard()]; }

  void OpenStream() {
    const std::string& path = paths_[shard()];
    if (path == kStandardOutput) streams_[shard()] = StandardOutputStream(&written_, &sum_, cancelled_);
    else streams_[shard()] = everything_ ? AppendingStream(path, &written_) : NewRankStream(path, &written_);
  }

  // The shard whose turn it is: its header is the first that leaves. One without tensors is complete with that.
  void BeginShards() {
    while (next_ < total_ && next_ == begins_[shard()]) {
      const std::string& header = plan_.shards[shard()].header;
      if (streams_[shard()] == nullptr) OpenStream();
      if (compressor_) compressor_->Begin(header, FramesOfShard(), &stream());
      else stream().Write(header.data(), header.size());
      progress_.of(Stage::kWrite).bytes += header.size();
      Advance(header.size());
    }
  }

  std::vector<ShardFrame> FramesOfShard() {
    ShardFrames frames(plan_.shards[shard()].header.size());
    const auto first = std::partition_point(plan_.tensors.begin(), plan_.tensors.end(),
                                            [&](const PlannedTensor& tensor) { return tensor.shard < shard(); });
    for (auto tensor = first; tensor != plan_.tensors.end() && tensor->shard == shard(); ++tensor)
      frames.Add(tensor->type, tensor->bytes);
    return frames.Take();
  }

  void Put(const void* data, size_t bytes) {
    if (compressor_) compressor_->Write(data, bytes);
    else stream().Write(data, bytes);
    Advance(bytes);
  }

  void Advance(size_t bytes) {
    next_ += bytes;
    if (next_ < begins_[shard()] + plan_.shards[shard()].bytes) return;
    if (compressor_) compressor_->End();
    if (next_ < total_) ++turn_;
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
  const bool everything_;
  Progress& progress_;
  const std::atomic<bool>* cancelled_;

  // Positions count from the first byte of the first shard that the share has, through all of them.
  std::vector<uint32_t> order_;               // these shards
  std::vector<uint64_t> begins_;              // of the plan's shards
  uint64_t total_ = 0, next_ = 0;             // all bytes; those that have left
  size_t turn_ = 0;                           // in `order_`: the shard of `next_`; at the end, the last one
  std::atomic<uint64_t> written_{0};
  Checksum sum_;                              // of what left through standard output
  std::optional<XXH128_hash_t> stream_sum_;
  std::vector<std::unique_ptr<ByteStream>> streams_;   // of the plan's shards, while they are open
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

std::unique_ptr<ShardOutput> MakeOrderedOutput(const Plan& plan, const Share& share,
                                               const std::vector<std::string>& paths, Progress* progress,
                                               const std::atomic<bool>* cancelled) {
  return std::make_unique<OrderedOutput>(plan, share, paths, progress, cancelled);
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
