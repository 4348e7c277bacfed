#include "pipeline/source_files.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <future>

#include "io/direct_file.h"

namespace braid {

struct SourceFiles::File {
  const Shard* shard = nullptr;
  std::shared_ptr<MappedFile> map;  // one of these while it is open
  std::shared_ptr<DirectFile> direct;
  std::shared_ptr<CompressedFile> compressed;
  std::list<File*>::iterator place;  // in open_
  bool was_open = false;
  bool cached = false;  // read through the page cache, and in it when the merge began

  bool is_open() const { return map != nullptr || direct != nullptr || compressed != nullptr; }
  const MappedFile* through_cache() const { return compressed != nullptr ? compressed->cached() : map.get(); }
  // Bytes per 8 MiB window that the merge round still has to read; a window is evicted when it reaches 0.
  std::vector<std::atomic<int64_t>> unread;
};

namespace {

// The windows of the file that so many bytes of a plain shard are in; those of a frame, in the one that it begins in.
template <typename Visit>
void ForEachWindow(const Shard& shard, uint64_t offset, uint64_t bytes, Visit visit) {
  if (shard.compressed != nullptr && bytes > 0) {
    const std::vector<CompressedFrame>& frames = shard.compressed->frames();
    for (size_t f = shard.compressed->FrameAt(offset); f < frames.size() && frames[f].begin < offset + bytes; ++f) {
      const uint64_t begin = std::max(offset, frames[f].begin);
      const uint64_t end = std::min(offset + bytes, frames[f].begin + frames[f].bytes);
      visit(frames[f].offset / MappedFile::kEvictWindow, static_cast<int64_t>(end - begin));
    }
    return;
  }
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    const uint64_t window = at / MappedFile::kEvictWindow;
    const uint64_t here = std::min(end, (window + 1) * MappedFile::kEvictWindow) - at;
    visit(window, static_cast<int64_t>(here));
    at += here;
  }
}

// What a buffer for the superset of a range needs, wherever the range begins, so that all tiles of one size can use
// each other's buffers; no more than TileCost has counted.
size_t BufferBytes(uint64_t bytes) {
  constexpr uint64_t kBlock = DirectFile::kBlock;
  return bytes == 0 ? 0 : (bytes + 2 * kBlock) / kBlock * kBlock;
}

// Descriptors that we may spend on sources, whatever else is open.
size_t MostOpenFiles(size_t output_shards) {
  constexpr size_t kOthers = 32, kFew = 4;
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < output_shards + kOthers + kFew) return kFew;
  return limit.rlim_cur - output_shards - kOthers;
}

// As many tiles as workers and readers have at once, and as many again.
uint64_t BytesAhead(const Plan& plan) {
  if (!plan.streams.empty()) return plan.memory.pool;
  uint64_t largest = 0;
  for (const PlannedTensor& tensor : plan.tensors)
    largest = std::max(largest, TileCost(plan, tensor, std::min(tensor.elements, plan.TileElements(tensor))));
  return 4 * static_cast<uint64_t>(plan.memory.threads) * largest;
}

// Calls `done` when so many parts are done, with the first error of any.
ReadQueue::Done AfterParts(size_t parts, ReadQueue::Done done) {
  struct State {
    std::mutex mutex;
    size_t left;
    std::exception_ptr error;
    ReadQueue::Done done;
  };
  if (parts == 1) return done;
  auto state = std::make_shared<State>();
  state->left = parts, state->done = std::move(done);
  return [state](std::exception_ptr error) {
    {
      std::lock_guard lock(state->mutex);
      if (error && !state->error) state->error = error;
      if (--state->left > 0) return;
    }
    state->done(state->error);
  };
}

// Waits for what `submit` has done by another thread.
template <typename Submit>
void WaitFor(Submit submit) {
  std::promise<void> promise;
  std::future<void> future = promise.get_future();
  submit([&promise](std::exception_ptr error) {
    if (error) promise.set_exception(error);
    else promise.set_value();
  });
  future.get();
}

}  // namespace

SourceFiles::SourceFiles(const Plan& plan, Budget* budget, StageCounters* counters)
    : plan_(plan),
      counters_(*counters),
      buffers_(budget),
      files_(plan.checkpoints.size()),
      decoded_(plan.memory.decoding),
      rows_(plan, [this](const TensorSource& source, uint64_t begin, uint64_t bytes,
                         std::byte* to) { ReadBytes(source, begin, bytes, to); }),
      most_open_(MostOpenFiles(plan.shards.size() + 2 * plan.streams.size())),
      most_ahead_(BytesAhead(plan)) {
  for (const PlannedStream& stream : plan.streams)
    streams_.push_back(std::make_unique<StreamReader>(plan, stream, counters));
  const auto is_direct = [](const ReadChoice& choice) { return choice.backend == ReadBackend::kDirect; };
  const size_t decoders = plan.memory.decoding.decoders;
  if (decoders > 0 || std::any_of(plan.reading.begin(), plan.reading.end(), is_direct))
    queue_ = std::make_unique<ReadQueue>(counters, std::max(decoders, ReadQueue::kReaders));
  for (size_t c = 0; c < files_.size(); ++c)
    for (const Shard& shard : plan.checkpoints[c].shards) {
      auto file = std::make_unique<File>();
      file->shard = &shard;
      if (shard.stream == nullptr)
        file->unread = std::vector<std::atomic<int64_t>>(shard.identity.size / MappedFile::kEvictWindow + 1);
      files_[c].push_back(std::move(file));
    }
  const auto count = [&](const TensorSource& source, uint64_t begin, uint64_t bytes) {
    File& file = FileOf(source);
    if (file.shard->stream != nullptr) return;
    ForEachWindow(*file.shard, plan.Info(source).offset + begin, bytes,
                  [&](uint64_t window, int64_t here) { file.unread[window] += here; });
  };
  for (const PlannedTensor& tensor : plan.tensors)
    for (size_t slot = 0; slot <= tensor.models.size(); ++slot)
      if (tensor.SourceAt(slot).present()) ForEachFileRange(plan, tensor, slot, 0, tensor.elements, count);
}

SourceFiles::~SourceFiles() = default;

SourceFiles::File& SourceFiles::FileOf(const TensorSource& source) const {
  const auto checkpoint = static_cast<size_t>(source.checkpoint);
  return *files_[checkpoint][plan_.checkpoints[checkpoint].tensors[source.tensor].shard];
}

StreamReader* SourceFiles::StreamOf(const TensorSource& source) const {
  const int32_t stream = plan_.StreamOf(source);
  return stream < 0 ? nullptr : streams_[static_cast<size_t>(stream)].get();
}

bool SourceFiles::IsDirect(const TensorSource& source) const {
  return plan_.reading[static_cast<size_t>(source.checkpoint)].backend == ReadBackend::kDirect;
}

bool SourceFiles::IsMapped(const TensorSource& source) const {
  const Shard& shard = *FileOf(source).shard;
  return !IsDirect(source) && shard.compressed == nullptr && shard.stream == nullptr;
}

void SourceFiles::Open(File* file, bool direct) {
  if (file->is_open()) {
    open_.splice(open_.begin(), open_, file->place);
    return;
  }
  if (open_.size() >= most_open_) CloseOne();
  std::lock_guard lock(mutex_);
  const Shard& shard = *file->shard;
  if (shard.compressed != nullptr)
    file->compressed = std::make_shared<CompressedFile>(shard.compressed, shard.identity, direct, &decoded_);
  else if (direct) file->direct = std::make_shared<DirectFile>(shard.path, shard.identity);
  else file->map = std::make_shared<MappedFile>(shard.path, shard.identity);
  if (!direct && !file->was_open) file->cached = file->through_cache()->CachedShare() >= 0.5;
  file->was_open = true;
  file->place = open_.insert(open_.begin(), file);
}

void SourceFiles::CloseOne() {
  File* const file = open_.back();
  // Reads that wait keep it open, and perhaps many more.
  if (file->direct.use_count() > 1 || file->compressed.use_count() > 1) queue_->Drain();
  std::lock_guard lock(mutex_);
  file->map.reset(), file->direct.reset(), file->compressed.reset();
  open_.pop_back();
}

bool SourceFiles::WaitForBuffers() { return buffers_.WaitForReturns(most_ahead_); }

void SourceFiles::Read(const std::vector<SourceRange>& ranges, ReadQueue::Done done) {
  Reads reads;
  try {
    reads = MakeWindows(ranges);
  } catch (...) {
    return done(std::current_exception());
  }
  const size_t parts = reads.streams.size() + (reads.queued.empty() ? 0 : 1);
  if (parts == 0) return done(nullptr);
  done = AfterParts(parts, std::move(done));
  for (const StreamRange& range : reads.streams)
    range.stream->Read(range.tensor, range.begin, range.bytes, range.to, done);
  if (!reads.queued.empty()) queue_->Submit(std::move(reads.queued), std::move(done));
}

// Mapped windows are made resident, rows of another vocabulary gathered; of the others, what is still to be read.
SourceFiles::Reads SourceFiles::MakeWindows(const std::vector<SourceRange>& ranges) {
  const auto bytes_of = [&](const SourceRange& range, uint64_t elements) {
    return elements * static_cast<uint64_t>(DTypeBits(plan_.TypeAt(*range.tensor, range.slot))) / 8;
  };
  const auto is_gathered = [](const SourceRange& range) { return range.tensor->RowsAt(range.slot) != nullptr; };
  size_t buffer_bytes = 0, taken = 0;
  for (const SourceRange& range : ranges)
    if (is_gathered(range) || !IsMapped(range.tensor->SourceAt(range.slot)))
      buffer_bytes += BufferBytes(bytes_of(range, range.count));
  const auto buffer = std::make_shared<ReadBuffer>(buffers_.Take(buffer_bytes));
  Reads reads;
  for (const SourceRange& range : ranges) {
    const uint64_t bytes = bytes_of(range, range.count);
    std::byte* const to = buffer->data() + taken;
    if (is_gathered(range)) {
      rows_.Gather(*range.tensor, range.slot, range.first, range.count, to);
      *range.window = SourceWindow(buffer, BufferBytes(bytes), to, bytes);
      taken += BufferBytes(bytes);
      continue;
    }
    const TensorSource& source = range.tensor->SourceAt(range.slot);
    counters_.bytes += bytes;
    if (StreamReader* const stream = StreamOf(source)) {
      const uint64_t begin = bytes_of(range, range.first);
      // A tensor that the base lends to models comes once.
      const auto same = std::find_if(reads.streams.begin(), reads.streams.end(), [&](const StreamRange& earlier) {
        return earlier.stream == stream && earlier.tensor == source.tensor && earlier.begin == begin;
      });
      std::byte* const data = same == reads.streams.end() ? to : same->to;
      if (data == to) reads.streams.push_back({stream, source.tensor, begin, bytes, to});
      *range.window = SourceWindow(buffer, BufferBytes(bytes), data, bytes);
      taken += BufferBytes(bytes);
      continue;
    }
    File& file = FileOf(source);
    Open(&file, IsDirect(source));
    const uint64_t offset = plan_.Info(source).offset + bytes_of(range, range.first);
    if (file.map != nullptr) {
      MappedWindow map = file.map->Map(offset, bytes);
      map.Touch(file.cached);
      *range.window = SourceWindow(std::move(map));
    } else if (bytes > 0) {
      const DirectFile::Superset superset =
          file.compressed != nullptr ? DirectFile::Superset{offset, 0, bytes} : DirectFile::SupersetOf(offset, bytes);
      reads.queued.push_back({file.direct, file.compressed, superset.begin, superset.bytes, superset.skip + bytes, to,
                              &plan_.Info(source).name});
      *range.window = SourceWindow(buffer, BufferBytes(bytes), to + superset.skip, bytes);
      taken += BufferBytes(bytes);
    }
  }
  return reads;
}

// On this thread, into memory of any alignment.
void SourceFiles::ReadBytes(const TensorSource& source, uint64_t begin, uint64_t bytes, std::byte* to) {
  counters_.bytes += bytes;
  if (StreamReader* const stream = StreamOf(source))
    return WaitFor([&](auto done) { stream->Read(source.tensor, begin, bytes, to, std::move(done)); });
  File& file = FileOf(source);
  Open(&file, IsDirect(source));
  const uint64_t offset = plan_.Info(source).offset + begin;
  if (file.map != nullptr) return file.map->Read(offset, bytes, to);
  if (file.compressed != nullptr) return file.compressed->Read(offset, bytes, to, plan_.Info(source).name);
  for (uint64_t at = 0; at < bytes; at += kBounceBytes) {
    const uint64_t here = std::min(kBounceBytes, bytes - at);
    const DirectFile::Superset superset = DirectFile::SupersetOf(offset + at, here);
    if (bounce_.size() == 0) bounce_ = HugePages(kBounceBytes + 2 * DirectFile::kBlock);
    file.direct->Read(superset.begin, superset.bytes, superset.skip + here, bounce_.data());
    std::memcpy(to + at, bounce_.data() + superset.skip, here);
  }
}

void SourceFiles::Used(const PlannedTensor& tensor, size_t slot, uint64_t first, uint64_t count) {
  ForEachFileRange(plan_, tensor, slot, first, count, [&](const TensorSource& source, uint64_t begin, uint64_t bytes) {
    UsedBytes(source, begin, bytes);
  });
}

// What is in the page cache of a file that had to be closed stays there.
void SourceFiles::UsedBytes(const TensorSource& source, uint64_t begin, uint64_t bytes) {
  File& file = FileOf(source);
  if (file.shard->stream != nullptr) return;
  std::shared_ptr<const InputFile> input;   // whose pages are in the cache because of us
  {
    std::lock_guard lock(mutex_);
    if (file.compressed != nullptr && !file.cached && file.through_cache() != nullptr)
      input = {file.compressed, file.through_cache()};
    if (file.map != nullptr && !file.cached) input = file.map;
    if (file.direct != nullptr && !file.direct->direct()) input = file.direct;
  }
  ForEachWindow(*file.shard, plan_.Info(source).offset + begin, bytes, [&](uint64_t window, int64_t here) {
    if (file.unread[window].fetch_sub(here) == here && input != nullptr)
      input->Evict(window * MappedFile::kEvictWindow, MappedFile::kEvictWindow);
  });
}

void SourceFiles::FinishStreams() {
  for (const auto& stream : streams_) WaitFor([&](auto done) { stream->Finish(std::move(done)); });
}

void SourceFiles::Cancel() {
  buffers_.Cancel();
  if (queue_ != nullptr) queue_->Cancel();
  for (const auto& stream : streams_) stream->Cancel();
}

void SourceFiles::CheckUnchanged() const {
  std::lock_guard lock(mutex_);
  for (const auto& checkpoint : files_)
    for (const auto& file : checkpoint) {
      if (file->map != nullptr) file->map->CheckUnchanged();
      else if (file->direct != nullptr) file->direct->CheckUnchanged();
      else if (file->compressed != nullptr) file->compressed->file().CheckUnchanged();
      else if (file->was_open) braid::CheckUnchanged(file->shard->path, file->shard->identity);
    }
}

}  // namespace braid
