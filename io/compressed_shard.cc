#include "io/compressed_shard.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "io/error.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint64_t kLengthBytes = 8;   // of a safetensors file, in front of its header

uint64_t LengthOf(const std::string& header) {
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(header[i]);
  return length;
}

}  // namespace

CompressedShard::CompressedShard(std::string path, std::vector<SeekEntry> entries)
    : path_(std::move(path)), entries_(std::move(entries)) {
  for (const SeekEntry& entry : entries_) bytes_ += entry.content;   // at most 12.5 million of 32 bits each
}

std::optional<CompressedShard::Opened> CompressedShard::Open(int fd, uint64_t file_bytes, const std::string& path) {
  std::optional<std::vector<SeekEntry>> entries = ReadSeekTable(fd, file_bytes, path);
  if (!entries) return std::nullopt;
  const std::shared_ptr<CompressedShard> shard(new CompressedShard(path, std::move(*entries)));
  shard->Recognise(fd);
  const std::string text = shard->ReadHeaderBytes(fd);
  // How long byte planes are is for each frame to say.
  const bool planes = shard->compression_ == Compression::kPlanes;
  SafetensorsHeader header = ParseSafetensorsHeader(std::string_view(text).substr(kLengthBytes),
                                                    planes ? std::nullopt : std::optional(shard->bytes_), path);
  shard->bytes_ = header.file_bytes;
  shard->AddFrames(header);
  return Opened{shard, std::move(header)};
}

// Sees which kind of file it is.
void CompressedShard::Recognise(int fd) {
  if (entries_.empty() || entries_.front().content != kPlanesPreamble.size()) return;
  std::string text;
  FrameDecoder decoder;
  AppendFrame(fd, {}, &decoder, &text);
  if (text != kPlanesPreamble) return;
  compression_ = Compression::kPlanes;
  bytes_ -= text.size();
}

// Adds the content of a frame of zstd in front of the first tensor. Returns the next.
CompressedFrame CompressedShard::AppendFrame(int fd, CompressedFrame frame, FrameDecoder* decoder,
                                             std::string* text) const {
  if (frame.first_part == entries_.size())
    throw FrameError(frame, 0, "it is missing, and the safetensors header would go on there");
  const SeekEntry& entry = entries_[frame.first_part];
  frame.bytes = frame.content = entry.content, frame.compressed = entry.compressed;
  if (std::max(entry.content, entry.compressed) > ZSTD_COMPRESSBOUND(kLengthBytes + kMaxHeaderBytes))
    throw FrameError(frame, 0, fmt::format("it would have {} bytes in front of the first tensor; {} are the limit",
                                           entry.content, kMaxHeaderBytes));
  std::string compressed(entry.compressed, '\0');
  ReadExactly(fd, compressed.data(), compressed.size(), frame.offset, path_);
  text->resize(text->size() + entry.content);
  decoder->Decode(*this, frame, reinterpret_cast<const std::byte*>(compressed.data()),
                  reinterpret_cast<std::byte*>(text->data() + text->size() - entry.content));
  frame.offset += entry.compressed, ++frame.first_part;
  return frame;
}

std::string CompressedShard::ReadHeaderBytes(int fd) const {
  CompressedFrame next;
  if (compression_ == Compression::kPlanes) next.offset = entries_.front().compressed, next.first_part = 1;
  std::string text;
  FrameDecoder decoder;   // for all of them: there may be millions that are empty
  while (text.size() < kLengthBytes) next = AppendFrame(fd, next, &decoder, &text);
  const uint64_t length = LengthOf(text);
  if (length > kMaxHeaderBytes || length > bytes_ - kLengthBytes)
    throw Error(ErrorCode::kBadInput,
                fmt::format("this is not a safetensors file: its header would have {} bytes", length))
        .Path(path_).Hint("of compressed files, only those of safetensors are read");
  while (text.size() < kLengthBytes + length) next = AppendFrame(fd, next, &decoder, &text);
  text.resize(kLengthBytes + length);
  return text;
}

// The frames of a planes file are those that its layout demands. Those of a zstd file may lie as they like: it need not
// be ours.
void CompressedShard::AddFrames(const SafetensorsHeader& header) {
  CompressedFrame next;
  const auto add = [&](uint64_t bytes, PlaneSplit split) {
    AddFrame(bytes, split, next.begin + bytes > header.data_offset, &next);
  };
  if (compression_ == Compression::kPlanes) {
    next.offset = entries_.front().compressed, next.first_part = 1;
    ShardFrames layout(header.data_offset);
    for (const TensorInfo& tensor : header.tensors) layout.Add(tensor.dtype, tensor.bytes);
    while (const std::optional<ShardFrame> frame = layout.Next()) add(frame->bytes, frame->split);
    if (next.first_part != entries_.size())
      throw FrameError(next, 0, "it is one too many for the tensors that there are");
  } else {
    for (const SeekEntry& entry : entries_) add(entry.content, PlaneSplit::kNone);
  }
  frames_.shrink_to_fit();
}

// What a part must have. How many elements are marked, and so in each plane, the first plane says; whether that is true
// shows when the marks are decoded.
uint64_t CompressedShard::ContentOf(const CompressedFrame& frame, size_t part) const {
  if (frame.split == PlaneSplit::kNone) return frame.bytes;
  const uint64_t elements = frame.bytes / PlanesOf(frame.split);
  return part == 0 ? MarkBytes(elements) : std::min<uint64_t>(elements, Part(frame, 1).content);
}

void CompressedShard::AddFrame(uint64_t bytes, PlaneSplit split, bool is_data, CompressedFrame* next) {
  const size_t parts = PartsOf(split);
  next->bytes = static_cast<uint32_t>(bytes), next->split = split;
  uint64_t compressed = 0, content = 0;
  for (size_t p = 0; p < parts; ++p) {
    if (next->first_part + p >= entries_.size()) throw FrameError(*next, p, "it is missing");
    const SeekEntry& entry = Part(*next, p);
    if (const uint64_t needed = ContentOf(*next, p); entry.content != needed)
      throw FrameError(*next, p, fmt::format("it would have {} bytes, where {} belong", entry.content, needed));
    compressed += entry.compressed, content += entry.content;
  }
  if (is_data && (bytes > kMostFrameBytes || compressed > ZSTD_COMPRESSBOUND(kMostFrameBytes + kMostFrameBytes / 8)))
    throw FrameError(*next, 0, fmt::format("it would have {} bytes; {} are the limit", std::max(bytes, compressed),
                                           kMostFrameBytes));
  next->compressed = static_cast<uint32_t>(compressed), next->content = static_cast<uint32_t>(content);
  next->marked = split == PlaneSplit::kNone ? 0 : Part(*next, 1).content;
  if (is_data) most_compressed_ = std::max(most_compressed_, compressed);
  if (is_data) most_content_ = std::max(most_content_, content);
  if (bytes > 0) frames_.push_back(*next);
  next->begin += bytes, next->offset += compressed, next->first_part += static_cast<uint32_t>(parts);
}

size_t CompressedShard::FrameAt(uint64_t plain_offset) const {
  const auto after = std::upper_bound(frames_.begin(), frames_.end(), plain_offset,
                                      [](uint64_t at, const CompressedFrame& frame) { return at < frame.begin; });
  return static_cast<size_t>(after - frames_.begin()) - 1;
}

uint64_t CompressedShard::MemoryBytes() const {
  return sizeof(*this) + path_.capacity() + entries_.capacity() * sizeof(SeekEntry) +
         frames_.capacity() * sizeof(CompressedFrame);
}

Error CompressedShard::FrameError(const CompressedFrame& frame, size_t part, std::string_view message) const {
  uint64_t offset = frame.offset;
  for (size_t p = 0; p < part && frame.first_part + p < entries_.size(); ++p) offset += Part(frame, p).compressed;
  return Error(ErrorCode::kBadInput,
               fmt::format("frame {} of {}: {}", frame.first_part + part, entries_.size(), message))
      .Path(path_).Offset(offset).Hint("it is truncated or damaged: copy, download or write it again");
}

void FrameDecoder::Free::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

FrameDecoder::FrameDecoder() : context_(ZSTD_createDCtx()) {
  if (context_ == nullptr) throw std::bad_alloc();
}

void FrameDecoder::Decode(const CompressedShard& shard, const CompressedFrame& frame, const std::byte* compressed,
                          std::byte* content) {
  const std::byte* const marks = content;
  for (size_t p = 0; p < PartsOf(frame.split); ++p) {
    const auto [size, bytes] = shard.Part(frame, p);
    const auto said = ZSTD_getFrameContentSize(compressed, size);   // 0 of a skippable frame
    if (said != bytes && said != ZSTD_CONTENTSIZE_UNKNOWN && said != ZSTD_CONTENTSIZE_ERROR)
      throw shard.FrameError(frame, p, fmt::format("it says {} bytes, and the seek table {}", said, bytes));
    const size_t got = ZSTD_decompressDCtx(context_.get(), content, bytes, compressed, size);
    if (ZSTD_isError(got))
      throw shard.FrameError(frame, p, fmt::format("it does not decode: {}", ZSTD_getErrorName(got)));
    if (got != bytes)
      throw shard.FrameError(frame, p, fmt::format("it has {} bytes, and the seek table says {}", got, bytes));
    compressed += size, content += bytes;
  }
  if (frame.split == PlaneSplit::kNone) return;
  size_t marked;
  if (!AreMarks(marks, frame.bytes / PlanesOf(frame.split), &marked) || marked != frame.marked)
    throw shard.FrameError(frame, 0, fmt::format("its marks are not those of {} elements", frame.marked));
}

void DecodingSizes::Cover(const CompressedShard& shard) {
  most_compressed = std::max(most_compressed, shard.most_compressed());
  most_content = std::max(most_content, shard.most_content());
}

uint64_t DecodingSizes::MemoryBytes() const {
  constexpr uint64_t kPage = 4096;   // content and what is around a frame come in whole ones
  return decoders * (FrameDecoder::kMemoryBytes + most_compressed + 3 * kPage) + kept * (most_content + kPage);
}

void TakePlain(const CompressedFrame& frame, const std::byte* content, uint64_t begin, uint64_t bytes, std::byte* to) {
  if (frame.split == PlaneSplit::kNone) {
    std::memcpy(to, content + begin, bytes);
    return;
  }
  const uint64_t size = PlanesOf(frame.split), elements = frame.bytes / size;
  const auto join = [&](uint64_t first, uint64_t count, std::byte* out) {
    JoinPlanes(frame.split, content, elements, content + MarkBytes(elements), frame.marked, first, count, out);
  };
  std::array<std::byte, sizeof(uint32_t)> element;
  for (uint64_t skip; (skip = begin % size) != 0 && bytes > 0;) {   // within an element
    const uint64_t here = std::min(bytes, size - skip);
    join(begin / size, 1, element.data());
    std::memcpy(to, element.data() + skip, here);
    begin += here, to += here, bytes -= here;
  }
  join(begin / size, bytes / size, to);
  if (const uint64_t rest = bytes % size; rest > 0) {
    join((begin + bytes) / size, 1, element.data());
    std::memcpy(to + bytes - rest, element.data(), rest);
  }
}

}  // namespace braid
