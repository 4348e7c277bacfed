#include "pipeline/synth.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "io/error.h"
#include "io/json.h"
#include "io/os.h"
#include "io/safetensors.h"
#include "ops/kernels.h"
#include "pipeline/random_pool.h"
#include "pipeline/tokenizer_stub.h"

namespace braid {
namespace {

constexpr uint64_t kChunkBytes = 8u << 20;      // of one write, aligned in the file
constexpr uint64_t kHeaderAlignment = 8;        // what published checkpoints have
constexpr size_t kBlockLanes = 4096;            // scratch that fits L1
constexpr uint64_t kSideFileBytes = 1u << 20;   // allowance per model in the space check
constexpr size_t kMaxPool = size_t{1} << 24, kMinPool = size_t{1} << 16;

constexpr float kMatrixScale = 0.02f, kNormSpread = 0.05f, kTaskScale = 5e-4f;

// --- values -----------------------------------------------------------------------------------------------

// The two pools. Their sizes differ, so that a tensor larger than a pool does not repeat its pairs of weight
// and change.
struct Pools {
  std::vector<float> normal, heavy;
  uint64_t seed;
};

Pools MakePools(const SynthOptions& options, uint64_t elements, int threads) {
  const size_t size = std::clamp(std::bit_ceil(elements), uint64_t{kMinPool}, uint64_t{kMaxPool});
  Pools pools;
  pools.seed = MixBits(options.seed, 0);
  pools.normal = MakeRandomPool(Distribution::kNormal, MixBits(options.seed, 1), size + 3, threads);
  if (!options.finetunes.empty())
    pools.heavy = MakeRandomPool(Distribution::kStudent3, MixBits(options.seed, 2), size - 17, threads);
  return pools;
}

// A pool read as an endless ring: `Run` gives consecutive values from wherever a tensor's element `i` falls.
class Ring {
 public:
  Ring(const std::vector<float>& pool, uint64_t start) : pool_(pool), start_(start % pool.size()) {}

  const float* At(uint64_t i, size_t* run) const {
    const uint64_t at = (start_ + i) % pool_.size();
    *run = std::min<uint64_t>(*run, pool_.size() - at);
    return pool_.data() + at;
  }

 private:
  const std::vector<float>& pool_;
  uint64_t start_;
};

// The weights of one tensor in one model of the family.
class TensorValues {
 public:
  // `tensor_index` counts over the whole model; `model` is 0 for the base.
  TensorValues(const Pools& pools, const TensorInfo& tensor, uint64_t tensor_index, uint64_t model)
      : normal_(pools.normal, MixBits(pools.seed, tensor_index << 16)), dtype_(tensor.dtype) {
    const bool is_norm = tensor.shape.size() == 1 && !tensor.name.ends_with("bias");
    mean_ = is_norm ? 1.0f : 0.0f;
    scale_ = is_norm ? kNormSpread : kMatrixScale;
    if (model > 0) heavy_.emplace(pools.heavy, MixBits(pools.seed, (tensor_index << 16) + model));
  }

  // Encodes elements first .. first + count.
  void Encode(uint64_t first, uint64_t count, char* bytes) const {
    float lanes[kBlockLanes + kLanePadding];
    std::fill_n(lanes + kBlockLanes, kLanePadding, 0.0f);
    const size_t element_bytes = static_cast<size_t>(LaneBytes(dtype_));
    NonFinite ignored;
    while (count > 0) {
      const size_t n = Generate(first, std::min<uint64_t>(count, kBlockLanes), lanes);
      EncodeLanes(dtype_, lanes, n, bytes, &ignored);
      first += n, count -= n, bytes += n * element_bytes;
    }
  }

 private:
  // Up to `n` values from `first` on; fewer where a pool ends. Returns how many.
  size_t Generate(uint64_t first, size_t n, float* lanes) const {
    const float* normal = normal_.At(first, &n);
    const float* heavy = heavy_ ? heavy_->At(first, &n) : nullptr;
    if (heavy == nullptr)
      for (size_t i = 0; i < n; ++i) lanes[i] = mean_ + scale_ * normal[i];
    else
      for (size_t i = 0; i < n; ++i) lanes[i] = mean_ + scale_ * normal[i] + kTaskScale * heavy[i];
    return n;
  }

  Ring normal_;
  std::optional<Ring> heavy_;
  DType dtype_;
  float mean_, scale_;
};

// --- files ------------------------------------------------------------------------------------------------

struct ShardPlan {
  std::string file_name;
  std::vector<TensorInfo> tensors;  // offsets from the start of the file
  uint64_t first_tensor = 0;        // index of tensors[0] in the model
  std::string header;
  uint64_t file_bytes = 0;
};

std::vector<ShardPlan> PlanShards(const std::vector<TensorInfo>& tensors, uint64_t shard_bytes) {
  std::vector<ShardPlan> shards;
  uint64_t size = 0;
  for (uint64_t i = 0; i < tensors.size(); ++i) {
    if (shards.empty() || size + tensors[i].bytes > shard_bytes) {
      shards.emplace_back().first_tensor = i;
      size = 0;
    }
    shards.back().tensors.push_back(tensors[i]);
    size += tensors[i].bytes;
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    ShardPlan& shard = shards[s];
    shard.file_name = shards.size() == 1
                          ? "model.safetensors"
                          : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    shard.header = MakeSafetensorsHeader(shard.tensors, {{"format", "pt"}}, kHeaderAlignment);
    shard.file_bytes = shard.header.size();
    for (TensorInfo& tensor : shard.tensors) {
      tensor.offset = shard.file_bytes;
      shard.file_bytes += tensor.bytes;
    }
  }
  return shards;
}

// Runs `work` on `threads` threads and rethrows the first failure.
template <typename Work>
void OnThreads(int threads, Work work) {
  std::mutex mutex;
  std::exception_ptr failure;
  auto guarded = [&] {
    try {
      work();
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back(guarded);
  }
  if (failure) std::rethrow_exception(failure);
}

// Writes one shard, chunk by chunk, each by whichever thread is free.
class ShardWriterJob {
 public:
  ShardWriterJob(const ShardPlan& plan, const Pools& pools, uint64_t model, std::string path)
      : plan_(plan), pools_(pools), model_(model), path_(std::move(path)) {}

  void Run(int threads) {
    fd_ = Fd(TheOs().Open(path_.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0666));
    if (!fd_) throw SystemError(errno, "create it", path_);
    OnThreads(threads, [&] { WriteChunks(); });
    if (TheOs().Fdatasync(fd_.get()) < 0) throw SystemError(errno, "flush it", path_);
  }

 private:
  void WriteChunks() {
    std::vector<char> buffer(std::min(kChunkBytes, plan_.file_bytes));
    uint64_t mine = plan_.file_bytes;  // the chunk that this thread wrote last: none
    for (;;) {
      const uint64_t begin = next_.fetch_add(kChunkBytes);
      if (begin >= plan_.file_bytes || failed_) return;
      try {
        const uint64_t end = std::min(begin + kChunkBytes, plan_.file_bytes);
        Fill(begin, end, buffer.data());
        WriteExactly(fd_.get(), buffer.data(), end - begin, begin, path_);
      } catch (...) {
        failed_ = true;
        throw;
      }
      StartWriteback(begin);
      if (mine < plan_.file_bytes) Drop(mine);
      mine = begin;
    }
  }

  // Dirty pages must not pile up: the disk works from the first chunk on, and a thread waits for its previous
  // chunk once it has started the next. Best effort: durability comes from fdatasync.
  void StartWriteback(uint64_t begin) {
    TheOs().SyncFileRange(fd_.get(), static_cast<off_t>(begin), kChunkBytes, SYNC_FILE_RANGE_WRITE);
  }
  void Drop(uint64_t begin) {
    const auto offset = static_cast<off_t>(begin);
    TheOs().SyncFileRange(fd_.get(), offset, kChunkBytes,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    TheOs().Fadvise(fd_.get(), offset, kChunkBytes, POSIX_FADV_DONTNEED);
  }

  // The bytes begin .. end of the file. Tensors begin and chunks end at whole elements, as the header's
  // length is a multiple of 8.
  void Fill(uint64_t begin, uint64_t end, char* buffer) const {
    const std::string& header = plan_.header;
    if (begin < header.size())
      std::memcpy(buffer, header.data() + begin, std::min<uint64_t>(end, header.size()) - begin);
    auto ends_after = [](uint64_t at, const TensorInfo& t) { return at < t.offset + t.bytes; };
    auto first = std::upper_bound(plan_.tensors.begin(), plan_.tensors.end(), begin, ends_after);
    for (auto tensor = first; tensor != plan_.tensors.end() && tensor->offset < end; ++tensor) {
      const uint64_t index = plan_.first_tensor + static_cast<uint64_t>(tensor - plan_.tensors.begin());
      const uint64_t from = std::max(begin, tensor->offset);
      const uint64_t to = std::min(end, tensor->offset + tensor->bytes);
      const auto element_bytes = static_cast<uint64_t>(LaneBytes(tensor->dtype));
      TensorValues(pools_, *tensor, index, model_)
          .Encode((from - tensor->offset) / element_bytes, (to - from) / element_bytes,
                  buffer + (from - begin));
    }
  }

  const ShardPlan& plan_;
  const Pools& pools_;
  uint64_t model_;
  std::string path_;
  Fd fd_;
  std::atomic<uint64_t> next_{0};
  std::atomic<bool> failed_{false};
};

void WriteTextFile(const std::string& path, const std::string& text) {
  Fd fd(TheOs().Open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0666));
  if (!fd) throw SystemError(errno, "create it", path);
  WriteExactly(fd.get(), text.data(), text.size(), 0, path);
  if (TheOs().Fdatasync(fd.get()) < 0) throw SystemError(errno, "flush it", path);
}

std::string IndexText(const std::vector<ShardPlan>& shards, uint64_t total_bytes) {
  Json weight_map = Json::object();
  for (const ShardPlan& shard : shards)
    for (const TensorInfo& tensor : shard.tensors) weight_map[tensor.name] = shard.file_name;
  const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", std::move(weight_map)}};
  return index.dump(2) + "\n";
}

void SyncDirectory(const std::string& path) {
  Fd fd(TheOs().Open(path.c_str(), O_RDONLY | O_DIRECTORY));
  if (!fd || TheOs().Fsync(fd.get()) < 0) throw SystemError(errno, "flush it", path);
}

// What all models of the family share.
struct Family {
  const SynthOptions& options;
  const std::vector<ShardPlan>& shards;
  const Pools& pools;
  uint64_t tensor_bytes;
  int threads;
};

void WriteFiles(const Family& family, uint64_t model, const std::string& directory) {
  const SynthOptions& options = family.options;
  for (const ShardPlan& shard : family.shards)
    ShardWriterJob(shard, family.pools, model, directory + "/" + shard.file_name).Run(family.threads);
  if (family.shards.size() > 1)
    WriteTextFile(directory + "/model.safetensors.index.json",
                  IndexText(family.shards, family.tensor_bytes));
  WriteTextFile(directory + "/config.json", ConfigText(*options.architecture, options.dtype));
  WriteTextFile(directory + "/generation_config.json",
                Json({{"bos_token_id", 1}, {"eos_token_id", 2}}).dump(2) + "\n");
  WriteTextFile(directory + "/tokenizer.json", TokenizerText());
  WriteTextFile(directory + "/tokenizer_config.json", TokenizerConfigText());
  SyncDirectory(directory);
}

void WriteModel(const Family& family, uint64_t model, const std::string& name) {
  const std::string path = family.options.output + "/" + name, partial = path + ".partial";
  std::error_code ignored;
  std::filesystem::remove_all(partial, ignored);  // left by a run that was stopped
  if (TheOs().Mkdir(partial.c_str(), 0777) < 0) throw SystemError(errno, "make the directory", partial);
  try {
    WriteFiles(family, model, partial);
    if (TheOs().Rename(partial.c_str(), path.c_str(), 0) < 0) throw SystemError(errno, "name it", path);
  } catch (...) {
    std::filesystem::remove_all(partial, ignored);  // gigabytes that nobody could use
    throw;
  }
  SyncDirectory(family.options.output);
}

// --- checks -----------------------------------------------------------------------------------------------

// The models' directory names, the base first.
std::vector<std::string> ModelNames(const SynthOptions& options) {
  std::vector<std::string> names = {"base"};
  names.insert(names.end(), options.finetunes.begin(), options.finetunes.end());
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos)
      throw Error(ErrorCode::kUsage, fmt::format("'{}' is not a name for a model's directory", name));
    if (!seen.insert(name).second)
      throw Error(ErrorCode::kUsage, fmt::format("two models would be named '{}'", name));
    if (const std::string path = options.output + "/" + name; FileExists(path))
      throw Error(ErrorCode::kUsage, "it exists already")
          .Path(path).Hint("remove it or choose another output");
  }
  return names;
}

void CheckSpace(const std::string& directory, uint64_t bytes) {
  struct statfs status;
  if (TheOs().Statfs(directory.c_str(), &status) < 0) throw SystemError(errno, "look at its disk", directory);
  const uint64_t available = static_cast<uint64_t>(status.f_bavail) * static_cast<uint64_t>(status.f_bsize);
  if (available < bytes)
    throw Error(ErrorCode::kIo,
                fmt::format("the family takes {} bytes and the disk has {} left", bytes, available))
        .Path(directory).Hint("choose fewer fine-tunes, a smaller architecture or another disk");
}

}  // namespace

SynthReport SynthesizeFamily(const SynthOptions& options) {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = options.threads > 0 ? options.threads : std::clamp(processors, 1, 4);
  const std::vector<std::string> names = ModelNames(options);
  const std::vector<TensorInfo> tensors = TensorsOf(*options.architecture, options.dtype);
  const std::vector<ShardPlan> shards = PlanShards(tensors, options.shard_bytes);

  SynthReport report;
  report.models = names.size();
  report.shards_per_model = shards.size();
  for (const TensorInfo& tensor : tensors) report.tensor_bytes_per_model += tensor.bytes;
  for (const ShardPlan& shard : shards) report.bytes_written += shard.file_bytes * names.size();

  std::error_code error;
  std::filesystem::create_directories(options.output, error);
  if (error) throw SystemError(error.value(), "make the directory", options.output);
  CheckSpace(options.output, report.bytes_written + names.size() * kSideFileBytes);

  const uint64_t elements = report.tensor_bytes_per_model / static_cast<uint64_t>(LaneBytes(options.dtype));
  const Pools pools = MakePools(options, elements, threads);
  for (uint64_t model = 0; model < names.size(); ++model)
    WriteModel({options, shards, pools, report.tensor_bytes_per_model, threads}, model, names[model]);
  return report;
}

}  // namespace braid
