#include "pipeline/output_writer.h"

#include "io/error.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"
#include "pipeline/scope_run.h"

namespace braid {

OutputWriter::OutputWriter(const Plan& plan, const std::vector<std::string>& shard_paths, Progress* progress)
    : plan_(plan), progress_(*progress), sums_(plan.tensors.size(), XXH3_128bits(nullptr, 0)),
      memory_(new std::byte[plan.memory.buffer_bytes * (plan.memory.buffers + plan.memory.drafts)]),
      tiles_(plan.memory.buffers + plan.memory.drafts) {
  for (size_t i = 0; i < tiles_.size(); ++i) {
    tiles_[i].data = memory_.get() + i * plan.memory.buffer_bytes;
    tiles_[i].draft = i >= plan.memory.buffers;
  }
  // All shards at once: a disk that is too small shows now.
  for (size_t i = 0; i < plan.shards.size(); ++i)
    shards_.push_back(std::make_unique<ShardWriter>(shard_paths[i], plan.shards[i].bytes));
}

OutputWriter::~OutputWriter() { Stop(); }

void OutputWriter::Start(std::function<void(std::exception_ptr)> fail, std::function<void(ScopeRun*)> retire) {
  fail_ = std::move(fail);
  retire_ = std::move(retire);
  thread_ = std::thread([this] { Loop(); });
}

void OutputWriter::Submit(OutputTile* tile, std::function<void(OutputTile*)> done) {
  {
    std::lock_guard lock(mutex_);
    inbox_.push_back({tile, std::move(done)});
  }
  changed_.notify_one();
}

void OutputWriter::Abandon() {
  abandoned_ = true;
  { std::lock_guard lock(mutex_); }
  changed_.notify_one();
}

void OutputWriter::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void OutputWriter::Finish(const std::string& fingerprint, const std::atomic<int>& interrupt) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    ThrowIfInterrupted(interrupt);
    std::string header = plan_.shards[i].header;
    if (plan_.single_file) header = FillChecksums(std::move(header), fingerprint, sums_);
    shards_[i]->Write(0, header.data(), header.size());
    progress_.of(Stage::kWrite).bytes += header.size();
    if (!shards_[i]->complete()) throw Error(ErrorCode::kInternal, "a shard was left incomplete").Path(plan_.shards[i].name);
    shards_[i]->Finish();
  }
}

void OutputWriter::Loop() {
  for (;;) {
    Submitted submitted;
    {
      StallTimer stall(progress_.of(Stage::kWrite));
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || abandoned_ || !inbox_.empty(); });
      if (abandoned_) break;
      if (inbox_.empty()) return;
      submitted = std::move(inbox_.front());
      inbox_.pop_front();
    }
    try {
      Accept(std::move(submitted));
    } catch (...) {
      fail_(std::current_exception());  // abandons
    }
  }
  // Hand back whatever is held and whatever still comes.
  for (auto& [run, sequence] : sequences_)
    for (auto& [order, early] : sequence.early) early.done(early.tile);
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stop_ || !inbox_.empty(); });
    if (inbox_.empty()) return;
    Submitted left = std::move(inbox_.front());
    inbox_.pop_front();
    lock.unlock();
    left.done(left.tile);
  }
}

void OutputWriter::Accept(Submitted submitted) {
  ScopeRun* run = submitted.tile->scope;
  if (run == nullptr) return submitted.done(submitted.tile);
  Sequence& sequence = sequences_[run];
  sequence.early.emplace(submitted.tile->order, std::move(submitted));
  while (!sequence.early.empty() && sequence.early.begin()->first == sequence.next) {
    Submitted& next = sequence.early.begin()->second;
    WriteTile(*next.tile);
    next.done(next.tile);
    sequence.early.erase(sequence.early.begin());
    ++sequence.next;
    if (--run->unwritten > 0) continue;
    sequences_.erase(run);
    retire_(run);
    return;
  }
}

void OutputWriter::WriteTile(const OutputTile& tile) {
  const PlannedTensor& tensor = plan_.tensors[tile.tensor];
  StageTimer timer(progress_.of(Stage::kWrite));
  auto& hash = hashes_[tile.tensor];
  if (hash == nullptr) {
    hash.reset(XXH3_createState());
    XXH3_128bits_reset(hash.get());
  }
  XXH3_128bits_update(hash.get(), tile.data, tile.bytes);
  shards_[tensor.shard]->Write(tensor.offset + tile.begin, tile.data, tile.bytes);
  progress_.of(Stage::kWrite).bytes += tile.bytes;
  if (tile.begin + tile.bytes < tensor.bytes) return;
  sums_[tile.tensor] = XXH3_128bits_digest(hash.get());
  hashes_.erase(tile.tensor);
}

}  // namespace braid
