#include "pipeline/stream_reader.h"

#include <algorithm>
#include <span>

#include "io/error.h"

namespace braid {
namespace {

InputStream& StreamOf(const Plan& plan, const PlannedStream& planned) {
  return *plan.checkpoints[planned.checkpoint].shards[planned.shard].stream;
}

}  // namespace

StreamReader::StreamReader(const Plan& plan, const PlannedStream& stream, StageCounters* counters)
    : plan_(plan),
      planned_(stream),
      stream_(StreamOf(plan, stream)),
      counters_(*counters),
      tensors_(&stream_,
               std::span(plan.checkpoints[stream.checkpoint].tensors).subspan(stream.first, stream.tensors.size()),
               plan.checkpoints[stream.checkpoint].shards[stream.shard].identity.size,
               [this](size_t tensor, uint64_t at, const std::byte* bytes, size_t size) {
                 if (planned_.tensors[tensor] != SpoolReason::kNone) spool_->Write(at, bytes, size);
               }) {
  if (stream.spooled > 0) {
    std::unique_ptr<TemporaryFile>& file = stream.spool->file;
    if (file == nullptr) file = std::make_unique<TemporaryFile>();
    spool_ = file.get();
  }
  thread_ = std::thread([this] { Loop(); });
}

StreamReader::~StreamReader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t StreamReader::MemoryBytes(const Plan& plan) {
  uint64_t bytes = 0;
  for (const PlannedStream& stream : plan.streams)
    bytes += TensorStream::kBounceBytes + sizeof(StreamReader) + stream.tensors.size() +
             StreamOf(plan, stream).MemoryBytes();
  return bytes;
}

void StreamReader::Cancel() { stream_.Cancel(); }

void StreamReader::Read(uint32_t tensor, uint64_t begin, uint64_t bytes, std::byte* to, Done done) {
  const TensorInfo& info = plan_.checkpoints[planned_.checkpoint].tensors[tensor].info;
  Submit({[=, this, &info] { ReadBytes(info, begin, bytes, to); }, std::move(done)});
}

void StreamReader::Finish(Done done) {
  const auto finish = [this] {
    if (planned_.finishes) tensors_.Finish();
  };
  Submit({finish, std::move(done)});
}

void StreamReader::Submit(Request request) {
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(request));
  }
  changed_.notify_all();
}

void StreamReader::Loop() {
  for (;;) {
    Request request;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      request = std::move(waiting_.front());
      waiting_.pop_front();
    }
    std::exception_ptr error;
    try {
      StageTimer timer(counters_);
      request.work();
    } catch (...) {
      error = std::current_exception();
      stream_.Cancel();   // what comes next would not be what it is taken for
    }
    request.done(error);
  }
}

// What is behind the stream was spooled, what is before it is not here yet.
void StreamReader::ReadBytes(const TensorInfo& info, uint64_t begin, uint64_t bytes, std::byte* to) {
  uint64_t at = info.offset + begin;
  const uint64_t end = at + bytes;
  if (stream_.position() < at) tensors_.PassOver(at);
  if (at < stream_.position()) {
    const uint64_t behind = std::min(end, stream_.position()) - at;
    if (spool_ == nullptr) throw Error(ErrorCode::kInternal, "it was to be read once").Path(stream_.name());
    spool_->Read(at, to, behind);
    at += behind, to += behind;
  }
  tensors_.Take(to, end - at);
}

}  // namespace braid
