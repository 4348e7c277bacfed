#include "pipeline/output_writer.h"

#include <algorithm>
#include <utility>

#include "io/shard_writer.h"
#include "pipeline/scope_run.h"

namespace braid {
namespace {

constexpr size_t kWriters = 2;
constexpr uint64_t kTellBytes = 256 << 20;

}  // namespace

OutputWriter::OutputWriter(const Plan& plan, const Share& share, const std::vector<std::string>& shard_paths,
                           Progress* progress)
    : plan_(plan), share_(share), progress_(*progress),
      output_(MakeShardOutput(plan, share, shard_paths, progress, &abandoned_)),
      sums_(plan.tensors.size(), XXH3_128bits(nullptr, 0)),
      memory_(plan.memory.buffer_bytes * (plan.memory.buffers + plan.memory.drafts)),
      tiles_(plan.memory.buffers + plan.memory.drafts) {
  for (size_t i = 0; i < tiles_.size(); ++i) {
    tiles_[i].buffer = memory_.data() + i * plan.memory.buffer_bytes;
    tiles_[i].draft = i >= plan.memory.buffers;
  }
  for (const OutputUnit& unit : share.units()) unit_missing_.push_back(unit.bytes());
  // Of a share, the headers are there already.
  for (uint32_t i = 0; i < plan.shards.size() && !share.everything(); ++i)
    CountUnits(i, 0, plan.shards[i].header.size());
}

OutputWriter::~OutputWriter() { Stop(); }

void OutputWriter::Start(std::function<void(std::exception_ptr)> fail, std::function<void(ScopeRun*)> retire,
                         std::function<void(WrittenUnits)> units_done) {
  fail_ = std::move(fail);
  retire_ = std::move(retire);
  units_done_ = std::move(units_done);
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
  {
    std::unique_lock lock(order_mutex_);
    FinishUnits(&lock, true);
  }
  output_->Finish(fingerprint, sums_, interrupt);
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
      if (tile->scope != nullptr && output_->any_order()) WriteTile(*tile);
      written = tile->scope != nullptr;
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
  ForEachOwn(tensor, tile, [&](uint64_t begin, uint64_t end) {
    const std::byte* const from = tile.data + (begin - tensor.offset - tile.begin);
    output_->Write(tensor.shard, begin, from, end - begin);
    progress_.of(Stage::kWrite).bytes += end - begin;
  });
}

// The parts of a tile that are ours to write, as ranges of the shard's file.
template <typename Visit>
void OutputWriter::ForEachOwn(const PlannedTensor& tensor, const OutputTile& tile, Visit visit) const {
  const uint64_t begin = tensor.offset + tile.begin, end = begin + tile.bytes;
  const auto ranges = share_.Written(tensor.shard);
  auto range = std::partition_point(ranges.begin(), ranges.end(), [&](const ByteRange& r) { return r.end <= begin; });
  for (; range != ranges.end() && range->begin < end; ++range)
    visit(std::max(begin, range->begin), std::min(end, range->end));
}

// Takes over a tile; it is handed back once it is written and its bytes are in the checksum.
void OutputWriter::AddInOrder(Submitted submitted) {
  std::unique_lock lock(order_mutex_);
  if (abandoned_) return submitted.done(submitted.tile);  // the others have been handed back, or will be
  ScopeRun* run = submitted.tile->scope;
  Sequence& sequence = sequences_[run];
  sequence.early.emplace(submitted.tile->order, std::move(submitted));
  while (!sequence.early.empty() && sequence.early.begin()->first == sequence.next) {
    Submitted& next = sequence.early.begin()->second;
    if (!output_->any_order()) WriteTile(*next.tile);
    AddToChecksum(*next.tile);
    next.done(next.tile);
    sequence.early.erase(sequence.early.begin());
    ++sequence.next;
    if (--run->unwritten > 0) continue;
    sequences_.erase(run);
    retire_(run);
    break;
  }
  FinishUnits(&lock, false);
}

void OutputWriter::AddToChecksum(const OutputTile& tile) {
  StageTimer timer(progress_.of(Stage::kWrite));
  const PlannedTensor& tensor = plan_.tensors[tile.tensor];
  if (share_.Whole(tile.tensor)) {
    Checksum& checksum = checksums_[tile.tensor];
    checksum.Add(tile.data, tile.bytes);
    if (tile.begin + tile.bytes == tensor.bytes) {
      sums_[tile.tensor] = checksum.Take();
      checksums_.erase(tile.tensor);
      if (!share_.everything()) new_sums_.emplace_back(tile.tensor, sums_[tile.tensor]);
    }
  }
  if (share_.everything()) return;
  ForEachOwn(tensor, tile, [&](uint64_t begin, uint64_t end) { CountUnits(tensor.shard, begin, end); });
}

// Bytes of a shard's file that are written, and whose checksums are taken.
void OutputWriter::CountUnits(uint32_t shard, uint64_t begin, uint64_t end) {
  const std::vector<OutputUnit>& units = share_.units();
  const auto before = [&](const OutputUnit& unit) {
    return unit.shard < shard || (unit.shard == shard && unit.end <= begin);
  };
  for (auto unit = std::partition_point(units.begin(), units.end(), before);
       unit != units.end() && unit->shard == shard && unit->begin < end; ++unit) {
    const auto index = static_cast<uint32_t>(unit - units.begin());
    unit_missing_[index] -= std::min(end, unit->end) - std::max(begin, unit->begin);
    if (unit_missing_[index] > 0) continue;
    units_finished_.push_back(index);
    bytes_finished_ += unit->bytes();
  }
}

// Tells of the units that are complete, when there is much to tell, or nothing has been told for a second: each time
// waits for the disk. Those of shards that have not left yet wait. It takes the lock away, which is no reason
// to stop the others.
void OutputWriter::FinishUnits(std::unique_lock<std::mutex>* lock, bool all) {
  const auto now = std::chrono::steady_clock::now();
  if (units_finished_.empty()) return;
  if (!all && bytes_finished_ < kTellBytes && now - told_ < std::chrono::seconds(1)) return;
  const auto waits = [&](uint32_t index) { return !output_->HasLeft(share_.units()[index].shard); };
  const auto left = std::stable_partition(units_finished_.begin(), units_finished_.end(), waits);
  std::vector<uint32_t> finished(left, units_finished_.end());
  units_finished_.erase(left, units_finished_.end());
  bytes_finished_ = 0, told_ = now;
  if (finished.empty()) return;
  WrittenUnits written;
  const auto is_early = [&](const auto& sum) { return !output_->HasLeft(plan_.tensors[sum.first].shard); };
  const auto with_units = std::stable_partition(new_sums_.begin(), new_sums_.end(), is_early);
  written.sums.assign(with_units, new_sums_.end());
  new_sums_.erase(with_units, new_sums_.end());
  lock->unlock();
  std::sort(finished.begin(), finished.end());
  for (uint32_t index : finished) {
    const OutputUnit& unit = share_.units()[index];
    if (written.units.empty() || written.units.back().shard != unit.shard) output_->Sync(unit.shard);
    written.units.push_back(unit);
  }
  units_done_(std::move(written));
}

}  // namespace braid
