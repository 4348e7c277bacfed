// The tensors of a stream of safetensors, one after the other, behind its header. What is missing is an error that
// names the tensor, and so is what does not decode, or follows the last one.
//
// For one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "io/checkpoint.h"
#include "io/input_stream.h"

namespace braid {

class TensorStream {
 public:
  // Sees bytes that go by: of which tensor they are, by its place among all, and where in the stream.
  using Watch = std::function<void(size_t tensor, uint64_t at, const std::byte* bytes, size_t size)>;

  // `tensors`: all of the stream, by offset; `end`: of the last one. The stream was read as far as its header, or
  // further. Both must outlive this object.
  TensorStream(InputStream* stream, std::span<const CheckpointTensor> tensors, uint64_t end, Watch watch = {})
      : stream_(*stream), tensors_(tensors), end_(end), watch_(std::move(watch)) {}

  // Of the next byte.
  uint64_t position() const { return stream_.position(); }
  uint64_t end() const { return end_; }

  // Reads up to byte `to` of the stream.
  void PassOver(uint64_t to);

  // The next bytes, which may be of several tensors.
  void Take(std::byte* to, size_t bytes);

  // Reads what is left, which must end where it should. Of a file, gives the descriptor back.
  void Finish();

  static constexpr size_t kBounceBytes = 256 << 10;   // memory, once anything was passed over

 private:
  size_t ReadFor(const TensorInfo& info, std::byte* to, size_t bytes);

  InputStream& stream_;
  const std::span<const CheckpointTensor> tensors_;
  const uint64_t end_;
  const Watch watch_;
  std::vector<std::byte> bounce_;   // for what is passed over
  size_t next_ = 0;                 // the tensor that the next byte belongs to, or one before it
};

}  // namespace braid
