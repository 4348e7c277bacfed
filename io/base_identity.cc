#include "io/base_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "io/checksum.h"
#include "io/compressed_file.h"
#include "io/spot_reader.h"

namespace braid {
namespace {

constexpr uint64_t kSamples = 64;
static_assert(SpotReader::kMostBytes >= 1024);
constexpr uint64_t kSampleBytes = 1024;

std::string TakeText(Checksum* sum) {
  const XXH128_hash_t taken = sum->Take();
  return fmt::format("{:016x}{:016x}", taken.high64, taken.low64);
}

// Bytes of a plain shard, whether it is stored plain or compressed.
class PlainReader {
 public:
  explicit PlainReader(const Shard& shard) {
    if (shard.compressed == nullptr) {
      plain_.emplace(shard.path, shard.identity, true);
      return;
    }
    DecodingSizes sizes{.decoders = 1, .kept = 1};
    sizes.Cover(*shard.compressed);
    frames_.emplace(sizes);
    compressed_.emplace(shard.compressed, shard.identity, false, &*frames_);
  }
  void Read(const CheckpointTensor& tensor, uint64_t offset, size_t bytes, std::byte* out) {
    if (plain_) plain_->Read(offset, bytes, out);
    else compressed_->Read(offset, bytes, out, tensor.info.name);
  }

 private:
  std::optional<SpotReader> plain_;   // one of these
  std::optional<DecodedFrames> frames_;
  std::optional<CompressedFile> compressed_;
};

// Evenly over the bytes of all tensors, in the order of the files.
std::string SampleTensors(const Checkpoint& base) {
  Checksum sum;
  std::optional<PlainReader> reader;
  uint32_t opened = 0;   // the shard that `reader` reads
  std::vector<std::byte> bytes(kSampleBytes);
  const uint64_t total = base.TotalBytes(), step = std::max(total / kSamples, kSampleBytes);
  uint64_t begin = 0, wanted = 0;   // of the tensor, and of the next sample, among all bytes
  for (const CheckpointTensor& tensor : base.tensors) {
    const uint64_t end = begin + tensor.info.bytes;
    for (; wanted < end; wanted += step) {
      const uint64_t at = wanted < begin ? begin : wanted, count = std::min(kSampleBytes, end - at);
      if (!reader || opened != tensor.shard) reader.emplace(base.shards[opened = tensor.shard]);
      reader->Read(tensor, tensor.info.offset + (at - begin), static_cast<size_t>(count), bytes.data());
      sum.Add(bytes.data(), static_cast<size_t>(count));
    }
    begin = end;
  }
  return TakeText(&sum);
}

}  // namespace

BaseIdentity IdentityOfBase(const Checkpoint& base) {
  Checksum headers;
  for (const Shard& shard : base.shards) headers.Add(&shard.header_sum, sizeof shard.header_sum);
  return {.headers = TakeText(&headers), .samples = base.HasStream() ? "" : SampleTensors(base)};
}

}  // namespace braid
