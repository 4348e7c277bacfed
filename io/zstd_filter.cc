#include "io/zstd_filter.h"

#define ZSTD_STATIC_LINKING_ONLY   // ZSTD_getFrameHeader, ZSTD_estimateDStreamSize
#include <fmt/format.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "io/error.h"

namespace braid {
namespace {

constexpr size_t kInput = 128 << 10;
constexpr size_t kMostHeader = 18;   // bytes of a frame's header, and so many are looked at

uint32_t LittleEndian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

}  // namespace

struct ZstdFilter::Decoder {
  explicit Decoder(std::string stream) : name(std::move(stream)), context(ZSTD_createDCtx()), input(kInput) {
    if (context == nullptr) throw std::bad_alloc();
  }
  Decoder(const Decoder&) = delete;
  ~Decoder() { ZSTD_freeDCtx(context); }

  std::string_view rest() const { return {input.data() + at, end - at}; }

  // Adds to what is waiting; false at the end of the stream.
  bool Fill(const Refill& refill) {
    if (at == end) at = end = 0;
    if (at > 0) std::memmove(input.data(), input.data() + at, end - at), end -= at, at = 0;
    const std::streamsize got = refill(input.data() + end, static_cast<std::streamsize>(input.size() - end));
    if (got < 0) return false;
    end += static_cast<size_t>(got), taken += static_cast<uint64_t>(got);
    return true;
  }

  // The first frame says how far all of them may look back.
  void LimitWindow(const Refill& refill) {
    while (rest().size() < kMostHeader && Fill(refill)) {
    }
    ZSTD_frameHeader header;
    uint64_t window = 0;
    if (ZSTD_getFrameHeader(&header, input.data() + at, rest().size()) == 0 && header.frameType == ZSTD_frame)
      window = std::min<uint64_t>(header.windowSize, uint64_t{1} << kMostWindowLog);
    window_log = std::max(kUsualWindowLog, static_cast<int>(std::bit_width(std::max<uint64_t>(window, 1) - 1)));
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, window_log);
  }

  Error Bad(std::string message) const {
    return Error(ErrorCode::kBadInput, fmt::format("zstd frame {}: {}", frames, std::move(message))).Path(name);
  }

  std::string name;
  ZSTD_DCtx* context;
  std::vector<char> input;
  size_t at = 0, end = 0;   // of `input`: what waits to be decoded
  uint64_t taken = 0;       // compressed bytes
  uint64_t frames = 0;      // whole ones
  bool begun = false, within = false;   // the stream; a frame
  int window_log = kMostWindowLog;
};

ZstdFilter::ZstdFilter(std::string name) : decoder_(std::make_shared<Decoder>(std::move(name))) {}

uint64_t ZstdFilter::MemoryBytes() const {
  return kInput + ZSTD_estimateDStreamSize(size_t{1} << decoder_->window_log);
}

bool ZstdFilter::Recognises(std::string_view start) {
  if (start.size() < 4) return false;
  const uint32_t magic = LittleEndian(start);
  return magic == ZSTD_MAGICNUMBER || (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

std::streamsize ZstdFilter::Decode(const Refill& refill, char* to, std::streamsize bytes) {
  Decoder& d = *decoder_;
  if (!std::exchange(d.begun, true)) d.LimitWindow(refill);
  ZSTD_outBuffer out{.dst = to, .size = static_cast<size_t>(bytes), .pos = 0};
  bool flushes = d.within;   // what the last call has left to give needs no input
  while (out.pos == 0 && out.size > 0) {
    if (d.at == d.end && !flushes && !d.Fill(refill)) {
      if (!d.within) return -1;
      throw d.Bad(fmt::format("the stream ends within it, after {} compressed bytes", d.taken))
          .Hint("the program that writes it was ended, or has failed; a file was not copied to its end");
    }
    ZSTD_inBuffer in{.src = d.input.data(), .size = d.end, .pos = d.at};
    const size_t left = ZSTD_decompressStream(d.context, &out, &in);
    flushes = false;
    if (ZSTD_isError(left)) {
      const bool window = ZSTD_getErrorCode(left) == ZSTD_error_frameParameter_windowTooLarge;
      throw d.Bad(ZSTD_getErrorName(left))
          .Hint(window ? "decompress it with zstd -d --long=31 on the way"
                       : "it is damaged, or something else follows it: copy or download it again");
    }
    d.at = in.pos;
    d.within = left != 0;
    d.frames += left == 0;
  }
  return static_cast<std::streamsize>(out.pos);
}

}  // namespace braid
