#include "io/plain_shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "io/checkpoint.h"
#include "io/compressed_shard.h"
#include "io/error.h"
#include "io/input_stream.h"

namespace braid {
namespace {

constexpr size_t kPiece = 1 << 20;

std::optional<CompressedShard::Opened> OpenIfSeekable(const std::string& path) {
  if (InputStream::IsNamedBy(path) || CompressionOf(path) == Compression::kNone) return std::nullopt;
  FileIdentity identity;
  const Fd fd = OpenForReading(path, &identity);
  return CompressedShard::Open(fd.get(), identity.size, path);
}

const TensorInfo* TensorAt(const SafetensorsHeader& header, uint64_t plain_offset) {
  const auto found = std::find_if(header.tensors.begin(), header.tensors.end(), [&](const TensorInfo& tensor) {
    return tensor.offset <= plain_offset && plain_offset - tensor.offset < tensor.bytes;
  });
  return found == header.tensors.end() ? nullptr : &*found;
}

}  // namespace

void ReadPlainShard(const std::string& path, const std::atomic<int>* interrupt,
                    const std::function<void(const std::byte*, size_t)>& write) {
  const std::optional<CompressedShard::Opened> known = OpenIfSeekable(path);
  InputStream stream(path, interrupt);
  std::vector<std::byte> piece(kPiece);
  for (;;) {
    size_t got = 0;
    try {
      got = stream.Read(piece.data(), piece.size());
    } catch (Error& error) {
      const TensorInfo* const tensor = known ? TensorAt(known->header, stream.position()) : nullptr;
      if (tensor != nullptr) error.Tensor(tensor->name);
      throw;
    }
    if (got == 0) break;
    write(piece.data(), got);
  }
  if (known && stream.position() != known->shard->bytes())
    throw Error(ErrorCode::kBadInput, fmt::format("its frames hold {} bytes, and its seek table says {}",
                                                  stream.position(), known->shard->bytes()))
        .Path(path).Hint("it is damaged: copy or download it again");
}

}  // namespace braid
