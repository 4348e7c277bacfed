#include "io/frame_encoder.h"

#define ZSTD_STATIC_LINKING_ONLY   // ZSTD_c_literalCompressionMode
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "io/error.h"

namespace braid {
namespace {

constexpr int kLevel = 1;   // of whatever is no plane of floats
// Planes are compressed by their values alone (Huffman), which is as small as anything that looks for repetitions and
// several times as quick. Where libzstd's headers do not have the switch, level 1 has to do.
#ifdef BRAID_ZSTD_LITERALS
constexpr int kEntropyLevel = -30'000;
#else
constexpr int kEntropyLevel = kLevel;
#endif

constexpr size_t kMarksBytes = MarkBytes(kFrameBytes / PlanesOf(PlaneSplit::kTwo));   // the most

constexpr size_t kBlockBytes = 128 << 10;   // the most that a block of a zstd frame may hold

// Of a plane: bytes of each value among so many from all over it.
constexpr size_t kSampleRuns = 256, kRunBytes = 64;

struct Sample {
  double bits = 0;       // of entropy per byte
  double most_often = 0; // share of the most frequent value
};

Sample SampleOf(const std::byte* plane, size_t bytes) {
  std::array<uint32_t, 256> counts{};
  size_t total = 0;
  const size_t stride = std::max(kRunBytes, bytes / kSampleRuns);
  for (size_t at = 0; at < bytes; at += stride) {
    const size_t end = std::min(bytes, at + kRunBytes);
    for (size_t i = at; i < end; ++i) ++counts[static_cast<size_t>(plane[i])];
    total += end - at;
  }
  Sample sample;
  for (const uint32_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / static_cast<double>(total);
    sample.bits -= share * std::log2(share);
    sample.most_often = std::max(sample.most_often, share);
  }
  return sample;
}

// Below that, Huffman codes gain more than 1 %.
constexpr double kMostBits = 7.9;
// One value nearly everywhere comes in runs, for which Huffman codes need a bit per byte.
constexpr double kRunsShare = 0.9;

constexpr size_t StoredBytes(size_t content) {
  const size_t blocks = std::max<size_t>(1, (content + kBlockBytes - 1) / kBlockBytes);
  return 4 + 1 + 4 + blocks * 3 + content + 4;
}

enum class Blocks : uint8_t { kRaw, kRepeated };   // type 0: the content; type 1: one byte, so many times

// A frame of zstd (RFC 8878, 3.1.1) whose blocks are the content itself: what libzstd makes of noise, or of one byte
// over and over, without looking.
size_t Store(const std::byte* content, size_t bytes, std::byte* to, Blocks type = Blocks::kRaw) {
  std::byte* at = to;
  const auto put = [&](uint64_t value, size_t size) {
    for (size_t i = 0; i < size; ++i) *at++ = static_cast<std::byte>(value >> (8 * i));
  };
  put(ZSTD_MAGICNUMBER, 4);
  put(0b10'1'0'0'1'00, 1);   // four bytes of content size, one segment, a checksum, no dictionary
  put(bytes, 4);
  size_t done = 0;
  do {
    const size_t block = std::min(kBlockBytes, bytes - done);
    put(block << 3 | static_cast<uint64_t>(type) << 1 | (done + block == bytes ? 1 : 0), 3);
    const size_t stored = type == Blocks::kRaw ? block : 1;
    std::memcpy(at, content + done, stored);
    at += stored, done += block;
  } while (done < bytes);
  put(XXH64(content, bytes, 0) & 0xffffffff, 4);
  return static_cast<size_t>(at - to);
}

}  // namespace

void FrameEncoder::Free::operator()(ZSTD_CCtx_s* context) const { ZSTD_freeCCtx(context); }

FrameEncoder::FrameEncoder(Compression compression) : compression_(compression), context_(ZSTD_createCCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
  ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_checksumFlag, 1);
  if (compression != Compression::kPlanes) return;
  marks_ = std::make_unique_for_overwrite<std::byte[]>(kMarksBytes);
  planes_ = std::make_unique_for_overwrite<std::byte[]>(kFrameBytes);
}

EncodedFrame FrameEncoder::Encode(const ShardFrame& frame, const std::byte* plain, std::byte* to) {
  EncodedFrame out;
  const auto add = [&](size_t compressed, size_t content) {
    out.entries[out.num_entries++] = {static_cast<uint32_t>(compressed), static_cast<uint32_t>(content)};
    out.bytes += compressed;
  };
  if (frame.header && compression_ == Compression::kPlanes) {
    const auto* const text = reinterpret_cast<const std::byte*>(kPlanesPreamble.data());
    add(Store(text, kPlanesPreamble.size(), to), kPlanesPreamble.size());
  }
  if (compression_ == Compression::kZstd || frame.split == PlaneSplit::kNone) {
    add(Compress(plain, frame.bytes, LevelFor(plain, frame.bytes, to + out.bytes), to + out.bytes), frame.bytes);
    return out;
  }
  const size_t planes = PlanesOf(frame.split), n = frame.bytes / planes;
  const size_t marked = MarkElements(frame.split, plain, n, marks_.get());
  SplitPlanes(frame.split, plain, n, marks_.get(), marked, planes_.get());
  add(CompressPlane(marks_.get(), MarkBytes(n), to), MarkBytes(n));
  for (size_t p = 0; p < planes; ++p) add(CompressPlane(planes_.get() + p * marked, marked, to + out.bytes), marked);
  return out;
}

// Between the entries that are left, a trimmed task vector is full of short runs of zeros. Looking for them costs more
// than it gains where an element has two bytes: 21.0 % of the size at 0.38 GB/s and back at 1.05, by values alone
// 22.3 % at 0.85 and 2.67 (bf16, one entry in five left). With four bytes, or one in a hundred left, it gains; a piece of the
// frame says which.
int FrameEncoder::LevelFor(const std::byte* content, size_t bytes, std::byte* to) {
  constexpr double kTrimmedShare = 0.5, kWorthwhile = 0.9;
  constexpr size_t kPiece = 64 << 10;
  if (bytes < 4 * kPiece || SampleOf(content, bytes).most_often < kTrimmedShare) return kLevel;
  const std::byte* const piece = content + (bytes - kPiece) / 2;
  const auto by_runs = static_cast<double>(Compress(piece, kPiece, kLevel, to));
  const auto by_values = static_cast<double>(Compress(piece, kPiece, kEntropyLevel, to));
  return by_runs < kWorthwhile * by_values ? kLevel : kEntropyLevel;
}

// No larger than the content as it is.
size_t FrameEncoder::Compress(const std::byte* content, size_t bytes, int level, std::byte* to) {
  ZSTD_CCtx* const context = context_.get();
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
#ifdef BRAID_ZSTD_LITERALS
  ZSTD_CCtx_setParameter(context, ZSTD_c_literalCompressionMode, level < 0 ? ZSTD_ps_enable : ZSTD_ps_auto);
#endif
  const size_t compressed = ZSTD_compress2(context, to, ZSTD_compressBound(bytes), content, bytes);
  if (ZSTD_getErrorCode(compressed) == ZSTD_error_memory_allocation) throw std::bad_alloc();
  if (ZSTD_isError(compressed)) throw Error(ErrorCode::kInternal, ZSTD_getErrorName(compressed));
  return compressed < StoredBytes(bytes) ? compressed : Store(content, bytes, to);
}

size_t FrameEncoder::CompressPlane(const std::byte* plane, size_t bytes, std::byte* to) {
  if (bytes > 1 && std::memcmp(plane, plane + 1, bytes - 1) == 0) return Store(plane, bytes, to, Blocks::kRepeated);
  const Sample sample = SampleOf(plane, bytes);
  if (sample.bits > kMostBits) return Store(plane, bytes, to);
  const size_t by_values = Compress(plane, bytes, kEntropyLevel, to);
  if (sample.most_often < kRunsShare) return by_values;
  const size_t by_runs = Compress(plane, bytes, kLevel, to);
  return by_runs <= by_values ? by_runs : Compress(plane, bytes, kEntropyLevel, to);
}

size_t FrameEncoder::MostBytes(uint64_t plain_bytes) {
  // Room for what libzstd may do on its way, in four planes and marks, and the preamble in front of a header.
  return 4 * ZSTD_compressBound(plain_bytes / 4 + 1) + ZSTD_compressBound(plain_bytes / 16 + 1) +
         2 * kPlanesPreamble.size();
}

uint64_t FrameEncoder::MemoryBytes(Compression compression) {
  constexpr uint64_t kContext = 768 << 10;   // 582,560 bytes with zstd 1.5.4, level 1
  return kContext + (compression == Compression::kPlanes ? kFrameBytes + kMarksBytes : 0);
}

}  // namespace braid
