// The sources of a plan as memory, tile by tile. A window is either mapped, and the page cache of what nobody reads
// again is given back, unless the file was in the cache before the merge began: then somebody wants it there; or a
// buffer that direct reads fill, which leave the page cache alone. Which of them is decided in the plan, per
// checkpoint. Windows of a compressed shard are buffers that its frames are decoded into; the plan decides whether they
// come through the page cache. Streams are read into buffers as they come. Rows of another vocabulary are gathered into
// such a buffer. Files are opened when they are needed; when there are more than the process may have open, those that
// were not used for longest are closed, and must be the same when they are opened again.
//
// Read is for the I/O thread; everything else for any thread.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "io/compressed_file.h"
#include "io/mapped_file.h"
#include "pipeline/budget.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/read_buffers.h"
#include "pipeline/read_queue.h"
#include "pipeline/row_reader.h"
#include "pipeline/stream_reader.h"

namespace braid {

// Bytes of a source in memory. Move-only.
class SourceWindow {
 public:
  SourceWindow() = default;
  explicit SourceWindow(MappedWindow map) : map_(std::move(map)), data_(map_.data()), size_(map_.size()) {}
  // `held`: its share of the buffer's bytes, of which it sees `bytes` from `data` on.
  SourceWindow(std::shared_ptr<ReadBuffer> buffer, size_t held, const std::byte* data, size_t bytes)
      : buffer_(std::move(buffer)), held_(held), data_(data), size_(bytes) {}

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  size_t held() const { return held_; }  // bytes that go back to the budget with the buffer

 private:
  MappedWindow map_;
  std::shared_ptr<ReadBuffer> buffer_;  // of the tile
  size_t held_ = 0;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Elements [first, first + count) of an output tensor as the source in a slot has them, and where they are wanted.
struct SourceRange {
  const PlannedTensor* tensor = nullptr;
  size_t slot = 0;
  uint64_t first = 0, count = 0;
  SourceWindow* window = nullptr;
};

class SourceFiles {
 public:
  // `budget`: what windows are taken from. `counters`: of reading; counts bytes of files.
  SourceFiles(const Plan& plan, Budget* budget, StageCounters* counters);
  ~SourceFiles();

  // Waits while buffers hold more than workers and readers need to stay busy: more would only take longer to fill, the
  // first time, because the kernel clears their pages (a merge of 5 GB of byte planes under 1 GiB filled all of it, at
  // 1.5 s of CPU). Not for streams, which may wait for each other. For what need not be in memory as a whole, whose
  // buffers come back whatever is read next. False when cancelled.
  bool WaitForBuffers();

  // Makes the windows of one tile, whose bytes were taken from the budget, and fills them. Calls `done` once, with the
  // first error or null, on this thread or, when all reads have ended, on another. Reads of several tiles are in flight
  // at once and may end in any order. Never throws.
  void Read(const std::vector<SourceRange>& ranges, ReadQueue::Done done);

  // The merge round has used these elements: no later round reads them.
  void Used(const PlannedTensor& tensor, size_t slot, uint64_t first, uint64_t count);

  // Reads what nobody has read of streams, which have to end where they should. Throws Error.
  void FinishStreams();

  // Reads that have not begun end with an error; those of streams, too, that have.
  void Cancel();

  // Throws Error(kInputChanged) if any file that was ever opened is not what it was.
  void CheckUnchanged() const;

 private:
  // Gathered rows come past the page cache in pieces of this size.
  static constexpr uint64_t kBounceBytes = 256 << 10;

  struct File;
  File& FileOf(const TensorSource& source) const;
  bool IsDirect(const TensorSource& source) const;
  bool IsMapped(const TensorSource& source) const;
  void Open(File* file, bool direct);
  void CloseOne();
  void UsedBytes(const TensorSource& source, uint64_t begin, uint64_t bytes);
  void ReadBytes(const TensorSource& source, uint64_t begin, uint64_t bytes, std::byte* to);

  // What is read once the windows are there.
  struct StreamRange {
    StreamReader* stream;
    uint32_t tensor;
    uint64_t begin, bytes;
    std::byte* to;
  };
  struct Reads {
    std::vector<QueuedRange> queued;
    std::vector<StreamRange> streams;
  };
  Reads MakeWindows(const std::vector<SourceRange>& ranges);
  StreamReader* StreamOf(const TensorSource& source) const;

  const Plan& plan_;
  StageCounters& counters_;
  ReadBuffers buffers_;
  std::vector<std::vector<std::unique_ptr<File>>> files_;  // [checkpoint][shard]
  DecodedFrames decoded_;                                  // of all compressed shards
  std::unique_ptr<ReadQueue> queue_;                       // if anything is not mapped
  std::vector<std::unique_ptr<StreamReader>> streams_;     // as Plan::streams
  HugePages bounce_;                                       // of kBounceBytes and two blocks, once it is needed
  RowReader rows_;                                         // of sources with another vocabulary; the I/O thread's

  const size_t most_open_;
  const uint64_t most_ahead_;  // bytes of buffers, of tiles that are about to be read
  mutable std::mutex mutex_;   // of what opens and closes files; only the I/O thread does that
  std::list<File*> open_;      // the one used last in front; the I/O thread's
};

}  // namespace braid
