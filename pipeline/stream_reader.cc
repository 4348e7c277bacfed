#include "pipeline/stream_reader.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/error.h"

namespace braid {
namespace {

constexpr size_t kBounceBytes = 256 << 10;

InputStream& StreamOf(const Plan& plan, const PlannedStream& planned) {
  return *plan.checkpoints[planned.checkpoint].shards[planned.shard].stream;
}

}  // namespace

StreamReader::StreamReader(const Plan& plan, const PlannedStream& stream, StageCounters* counters)
    : plan_(plan),
      planned_(stream),
      stream_(StreamOf(plan, stream)),
      counters_(*counters) {
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
    bytes += kBounceBytes + sizeof(StreamReader) + stream.tensors.size() + StreamOf(plan, stream).MemoryBytes();
  return bytes;
}

void StreamReader::Cancel() { stream_.Cancel(); }

void StreamReader::Read(uint32_t tensor, uint64_t begin, uint64_t bytes, std::byte* to, Done done) {
  const TensorInfo& info = plan_.checkpoints[planned_.checkpoint].tensors[tensor].info;
  Submit({[=, this, &info] { ReadBytes(info, begin, bytes, to); }, std::move(done)});
}

void StreamReader::Finish(Done done) {
  const auto finish = [this] {
    if (!planned_.finishes) return;
    PassOver(End());
    std::byte beyond;
    if (stream_.Read(&beyond, 1) == 0) return stream_.CheckUnchanged(), stream_.Park();
    throw Error(ErrorCode::kBadInput, "it goes on after its last tensor")
        .Path(stream_.name())
        .Offset(End())
        .Hint("it is damaged, or more than one file was written to it");
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

uint64_t StreamReader::End() const {
  return plan_.checkpoints[planned_.checkpoint].shards[planned_.shard].identity.size;
}

// What is behind the stream was spooled, what is before it is not here yet.
void StreamReader::ReadBytes(const TensorInfo& info, uint64_t begin, uint64_t bytes, std::byte* to) {
  uint64_t at = info.offset + begin;
  const uint64_t end = at + bytes;
  if (stream_.position() < at) PassOver(at);
  if (at < stream_.position()) {
    const uint64_t behind = std::min(end, stream_.position()) - at;
    if (spool_ == nullptr) throw Error(ErrorCode::kInternal, "it was to be read once").Path(stream_.name());
    spool_->Read(at, to, behind);
    at += behind, to += behind;
  }
  Take(to, end - at);
}

// Reads up to byte `to` of the stream, and keeps of it what has to be kept.
void StreamReader::PassOver(uint64_t to) {
  bounce_.resize(kBounceBytes);
  while (stream_.position() < to)
    Take(bounce_.data(), std::min<uint64_t>(kBounceBytes, to - stream_.position()));
}

// Fewer where the stream ends. What is wrong with a compressed one shows somewhere in a tensor.
size_t StreamReader::ReadFor(const TensorInfo& info, std::byte* to, size_t bytes) {
  try {
    return stream_.Read(to, bytes);
  } catch (Error& error) {
    if (error.code() == ErrorCode::kBadInput) error.Tensor(info.name);
    throw;
  }
}

// The next bytes, which may be of several tensors.
void StreamReader::Take(std::byte* to, size_t bytes) {
  while (bytes > 0) {
    const uint64_t at = stream_.position();
    while (Info(next_).offset + Info(next_).bytes <= at) ++next_;
    const TensorInfo& info = Info(next_);
    const uint64_t left = info.offset + info.bytes - at;
    const size_t here = std::min<uint64_t>(bytes, left), got = ReadFor(info, to, here);
    if (got < here)
      throw Error(ErrorCode::kBadInput,
                  fmt::format("the stream ends here: {} of the tensor's {} bytes are missing, {} of the whole stream",
                              left - got, info.bytes, End() - stream_.position()))
          .Path(stream_.name())
          .Tensor(info.name)
          .Offset(stream_.position())
          .Hint("the program that writes it was ended, or has failed: see what it says");
    if (planned_.tensors[next_] != SpoolReason::kNone) spool_->Write(at, to, here);
    to += here, bytes -= here;
  }
}

}  // namespace braid
