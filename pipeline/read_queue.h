// Several reads in flight: threads of their own, outside TBB, that read the ranges of one tile after another, directly
// in requests of about 2 MiB, or decoding frame by frame. Four such readers were the fastest way to read a disk (2.2 to
// 2.75 GB/s against 2.0 to 2.2 for one, Linux 6.18, ext4 on virtio); decoding takes as many as there are cores.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "io/compressed_file.h"
#include "io/direct_file.h"
#include "pipeline/progress.h"

namespace braid {

// What the Read of one of these files wants. The file and the memory stay until `done` was called.
struct QueuedRange {
  std::shared_ptr<DirectFile> direct;
  std::shared_ptr<CompressedFile> compressed;
  uint64_t begin = 0;
  size_t bytes = 0, needed = 0;
  std::byte* to = nullptr;
  const std::string* tensor = nullptr;
};

class ReadQueue {
 public:
  // Gets the first error of its ranges, or null.
  using Done = std::function<void(std::exception_ptr)>;

  static constexpr size_t kReaders = 4;

  // Adds the time that reading takes to `counters`.
  ReadQueue(StageCounters* counters, size_t readers);
  // Its end waits until everything submitted is done.

  // Reads all of it, then calls `done`, once, on a thread of the queue; with nothing to read, at once on this one.
  // Any thread.
  void Submit(std::vector<QueuedRange> ranges, Done done);

  // Returns when everything submitted is done, and its files are let go of. Any thread but the queue's.
  void Drain();

  // From now on nothing is read: everything still waiting is done with an error. Any thread.
  void Cancel() { cancelled_ = true; }

 private:
  struct Batch {
    Done done;
    std::atomic<size_t> left{0};
    std::mutex mutex;
    std::exception_ptr error;
  };
  struct Request {
    QueuedRange range;
    std::shared_ptr<Batch> batch;
  };

  void Loop(std::stop_token stop);
  bool Next(std::stop_token stop, Request* request);
  void Read(const Request& request);

  StageCounters& counters_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::condition_variable drained_;
  std::deque<Request> waiting_;
  size_t reading_ = 0;
  std::atomic<bool> cancelled_{false};
  std::vector<std::jthread> readers_;   // last: they end before what they use
};

}  // namespace braid
