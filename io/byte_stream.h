// Bytes that leave in order: to standard output, or to the end of a file that grows. Both are sinks of Boost.Iostreams
// behind filters that count and hash, so that nothing is copied on the way.
//
// One thread at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/checksum.h"
#include "io/error.h"

namespace braid {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  virtual void Write(const void* data, size_t bytes) = 0;   // returns when all is written. Throws Error
  virtual void Finish() = 0;   // after the last byte: a file is durable and closed. Throws Error
};

// Whoever reads our standard output has closed it: nobody wants the rest, which is no fault of anybody's.
class ReaderGone : public Error {
 public:
  ReaderGone() : Error(ErrorCode::kIo, "the reader of standard output went away") {}
};

// Both add to `count` what they have written; of a file, dirty pages are written out and dropped as it grows, in
// windows of 8 MiB, and standard output is written directly where memory lies as the file does (page_writer.h). `sum`:
// gets all bytes, so that what arrives elsewhere can be compared with what left. `cancelled`: once it is true, a write
// that has to wait for the reader of a pipe or socket throws instead. All of them must outlive the stream.
std::unique_ptr<ByteStream> StandardOutputStream(std::atomic<uint64_t>* count, Checksum* sum,
                                                 const std::atomic<bool>* cancelled);

// Creates `path`, which must not exist.
std::unique_ptr<ByteStream> AppendingStream(const std::string& path, std::atomic<uint64_t>* count);

// Throws Error(kUsage) when weights must not go to standard output: to a terminal, or into one of `inputs`.
void CheckStandardOutput(const std::vector<std::string>& inputs);

}  // namespace braid
