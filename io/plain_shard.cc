#include "io/plain_shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "io/checkpoint.h"
#include "io/compressed_shard.h"
#include "io/error.h"
#include "io/frame_decompressor.h"
#include "io/input_stream.h"

namespace braid {
namespace {

constexpr size_t kPiece = 1 << 20;
constexpr size_t kLengthBytes = 8;   // in front of a safetensors header

const TensorInfo* TensorAt(const SafetensorsHeader& header, uint64_t plain_offset) {
  const auto found = std::find_if(header.tensors.begin(), header.tensors.end(), [&](const TensorInfo& tensor) {
    return tensor.offset <= plain_offset && plain_offset - tensor.offset < tensor.bytes;
  });
  return found == header.tensors.end() ? nullptr : &*found;
}

Error Truncated(const InputStream& stream) {
  return Error(ErrorCode::kBadInput, fmt::format("it ends after {} plain bytes", stream.position()))
      .Path(stream.name()).Hint("it is truncated, or no safetensors file: copy or download it again");
}

// The length and the JSON in front of the tensors, as they are.
std::string ReadHeaderText(InputStream* stream) {
  std::string text(kLengthBytes, '\0');
  const auto read = [&](size_t begin) {
    const size_t bytes = text.size() - begin;
    if (stream->Read(reinterpret_cast<std::byte*>(text.data() + begin), bytes) < bytes) throw Truncated(*stream);
  };
  read(0);
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(text[i]);
  if (length > kMaxHeaderBytes)
    throw Error(ErrorCode::kBadInput, "it does not begin as a safetensors file does")
        .Path(stream->name()).Hint("braid cat restores shards; other files are for zstd -d");
  while (text.size() < kLengthBytes + length) {   // a length is believed as it comes true
    const size_t had = text.size();
    text.resize(std::min<size_t>(had + kPiece, kLengthBytes + length));
    read(had);
  }
  return text;
}

using Write = std::function<void(const std::byte*, size_t)>;

void DecodeFrames(int fd, const CompressedShard::Opened& opened, const FileIdentity& identity, size_t threads,
                  const Write& write) {
  const std::string text = opened.shard->ReadHeaderBytes(fd);
  write(reinterpret_cast<const std::byte*>(text.data()), text.size());
  FrameDecompressor frames(opened.shard, identity, text.size(), threads);
  uint64_t position = text.size();
  const auto next = [&] {
    try {
      return frames.Next();
    } catch (Error& error) {
      if (const TensorInfo* at = TensorAt(opened.header, position)) error.Tensor(at->name);
      throw;
    }
  };
  for (auto piece = next(); !piece.empty(); piece = next()) {
    write(piece.data(), piece.size());
    position += piece.size();
  }
}

void ReadStream(const std::string& path, const std::atomic<int>* interrupt, const Write& write) {
  InputStream stream(path, interrupt);
  std::string text = ReadHeaderText(&stream);
  const SafetensorsHeader header =
      ParseSafetensorsHeader(std::string_view(text).substr(kLengthBytes), std::nullopt, stream.name());
  write(reinterpret_cast<const std::byte*>(text.data()), text.size());
  std::string().swap(text);

  std::vector<std::byte> piece(kPiece);
  for (;;) {
    try {
      const size_t got = stream.Read(piece.data(), piece.size());
      if (got == 0) break;
      if (stream.position() > header.file_bytes)
        throw Error(ErrorCode::kBadInput, "it goes on behind the last tensor")
            .Path(stream.name()).Hint("it is damaged: copy or download it again");
      write(piece.data(), got);
    } catch (Error& error) {
      if (const TensorInfo* at = TensorAt(header, stream.position())) error.Tensor(at->name);
      throw;
    }
  }
  if (stream.position() == header.file_bytes) return;
  Error error = Truncated(stream);
  if (const TensorInfo* at = TensorAt(header, stream.position())) error.Tensor(at->name);
  throw error;
}

}  // namespace

void ReadPlainShard(const std::string& path, size_t threads, const std::atomic<int>* interrupt, const Write& write) {
  if (!InputStream::IsNamedBy(path) && CompressionOf(path) != Compression::kNone) {
    FileIdentity identity;
    const Fd fd = OpenForReading(path, &identity);
    if (const auto opened = CompressedShard::Open(fd.get(), identity.size, path))
      return DecodeFrames(fd.get(), *opened, identity, threads, write);
  }
  ReadStream(path, interrupt, write);
}

}  // namespace braid

