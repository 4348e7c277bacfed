#include "io/tensor_stream.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/error.h"

namespace braid {

void TensorStream::PassOver(uint64_t to) {
  bounce_.resize(kBounceBytes);
  while (position() < to) Take(bounce_.data(), std::min<uint64_t>(kBounceBytes, to - position()));
}

// Fewer where the stream ends. What is wrong with a compressed one shows somewhere in a tensor.
size_t TensorStream::ReadFor(const TensorInfo& info, std::byte* to, size_t bytes) {
  try {
    return stream_.Read(to, bytes);
  } catch (Error& error) {
    if (error.code() == ErrorCode::kBadInput) error.Tensor(info.name);
    throw;
  }
}

void TensorStream::Take(std::byte* to, size_t bytes) {
  while (bytes > 0) {
    const uint64_t at = position();
    while (tensors_[next_].info.offset + tensors_[next_].info.bytes <= at) ++next_;
    const TensorInfo& info = tensors_[next_].info;
    const uint64_t left = info.offset + info.bytes - at;
    const size_t here = std::min<uint64_t>(bytes, left), got = ReadFor(info, to, here);
    if (got < here)
      throw Error(ErrorCode::kBadInput,
                  fmt::format("the stream ends here: {} of the tensor's {} bytes are missing, {} of the whole stream",
                              left - got, info.bytes, end_ - position()))
          .Path(stream_.name())
          .Tensor(info.name)
          .Offset(position())
          .Hint("the program that writes it was ended, or has failed: see what it says");
    if (watch_) watch_(next_, at, to, here);
    to += here, bytes -= here;
  }
}

void TensorStream::Finish() {
  PassOver(end_);
  std::byte beyond;
  if (stream_.Read(&beyond, 1) == 0) return stream_.CheckUnchanged(), stream_.Park();
  throw Error(ErrorCode::kBadInput, "it goes on after its last tensor")
      .Path(stream_.name())
      .Offset(end_)
      .Hint("it is damaged, or more than one file was written to it");
}

}  // namespace braid
