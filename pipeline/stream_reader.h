// A stream as a source of tiles: read once, in order, by a thread of its own, straight into the buffers of the tiles;
// bytes that the plan says are wanted again, or later, go to a temporary file on the way, and come from there then.
// Several streams are read at the same time, so that one writer may feed them all.
//
// Requests are served in the order in which they are submitted. Submit and Cancel are for any thread.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "io/input_stream.h"
#include "io/temporary_file.h"
#include "io/tensor_stream.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"

namespace braid {

// What of a stream was kept, at the stream's own offsets: for the run that reads it and those behind.
struct StreamSpool {
  std::unique_ptr<TemporaryFile> file;   // once there is any
};

class StreamReader {
 public:
  // Gets the error of its request, or null.
  using Done = std::function<void(std::exception_ptr)>;

  // Adds the time that reading takes to `counters`.
  StreamReader(const Plan& plan, const PlannedStream& stream, StageCounters* counters);
  ~StreamReader();   // what is submitted is done, or cancelled

  // Bytes [begin, begin + bytes) of a tensor, by its index in the checkpoint; `to` stays until `done` was called, on
  // the reader's thread.
  void Read(uint32_t tensor, uint64_t begin, uint64_t bytes, std::byte* to, Done done);

  // Reads what is left of the stream and checks that it ends where it should, unless another run is to go on with it.
  void Finish(Done done);

  // Requests end with an error, also one that waits for data.
  void Cancel();

  // What all readers of this plan occupy.
  static uint64_t MemoryBytes(const Plan& plan);

 private:
  struct Request {
    std::function<void()> work;
    Done done;
  };

  void Submit(Request request);
  void Loop();
  void ReadBytes(const TensorInfo& info, uint64_t begin, uint64_t bytes, std::byte* to);

  const Plan& plan_;
  const PlannedStream& planned_;
  InputStream& stream_;
  StageCounters& counters_;
  TemporaryFile* spool_ = nullptr;         // the plan's, if anything is spooled
  TensorStream tensors_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> waiting_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace braid
