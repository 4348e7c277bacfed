#include "pipeline/read_queue.h"

#include <algorithm>

#include "io/error.h"

namespace braid {
namespace {

constexpr int kReaders = 4;
constexpr size_t kRequest = 2 << 20;

// Cuts a range into requests, of equal size, so that no block is left over for a request of its own.
template <typename Visit>
void ForEachRequest(const DirectRange& range, Visit visit) {
  constexpr size_t kBlock = DirectFile::kBlock;
  const size_t count = std::max<size_t>(1, (range.bytes + kRequest / 2) / kRequest);
  const size_t step = (range.bytes / count + kBlock - 1) / kBlock * kBlock;
  for (size_t at = 0; at < range.needed; at += step) {
    DirectRange part = range;
    part.begin += at, part.to += at;
    part.bytes = std::min(step, range.bytes - at), part.needed = std::min(step, range.needed - at);
    visit(std::move(part));
  }
}

}  // namespace

ReadQueue::ReadQueue(StageCounters* counters) : counters_(*counters) {
  for (int i = 0; i < kReaders; ++i) readers_.emplace_back([this] { Loop(); });
}

ReadQueue::~ReadQueue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

void ReadQueue::Submit(std::vector<DirectRange> ranges, Done done) {
  auto batch = std::make_shared<Batch>();
  batch->done = std::move(done);
  std::vector<Request> requests;
  for (const DirectRange& range : ranges)
    ForEachRequest(range, [&](DirectRange part) { requests.push_back({std::move(part), batch}); });
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

void ReadQueue::Loop() {
  for (Request request; Next(&request);) {
    Read(request);
    request = {};
    std::lock_guard lock(mutex_);
    if (--reading_ == 0 && waiting_.empty()) drained_.notify_all();
  }
}

// False when there is none, nor will be.
bool ReadQueue::Next(Request* request) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
  if (waiting_.empty()) return false;
  *request = std::move(waiting_.front());
  waiting_.pop_front();
  ++reading_;
  return true;
}

void ReadQueue::Read(const Request& request) {
  const DirectRange& range = request.range;
  Batch& batch = *request.batch;
  try {
    if (cancelled_) throw Error(ErrorCode::kInternal, "cancelled");  // not the first error, so nobody sees it
    StageTimer timer(counters_);
    range.file->Read(range.begin, range.bytes, range.needed, range.to);
  } catch (...) {
    std::lock_guard lock(batch.mutex);
    if (!batch.error) batch.error = std::current_exception();
  }
  if (batch.left.fetch_sub(1) == 1) batch.done(batch.error);
}

}  // namespace braid
