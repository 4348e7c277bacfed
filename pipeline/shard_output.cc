#include "pipeline/shard_output.h"

#include "io/error.h"
#include "io/shard_writer.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"

namespace braid {
namespace {

class PositionedOutput : public ShardOutput {
 public:
  // All shards at once: a disk that is too small shows now.
  PositionedOutput(const Plan& plan, const Share& share, const std::vector<std::string>& paths, Progress* progress)
      : plan_(plan), share_(share), progress_(*progress) {
    for (uint32_t i = 0; i < plan.shards.size(); ++i) {
      const auto ranges = share.Written(i);
      if (share.everything()) shards_.push_back(std::make_unique<ShardWriter>(paths[i], plan.shards[i].bytes));
      else if (ranges.empty()) shards_.push_back(nullptr);
      else shards_.push_back(std::make_unique<ShardWriter>(paths[i], plan.shards[i].bytes, ranges));
      // Others see what they need to know from marks of their own, so a header makes nothing look finished here.
      const std::string& header = plan.shards[i].header;
      if (!share.everything() && !ranges.empty() && ranges.front().begin == 0)
        PositionedOutput::Write(i, 0, header.data(), header.size());
    }
  }

  bool any_order() const override { return true; }

  void Write(uint32_t shard, uint64_t offset, const void* data, size_t bytes) override {
    shards_[shard]->Write(offset, data, bytes);
    written_ += bytes;
  }

  bool HasLeft(uint32_t) override { return true; }
  void Sync(uint32_t shard) override { shards_[shard]->Sync(); }

  // The headers of all shards come last, because a single file's holds the checksums, and because a file without one
  // cannot be mistaken for a checkpoint.
  void Finish(const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums,
              const std::atomic<int>& interrupt) override {
    for (size_t i = 0; i < shards_.size(); ++i) {
      if (shards_[i] == nullptr) continue;
      ThrowIfInterrupted(interrupt);
      std::string header = plan_.shards[i].header;
      if (plan_.single_file) header = FillChecksums(std::move(header), fingerprint, sums);
      if (share_.everything()) Write(static_cast<uint32_t>(i), 0, header.data(), header.size());
      progress_.of(Stage::kWrite).bytes += header.size();
      if (!shards_[i]->complete())
        throw Error(ErrorCode::kInternal, "a shard was left incomplete").Path(plan_.shards[i].name);
      shards_[i]->Finish();
    }
  }

  uint64_t bytes_written() const override { return written_; }

 private:
  const Plan& plan_;
  const Share& share_;
  Progress& progress_;
  std::vector<std::unique_ptr<ShardWriter>> shards_;
  std::atomic<uint64_t> written_{0};
};

}  // namespace

std::unique_ptr<ShardOutput> MakeShardOutput(const Plan& plan, const Share& share,
                                             const std::vector<std::string>& paths, Progress* progress,
                                             const std::atomic<bool>* cancelled) {
  if (plan.in_order) return MakeOrderedOutput(plan, share, paths, progress, cancelled);
  return std::make_unique<PositionedOutput>(plan, share, paths, progress);
}

}  // namespace braid
