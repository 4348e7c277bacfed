#include "pipeline/output_writer.h"

#include "io/error.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"
#include "pipeline/scope_run.h"

namespace braid {
namespace {

constexpr size_t kWriters = 2;

}  // namespace

OutputWriter::OutputWriter(const Plan& plan, const std::vector<std::string>& shard_paths, Progress* progress)
    : plan_(plan), progress_(*progress), sums_(plan.tensors.size(), XXH3_128bits(nullptr, 0)),
      memory_(plan.memory.buffer_bytes * (plan.memory.buffers + plan.memory.drafts)),
      tiles_(plan.memory.buffers + plan.memory.drafts) {
  for (size_t i = 0; i < tiles_.size(); ++i) {
    tiles_[i].buffer = memory_.data() + i * plan.memory.buffer_bytes;
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
  for (size_t i = 0; i < kWriters; ++i) threads_.emplace_back([this] { Loop(); });
}

void OutputWriter::Place(OutputTile* tile) const {
  const PlannedTensor& tensor = plan_.tensors[tile->tensor];
  const uint64_t phase = ShardWriter::Phase(tensor.offset + tile->begin);
  // Elements must be aligned for those who fill the tile; a file may place them anywhere.
  const bool aligned = phase % (static_cast<uint64_t>(DTypeBits(tensor.type)) / 8) == 0;
  tile->data = tile->buffer + (aligned ? phase : 0);
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
  changed_.notify_all();
}

void OutputWriter::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void OutputWriter::Finish(const std::string& fingerprint, const std::atomic<int>& interrupt) {
  for (size_t i = 0; i < shards_.size(); ++i) {
    ThrowIfInterrupted(interrupt);
    std::string header = plan_.shards[i].header;
    if (plan_.single_file) header = FillChecksums(std::move(header), fingerprint, sums_);
    shards_[i]->Write(0, header.data(), header.size());
    progress_.of(Stage::kWrite).bytes += header.size();
    if (!shards_[i]->complete())
      throw Error(ErrorCode::kInternal, "a shard was left incomplete").Path(plan_.shards[i].name);
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
    OutputTile* const tile = submitted.tile;
    bool written = false;
    try {
      if (tile->scope != nullptr) WriteTile(*tile), written = true;
      if (written) AddInOrder(std::move(submitted));
    } catch (...) {
      fail_(std::current_exception());  // abandons
    }
    if (!written) submitted.done(tile);
  }
  HandBackAll();
}

// Whatever is held and whatever still comes.
void OutputWriter::HandBackAll() {
  {
    std::lock_guard lock(order_mutex_);
    for (auto& [run, sequence] : sequences_)
      for (auto& [order, early] : sequence.early) early.done(early.tile);
    sequences_.clear();
  }
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

void OutputWriter::WriteTile(const OutputTile& tile) {
  const PlannedTensor& tensor = plan_.tensors[tile.tensor];
  StageTimer timer(progress_.of(Stage::kWrite));
  shards_[tensor.shard]->Write(tensor.offset + tile.begin, tile.data, tile.bytes);
  progress_.of(Stage::kWrite).bytes += tile.bytes;
}

// Takes over a tile that is written; it is handed back once its bytes are in the checksum.
void OutputWriter::AddInOrder(Submitted submitted) {
  std::lock_guard lock(order_mutex_);
  if (abandoned_) return submitted.done(submitted.tile);  // the others have been handed back, or will be
  ScopeRun* run = submitted.tile->scope;
  Sequence& sequence = sequences_[run];
  sequence.early.emplace(submitted.tile->order, std::move(submitted));
  while (!sequence.early.empty() && sequence.early.begin()->first == sequence.next) {
    Submitted& next = sequence.early.begin()->second;
    AddToChecksum(*next.tile);
    next.done(next.tile);
    sequence.early.erase(sequence.early.begin());
    ++sequence.next;
    if (--run->unwritten > 0) continue;
    sequences_.erase(run);
    retire_(run);
    return;
  }
}

void OutputWriter::AddToChecksum(const OutputTile& tile) {
  StageTimer timer(progress_.of(Stage::kWrite));
  Checksum& checksum = checksums_[tile.tensor];
  checksum.Add(tile.data, tile.bytes);
  if (tile.begin + tile.bytes < plan_.tensors[tile.tensor].bytes) return;
  sums_[tile.tensor] = checksum.Take();
  checksums_.erase(tile.tensor);
}

}  // namespace braid
