#include "pipeline/read_queue.h"

#include <algorithm>

#include "io/error.h"

namespace braid {
namespace {

constexpr size_t kRequest = 2 << 20;

// Cuts a range into requests, of equal size, so that no block is left over for a request of its own.
template <typename Visit>
void ForEachDirectRequest(const QueuedRange& range, Visit visit) {
  constexpr size_t kBlock = DirectFile::kBlock;
  const size_t count = std::max<size_t>(1, (range.bytes + kRequest / 2) / kRequest);
  const size_t step = (range.bytes / count + kBlock - 1) / kBlock * kBlock;
  for (size_t at = 0; at < range.needed; at += step) {
    QueuedRange part = range;
    part.begin += at, part.to += at;
    part.bytes = std::min(step, range.bytes - at), part.needed = std::min(step, range.needed - at);
    visit(std::move(part));
  }
}

// One request per frame.
template <typename Visit>
void ForEachFrame(const QueuedRange& range, Visit visit) {
  const CompressedShard& shard = range.compressed->shard();
  const uint64_t end = range.begin + range.bytes;
  QueuedRange part = range;
  for (size_t f = shard.FrameAt(range.begin); part.begin < end; ++f) {
    const CompressedFrame& frame = shard.frames()[f];
    part.bytes = std::min(end, frame.begin + frame.bytes) - part.begin;
    visit(part);
    part.begin += part.bytes, part.to += part.bytes;
  }
}

}  // namespace

ReadQueue::ReadQueue(StageCounters* counters, size_t readers) : counters_(*counters) {
  for (size_t i = 0; i < readers; ++i) readers_.emplace_back([this](std::stop_token stop) { Loop(stop); });
}

void ReadQueue::Submit(std::vector<QueuedRange> ranges, Done done) {
  auto batch = std::make_shared<Batch>();
  batch->done = std::move(done);
  std::vector<Request> requests;
  const auto add = [&](QueuedRange part) { requests.push_back({std::move(part), batch}); };
  for (const QueuedRange& range : ranges)
    if (range.compressed != nullptr) ForEachFrame(range, add);
    else ForEachDirectRequest(range, add);
  if (requests.empty()) return batch->done(nullptr);
  batch->left = requests.size();
  {
    std::lock_guard lock(mutex_);
    for (Request& request : requests) waiting_.push_back(std::move(request));
  }
  changed_.notify_all();
}

void ReadQueue::Drain() {
  std::unique_lock lock(mutex_);
  drained_.wait(lock, [&] { return waiting_.empty() && reading_ == 0; });
}

void ReadQueue::Loop(std::stop_token stop) {
  for (Request request; Next(stop, &request);) {
    Read(request);
    request = {};
    std::lock_guard lock(mutex_);
    if (--reading_ == 0 && waiting_.empty()) drained_.notify_all();
  }
}

// False when there is none, nor will be.
bool ReadQueue::Next(std::stop_token stop, Request* request) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait(lock, stop, [&] { return !waiting_.empty(); })) return false;
  *request = std::move(waiting_.front());
  waiting_.pop_front();
  ++reading_;
  return true;
}

void ReadQueue::Read(const Request& request) {
  const QueuedRange& range = request.range;
  Batch& batch = *request.batch;
  try {
    if (cancelled_) throw Error(ErrorCode::kInternal, "cancelled");  // not the first error, so nobody sees it
    StageTimer timer(counters_);
    if (range.compressed != nullptr) range.compressed->Read(range.begin, range.bytes, range.to, *range.tensor);
    else range.direct->Read(range.begin, range.bytes, range.needed, range.to);
  } catch (...) {
    std::lock_guard lock(batch.mutex);
    if (!batch.error) batch.error = std::current_exception();
  }
  if (batch.left.fetch_sub(1) == 1) batch.done(batch.error);
}

}  // namespace braid
