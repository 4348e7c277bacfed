#include "io/planes_filter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "io/error.h"
#include "io/safetensors.h"
#include "io/shard_frames.h"

namespace braid {

struct PlanesFilter::State {
  enum class Phase { kStart, kAsItIs, kFrames };

  explicit State(std::string stream) : name(std::move(stream)) {}

  // Reads as far as the stream goes; returns how many.
  static size_t ReadUpTo(const Refill& refill, char* to, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
      const std::streamsize got = refill(to + done, static_cast<std::streamsize>(bytes - done));
      if (got < 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }

  void ReadFully(const Refill& refill, char* to, size_t bytes, std::string_view what) {
    if (const size_t got = ReadUpTo(refill, to, bytes); got < bytes)
      throw Error(ErrorCode::kBadInput, fmt::format("the stream ends within {}", what))
          .Path(name).Hint("it is truncated: copy or download it again");
  }

  void Start(const Refill& refill) {
    ready.resize(kPlanesPreamble.size());
    ready.resize(ReadUpTo(refill, ready.data(), ready.size()));
    phase = Phase::kAsItIs;
    if (std::string_view(ready.data(), ready.size()) == kPlanesPreamble) ReadHeader(refill);
  }

  void ReadHeader(const Refill& refill) {
    constexpr size_t kLengthBytes = 8, kStep = 1 << 20;   // a length is believed as it comes true
    constexpr std::string_view kHeader = "the safetensors header";
    ready.resize(kLengthBytes);
    ReadFully(refill, ready.data(), kLengthBytes, kHeader);
    uint64_t length = 0;
    for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(ready[i]);
    if (length > kMaxHeaderBytes)
      throw Error(ErrorCode::kBadInput, fmt::format("its safetensors header would have {} bytes; {} are the limit",
                                                    length, kMaxHeaderBytes))
          .Path(name).Hint("it is damaged: copy or download it again");
    while (ready.size() < kLengthBytes + length) {
      const size_t had = ready.size(), more = std::min<size_t>(kStep, kLengthBytes + length - had);
      ready.resize(had + more);
      ReadFully(refill, ready.data() + had, more, kHeader);
    }
    const std::string_view json(ready.data() + kLengthBytes, length);
    const SafetensorsHeader header = ParseSafetensorsHeader(json, std::nullopt, name);
    layout.emplace(header.data_offset);
    for (const TensorInfo& tensor : header.tensors) layout->Add(tensor.dtype, tensor.bytes);
    layout->Next();   // the header, which has been read
    phase = Phase::kFrames;
  }

  void ReadPlanes(const Refill& refill, const ShardFrame& frame, const std::string& what) {
    const size_t planes = PlanesOf(frame.split), n = frame.bytes / planes;
    content.resize(std::max<size_t>(content.size(), MarkBytes(n) + frame.bytes));
    const auto* const marks = reinterpret_cast<const std::byte*>(content.data());
    ReadFully(refill, content.data(), MarkBytes(n), what);
    size_t marked;
    if (!AreMarks(marks, n, &marked))
      throw Error(ErrorCode::kBadInput, fmt::format("{} have more marks than elements", what))
          .Path(name).Hint("it is damaged: copy or download it again");
    ReadFully(refill, content.data() + MarkBytes(n), planes * marked, what);
    JoinPlanes(frame.split, marks, n, marks + MarkBytes(n), marked, 0, n, reinterpret_cast<std::byte*>(ready.data()));
  }

  // False when there is none: then nothing may follow.
  bool ReadFrame(const Refill& refill) {
    const std::optional<ShardFrame> frame = layout->Next();
    if (!frame) {
      char more;
      if (ReadUpTo(refill, &more, 1) == 0) return false;
      throw Error(ErrorCode::kBadInput, "the stream goes on behind the last tensor")
          .Path(name).Hint("it is damaged: copy or download it again");
    }
    if (ready.capacity() > 2 * kFrameBytes) std::vector<char>().swap(ready);   // of a large header
    ready.resize(frame->bytes);
    const std::string what = fmt::format("byte planes {} of {}", ++frames_read, layout->count() - 1);
    if (frame->split == PlaneSplit::kNone) ReadFully(refill, ready.data(), frame->bytes, what);
    else ReadPlanes(refill, *frame, what);
    return true;
  }

  std::string name;
  Phase phase = Phase::kStart;
  std::vector<char> ready;   // plain bytes,
  size_t given = 0;          // and how many of them have left
  std::vector<char> content;   // marks and planes
  std::optional<ShardFrames> layout;
  size_t frames_read = 0;   // of tensors
};

PlanesFilter::PlanesFilter(std::string name) : state_(std::make_shared<State>(std::move(name))) {}

uint64_t PlanesFilter::MemoryBytes() const {
  return state_->phase == State::Phase::kFrames ? 3 * kFrameBytes + state_->layout->MemoryBytes() : 0;
}

std::streamsize PlanesFilter::Give(const Refill& refill, char* to, std::streamsize bytes) {
  State& s = *state_;
  if (s.phase == State::Phase::kStart) s.Start(refill);
  while (s.given == s.ready.size()) {
    if (s.phase == State::Phase::kAsItIs) return refill(to, bytes);
    if (!s.ReadFrame(refill)) return -1;
    s.given = 0;
  }
  const size_t here = std::min(static_cast<size_t>(bytes), s.ready.size() - s.given);
  std::memcpy(to, s.ready.data() + s.given, here);
  s.given += here;
  return static_cast<std::streamsize>(here);
}

}  // namespace braid
