#include "io/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <numeric>
#include <utility>

#include "io/compressed_shard.h"
#include "io/error.h"
#include "io/hf_cache.h"
#include "io/input_file.h"
#include "io/input_stream.h"
#include "io/model_directory.h"
#include "io/refusals.h"
#include "io/shard_index.h"

namespace braid {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kAdapterFile = "adapter_model.safetensors";

enum class Purpose { kMerge, kDelta, kReading };

struct Place {
  std::string path;
  std::optional<ModelId> cached;  // when it was found in the cache
  std::string commit;
};

// What was probably meant by a path that does not exist.
std::string Neighbour(const std::string& path) {
  namespace fs = std::filesystem;
  fs::path wanted = fs::path(path).lexically_normal();
  if (!wanted.has_filename()) wanted = wanted.parent_path();
  fs::path parent = wanted.has_parent_path() ? wanted.parent_path() : ".";
  std::error_code error;
  if (!fs::is_directory(parent, error)) return "";
  std::string name = NearestName(wanted.filename().string(), ModelDirectory(parent.string()).Names());
  return name.empty() ? "" : (wanted.has_parent_path() ? parent / name : fs::path(name)).string();
}

[[noreturn]] void RefuseMissing(const std::string& reference, const std::string& path) {
  std::string neighbour = Neighbour(path);
  std::optional<ModelId> id = ParseModelId(reference);
  if (!id || id->name.find('/') == std::string::npos)
    throw Error(ErrorCode::kUsage, "there is no such file or directory")
        .Path(path)
        .Hint(neighbour.empty() ? "" : fmt::format("did you mean '{}'?", neighbour));
  std::string cache = HfCacheDirectory();
  throw Error(
      ErrorCode::kUsage,
      fmt::format("'{}' is neither a local path{} nor, at revision '{}', in the Hugging Face cache {}",
                  reference, neighbour.empty() ? "" : fmt::format(" (did you mean '{}'?)", neighbour),
                  id->revision, cache.empty() ? "(HOME is not set)" : cache))
      .Hint(DownloadCommand(*id));
}

Place Locate(const std::string& reference) {
  if (reference.empty()) throw Error(ErrorCode::kUsage, "the name of a model is empty");
  if (reference.find('\0') != std::string::npos)
    throw Error(ErrorCode::kUsage, fmt::format("'{}' is not a path", reference));
  std::string path = ExpandHome(reference);
  if (FileExists(path)) return {.path = path, .cached = {}, .commit = {}};
  if (std::optional<ModelId> id = ParseModelId(reference))
    if (std::optional<CachedSnapshot> snapshot = FindSnapshot(*id))
      return {.path = snapshot->directory, .cached = id, .commit = snapshot->commit};
  RefuseMissing(reference, path);
}

// All files are a delta's, of one base, or none is.
void AddDeltaMarks(const SafetensorsHeader& header, const std::string& path, Checkpoint* checkpoint) {
  std::optional<DeltaMarks> marks = FindDeltaMarks(header, path);
  if (checkpoint->shards.empty()) {
    checkpoint->delta = std::move(marks);
    return;
  }
  const auto& first = checkpoint->delta;
  const bool alike = marks.has_value() == first.has_value() &&
                     (!marks || (marks->base == first->base && marks->samples == first->samples));
  if (!alike)
    throw Error(ErrorCode::kBadInput, fmt::format("only one of this file and {} is of a delta of that base",
                                                  checkpoint->shards.front().name))
        .Path(path)
        .Hint("the files are of different merges");
  if (marks) {
    std::vector<DType>& types = checkpoint->delta->types;
    types.insert(types.end(), marks->types.begin(), marks->types.end());
  }
}

void AddShard(Checkpoint* checkpoint, Shard shard, SafetensorsHeader header) {
  AddDeltaMarks(header, shard.path, checkpoint);
  shard.metadata = std::move(header.metadata);
  uint32_t number = static_cast<uint32_t>(checkpoint->shards.size());
  for (TensorInfo& tensor : header.tensors) checkpoint->tensors.push_back({std::move(tensor), number});
  for (const std::string& warning : header.warnings) checkpoint->warnings.push_back(shard.name + ": " + warning);
  checkpoint->shards.push_back(std::move(shard));
}

void AddShard(Checkpoint* checkpoint, const std::string& path, const std::string& name) {
  Shard shard;
  shard.path = path, shard.name = name;
  SafetensorsHeader header = ReadShard(&shard);
  AddShard(checkpoint, std::move(shard), std::move(header));
}

// A stream from its beginning.
SafetensorsHeader ReadStream(std::shared_ptr<InputStream> stream, Shard* shard) {
  std::string bytes;
  SafetensorsHeader header = ReadSafetensorsHeader(stream.get(), &bytes);
  if (stream->is_file()) stream->Park();
  else shard->header = std::move(bytes);
  shard->identity = {.size = header.file_bytes};
  shard->data_offset = header.data_offset;
  shard->header_sum = header.sum;
  shard->stream = std::move(stream);
  return header;
}

void IndexByName(Checkpoint* checkpoint) {
  const std::vector<CheckpointTensor>& tensors = checkpoint->tensors;
  std::vector<uint32_t>& order = checkpoint->by_name;
  order.resize(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return tensors[a].info.name < tensors[b].info.name; });
  for (size_t i = 1; i < order.size(); ++i) {
    const CheckpointTensor &one = tensors[order[i - 1]], &other = tensors[order[i]];
    if (one.info.name != other.info.name) continue;
    throw Error(ErrorCode::kBadInput,
                fmt::format("this tensor is also in {}", checkpoint->shards[one.shard].name))
        .Path(checkpoint->shards[other.shard].path)
        .Tensor(other.info.name)
        .Hint("the shards are of different saves: download or save the model again");
  }
}

// The index and the shards must name the same tensors in the same places.
void CompareWithIndex(const Checkpoint& checkpoint, const ShardIndex& index, const std::string& index_path) {
  auto disagree = [&](const std::string& path, const std::string& tensor, std::string message) {
    throw Error(ErrorCode::kBadInput, std::move(message))
        .Path(path)
        .Tensor(tensor)
        .Hint("the index and the shards are of different saves: download or save the model again");
  };
  size_t i = 0;
  for (const ShardIndex::Entry& entry : index.entries) {
    const CheckpointTensor* tensor =
        i < checkpoint.by_name.size() ? &checkpoint.tensors[checkpoint.by_name[i]] : nullptr;
    if (tensor != nullptr && tensor->info.name < entry.tensor)
      disagree(checkpoint.shards[tensor->shard].path, tensor->info.name,
               "the index does not list this tensor");
    if (tensor == nullptr || tensor->info.name != entry.tensor)
      disagree(index_path, entry.tensor,
               fmt::format("{} does not hold this tensor", index.shards[entry.shard]));
    if (tensor->shard != entry.shard)
      disagree(index_path, entry.tensor,
               fmt::format("the index places it in {}, but it is in {}", index.shards[entry.shard],
                           index.shards[tensor->shard]));
    ++i;
  }
  if (i == checkpoint.by_name.size()) return;
  const CheckpointTensor& extra = checkpoint.tensors[checkpoint.by_name[i]];
  disagree(checkpoint.shards[extra.shard].path, extra.info.name, "the index does not list this tensor");
}

void AddShardsOfIndex(Checkpoint* checkpoint, const ModelDirectory& directory, const Place& place) {
  std::string index_path = directory.FilePath(kIndexFile);
  ShardIndex index = ReadShardIndex(index_path);
  std::vector<std::string> files, missing, unlisted;
  for (const std::string& name : index.shards) {
    files.push_back(FileOfShard(directory, name, &checkpoint->warnings));
    if (files.back().empty()) missing.push_back(name);
  }
  if (!missing.empty())
    throw Error(ErrorCode::kBadInput, fmt::format("{} of {} shards are missing: {}", missing.size(),
                                                  index.shards.size(), ListedNames(missing)))
        .Path(index_path)
        .Hint(place.cached ? DownloadCommand(*place.cached) : "copy or download them too");
  for (size_t i = 0; i < files.size(); ++i) AddShard(checkpoint, directory.FilePath(files[i]), index.shards[i]);
  IndexByName(checkpoint);
  CompareWithIndex(*checkpoint, index, index_path);
  for (const std::string& file : directory.Names()) {
    const std::string name(PlainName(file));
    if (name.ends_with(".safetensors") && !std::binary_search(index.shards.begin(), index.shards.end(), name))
      unlisted.push_back(file);
  }
  if (!unlisted.empty())
    checkpoint->warnings.push_back(
        fmt::format("not used, because the index does not list it: {}", ListedNames(unlisted)));
}

// model.safetensors goes before an index, as in transformers: a merge is of the weights that the model's
// users run, and an index beside a single file is a leftover of an earlier save.
void AddWeights(Checkpoint* checkpoint, const ModelDirectory& directory, const Place& place,
                Purpose purpose) {
  const bool has_index = directory.Has(kIndexFile);
  std::string file = FileOfShard(directory, kSingleFile, &checkpoint->warnings);
  if (file.empty() && has_index) return AddShardsOfIndex(checkpoint, directory, place);
  if (file.empty() && purpose == Purpose::kReading && directory.Has(kAdapterFile)) file = kAdapterFile;
  if (file.empty())
    RefuseWithoutWeights(
        directory, place.cached ? DownloadCommand(*place.cached)
                                : fmt::format("a model has {}, or shards with {}", kSingleFile, kIndexFile));
  AddShard(checkpoint, directory.FilePath(file), std::string(PlainName(file)));
  IndexByName(checkpoint);
  if (has_index)
    checkpoint->warnings.push_back(
        fmt::format("{} and its shards are not used: {} is there too and goes first, as in "
                    "transformers",
                    kIndexFile, file));
}

void OpenDirectory(Checkpoint* checkpoint, const Place& place, Purpose purpose) {
  ModelDirectory directory(place.path);
  checkpoint->directory = directory.path();
  if (directory.Has("config.json")) checkpoint->config = ReadModelConfig(directory.FilePath("config.json"));
  AddWeights(checkpoint, directory, place, purpose);
  if (purpose == Purpose::kMerge && HoldsAdapter(directory))
    checkpoint->warnings.push_back("there is an adapter beside the weights; it is not applied");
  if (checkpoint->config.custom_code)
    checkpoint->warnings.push_back(
        "config.json names Python code of the model (auto_map), which is neither run nor copied");
}

void OpenFile(Checkpoint* checkpoint, const std::string& path) {
  RefuseOtherFormat(path);
  AddShard(checkpoint, path, std::string(PlainName(std::filesystem::path(path).filename().string())));
  IndexByName(checkpoint);
}

void OpenStream(Checkpoint* checkpoint, std::shared_ptr<InputStream> stream) {
  Shard shard;
  shard.path = stream->name();
  shard.name = std::filesystem::path(checkpoint->reference).filename().string();
  SafetensorsHeader header = ReadStream(std::move(stream), &shard);
  AddShard(checkpoint, std::move(shard), std::move(header));
  IndexByName(checkpoint);
}

void OpenPlace(Checkpoint* checkpoint, Purpose purpose) {
  Place place = Locate(checkpoint->reference);
  if (place.cached) checkpoint->cache_id = place.cached->name, checkpoint->revision = place.commit;
  struct stat status;
  if (TheOs().Stat(place.path.c_str(), &status) < 0) throw SystemError(errno, "look at it", place.path);
  if (S_ISDIR(status.st_mode))
    OpenDirectory(checkpoint, place, purpose);
  else
    OpenFile(checkpoint, place.path);
}

Checkpoint Open(const std::string& reference, Purpose purpose, std::shared_ptr<InputStream> stream) {
  Checkpoint checkpoint;
  checkpoint.reference = reference;
  if (stream != nullptr) OpenStream(&checkpoint, std::move(stream));
  else OpenPlace(&checkpoint, purpose);
  if (checkpoint.tensors.empty()) checkpoint.warnings.push_back("there are no tensors in this checkpoint");
  if (purpose == Purpose::kReading) return checkpoint;
  for (Shard& shard : checkpoint.shards) shard.metadata.clear(), std::string().swap(shard.header);
  if (purpose == Purpose::kDelta) {
    RequireDelta(checkpoint);
  } else {
    RefuseDelta(checkpoint), RefuseQuantised(checkpoint), RefuseAdapter(checkpoint);
  }
  return checkpoint;
}

// Nothing when it is none.
std::shared_ptr<InputStream> StreamOf(const std::string& reference) {
  const std::string path = ExpandHome(reference);
  return InputStream::IsNamedBy(path) ? std::make_shared<InputStream>(path) : nullptr;
}

}  // namespace

std::string FileOfShard(const ModelDirectory& directory, const std::string& name, std::vector<std::string>* warnings) {
  std::string file;
  for (const Compression compression : {Compression::kNone, Compression::kZstd, Compression::kPlanes}) {
    const std::string candidate = name + std::string(CompressionSuffix(compression));
    if (!directory.Has(candidate)) continue;
    if (file.empty()) file = candidate;
    else if (warnings != nullptr)
      warnings->push_back(fmt::format("{} is not used: {} is there too and goes first", candidate, file));
  }
  return file;
}

uint64_t Shard::bytes() const { return compressed == nullptr ? identity.size : compressed->bytes(); }

SafetensorsHeader ReadShard(Shard* shard) {
  const Fd fd = OpenForReading(shard->path, &shard->identity);
  SafetensorsHeader header;
  if (CompressionOf(shard->path) == Compression::kNone) {
    header = ReadSafetensorsHeader(fd.get(), shard->identity.size, shard->path);
  } else {
    auto opened = CompressedShard::Open(fd.get(), shard->identity.size, shard->path);
    if (!opened) return ReadStream(std::make_shared<InputStream>(shard->path), shard);
    shard->compressed = std::move(opened->shard);
    header = std::move(opened->header);
  }
  shard->data_offset = header.data_offset;
  shard->header_sum = header.sum;
  return header;
}

std::string ReadHeaderBytes(const Shard& shard) {
  if (!shard.header.empty()) return shard.header;
  if (shard.stream != nullptr) {
    std::string header(shard.data_offset, '\0');
    InputStream again(shard.path);
    if (again.Read(reinterpret_cast<std::byte*>(header.data()), header.size()) < header.size())
      throw InputChanged(shard.path, "it has become shorter than its header");
    return header;
  }
  const Fd fd = OpenForReading(shard.path);
  if (shard.compressed != nullptr) return shard.compressed->ReadHeaderBytes(fd.get());
  std::string header(shard.data_offset, '\0');
  ReadExactly(fd.get(), header.data(), header.size(), 0, shard.path);
  return header;
}

std::optional<uint32_t> Checkpoint::Find(std::string_view name, uint32_t guess) const {
  if (guess < tensors.size() && tensors[guess].info.name == name) return guess;
  auto found = std::lower_bound(
      by_name.begin(), by_name.end(), name,
      [&](uint32_t tensor, std::string_view wanted) { return tensors[tensor].info.name < wanted; });
  if (found == by_name.end() || tensors[*found].info.name != name) return std::nullopt;
  return *found;
}

uint64_t Checkpoint::TotalBytes() const {
  uint64_t total = 0;  // of ranges that lie in files: cannot overflow
  for (const CheckpointTensor& tensor : tensors) total += tensor.info.bytes;
  return total;
}

bool Checkpoint::HasStream() const {
  return std::any_of(shards.begin(), shards.end(), [](const Shard& shard) { return shard.stream != nullptr; });
}

uint64_t Checkpoint::MemoryBytes() const {
  constexpr uint64_t kAllocation = 16;  // what the allocator adds
  uint64_t total = sizeof(*this) + config.text.capacity() + shards.capacity() * sizeof(Shard) +
                   tensors.capacity() * sizeof(CheckpointTensor) + by_name.capacity() * sizeof(uint32_t);
  for (const Shard& shard : shards) {
    total += shard.path.capacity() + shard.name.capacity() + 2 * kAllocation;
    if (shard.compressed != nullptr) total += shard.compressed->MemoryBytes();
  }
  for (const CheckpointTensor& tensor : tensors)
    total += tensor.info.name.capacity() + tensor.info.shape.capacity() * sizeof(uint64_t) + 2 * kAllocation;
  return total;
}

Checkpoint OpenCheckpoint(const std::string& reference, std::shared_ptr<InputStream> stream) {
  return Open(reference, Purpose::kMerge, stream != nullptr ? std::move(stream) : StreamOf(reference));
}

Checkpoint OpenDelta(const std::string& reference, std::shared_ptr<InputStream> stream) {
  return Open(reference, Purpose::kDelta, stream != nullptr ? std::move(stream) : StreamOf(reference));
}

Checkpoint OpenCheckpointForReading(const std::string& reference) {
  return Open(reference, Purpose::kReading, StreamOf(reference));
}

}  // namespace braid
