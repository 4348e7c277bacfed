#include "pipeline/sample.h"

#include <algorithm>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "io/mapped_file.h"
#include "io/spot_reader.h"
#include "pipeline/scope_run.h"

namespace braid {
namespace {

// Of what is resident. Many short runs cost nothing there, and lanes close to each other are alike.
constexpr uint64_t kResidentRunLanes = 64;

// A run is read with one request of less than a page per source. More lanes of it would say little: they are alike.
constexpr uint64_t kRunLanes = 64;
constexpr uint64_t kMostRuns = kSampleLanes / kRunLanes, kLeastRuns = 512;
// A request takes as long as reading so many bytes in order, more or less; a sample should not take a tenth of that.
constexpr uint64_t kBytesPerRun = 128 << 10;
// A solid-state disk answers so many small requests at once (2,048 runs of 4 sources: 8 readers 0.14 s, 32 readers 0.10
// s; EPYC VM); each reader has every source open.
constexpr size_t kMostReaders = 32, kMostOpen = 128;

struct Run {
  uint32_t tensor = 0;
  uint64_t first = 0;
};

// The run that begins so many lanes behind this one.
void PrefetchRun(const EncodedLanes& run, uint64_t lanes) {
  const auto size = static_cast<uint64_t>(LaneBytes(run.type));
  for (uint64_t at = 0; run.bytes != nullptr && at < kResidentRunLanes * size; at += 64)
    __builtin_prefetch(run.bytes + lanes * size + at);
}

bool IsCompressed(const Plan& plan, const PlannedTensor& tensor) {
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (source.present() && plan.ShardOf(source).compressed != nullptr) return true;
  }
  return false;
}

// Evenly over the elements of all tensors, one after the other; those too short for a run are passed over, and those
// whose rows come from here and there, or out of frames: a sample decides about speed alone.
std::vector<Run> RunsOf(const Plan& plan, const ScopeRun& scope) {
  std::vector<Run> runs;
  const std::vector<uint32_t>& tensors = scope.scope().tensors;
  uint64_t all = 0;
  for (uint32_t t : tensors) all += plan.tensors[t].elements;
  const uint64_t count = std::clamp(all * (plan.most_models + 1) * 2 / kBytesPerRun, kLeastRuns, kMostRuns);
  size_t slot = 0;
  uint64_t begin = 0;   // of the tensor, among the elements of the scope
  for (uint64_t i = 0; i < count; ++i) {
    const auto at =
        static_cast<uint64_t>(static_cast<double>(i) * static_cast<double>(all) / static_cast<double>(count));
    while (at >= begin + plan.tensors[tensors[slot]].elements) begin += plan.tensors[tensors[slot++]].elements;
    const uint64_t elements = plan.tensors[tensors[slot]].elements;
    const PlannedTensor& tensor = plan.tensors[tensors[slot]];
    if (elements < kRunLanes || !tensor.rows.empty() || IsCompressed(plan, tensor) || !scope.ReadsTensor(tensors[slot]))
      continue;
    runs.push_back({tensors[slot], std::min(at - begin, elements - kRunLanes)});
  }
  return runs;
}

// Which files are in the page cache, looked up once. Thread-safe.
class CachedFiles {
 public:
  bool Has(const Shard& shard) {
    std::lock_guard lock(mutex_);
    const auto [at, is_new] = cached_.try_emplace(shard.path, false);
    if (is_new) at->second = MappedFile(shard.path, shard.identity).CachedShare() >= 0.5;
    return at->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, bool> cached_;
};

class RunReader {
 public:
  RunReader(const Plan& plan, CachedFiles* cached, ScopeRun* scope)
      : plan_(plan),
        cached_(*cached),
        scope_(*scope),
        scratch_(plan.most_models, scope->spec().scratch_bytes),
        files_(plan.most_models + 1),
        lanes_(plan.most_models),
        bytes_((plan.most_models + 1) * kRunLanes * sizeof(double)) {}

  void Read(const Run& run, Accumulator* accumulator) {
    const PlannedTensor& tensor = plan_.tensors[run.tensor];
    std::byte* next = bytes_.data();
    const auto read = [&](size_t index, const TensorSource& source) -> EncodedLanes {
      const DType type = plan_.Info(source).dtype;
      const auto size = static_cast<uint64_t>(LaneBytes(type));
      std::byte* const bytes = std::exchange(next, next + kRunLanes * size);
      const Shard& shard = plan_.ShardOf(source);
      std::unique_ptr<SpotReader>& file = files_[index];
      if (file == nullptr || file->path() != shard.path)
        file = std::make_unique<SpotReader>(shard.path, shard.identity, cached_.Has(shard));
      file->Read(plan_.Info(source).offset + run.first * size, kRunLanes * size, bytes);
      return {type, bytes};
    };
    LaneTile tile;
    tile.first = run.first, tile.count = kRunLanes;
    if (tensor.base.present()) tile.base = read(0, tensor.base);
    for (size_t m = 0; m < tensor.models.size(); ++m)
      lanes_[m] = scope_.ReadsModel(run.tensor, m) ? read(m + 1, tensor.models[m]) : EncodedLanes{};
    tile.models = std::span(lanes_).first(tensor.models.size());
    scope_.merger()->Accumulate(scope_.round(), plan_.coefficients[tensor.coefficients], tile, nullptr, scratch_,
                                accumulator, {});
  }

 private:
  const Plan& plan_;
  CachedFiles& cached_;
  ScopeRun& scope_;
  Scratch scratch_;
  std::vector<std::unique_ptr<SpotReader>> files_;   // the one last used of each source
  std::vector<EncodedLanes> lanes_;
  std::vector<std::byte> bytes_;
};

}  // namespace

void SampleTile(const LaneTile& tile, uint64_t elements, const Coefficients& coefficients, const ScopeRun& scope,
                Scratch& scratch, Accumulator* accumulator) {
  const uint64_t stride = std::max(elements / scope.spec().sample_runs, kResidentRunLanes);
  const uint64_t end = tile.first + tile.count;
  std::vector<EncodedLanes> models(tile.models.size());
  for (uint64_t at = (tile.first + stride - 1) / stride * stride; at + kResidentRunLanes <= end; at += stride) {
    const auto from = [&](EncodedLanes source) {
      if (source.bytes != nullptr) source.bytes += (at - tile.first) * static_cast<uint64_t>(LaneBytes(source.type));
      return source;
    };
    std::transform(tile.models.begin(), tile.models.end(), models.begin(), from);
    for (const EncodedLanes& model : models) PrefetchRun(model, stride);
    PrefetchRun(from(tile.base), stride);
    const LaneTile run{
        .first = at, .count = kResidentRunLanes, .tensor = tile.tensor, .base = from(tile.base), .models = models};
    scope.merger()->Accumulate(scope.round(), coefficients, run, nullptr, scratch, accumulator, {});
  }
}

void SampleScope(const Plan& plan, ScopeRun* scope) {
  const std::vector<Run> runs = RunsOf(plan, *scope);
  const size_t num_readers = std::clamp<size_t>(kMostOpen / (plan.most_models + 1), 1, kMostReaders);
  std::vector<std::unique_ptr<Accumulator>> parts(num_readers);
  CachedFiles cached;
  std::mutex mutex;
  std::exception_ptr error;
  {
    std::vector<std::jthread> readers;
    for (size_t r = 0; r < num_readers; ++r)
      readers.emplace_back([&, r] {
        try {
          RunReader reader(plan, &cached, scope);
          parts[r] = scope->merger()->NewAccumulator(scope->round());
          for (size_t i = runs.size() * r / num_readers; i < runs.size() * (r + 1) / num_readers; ++i)
            reader.Read(runs[i], parts[r].get());
        } catch (...) {
          std::lock_guard lock(mutex);
          if (!error) error = std::current_exception();
        }
      });
  }
  if (error) std::rethrow_exception(error);
  Accumulator* const total = scope->TakeAccumulator();
  for (auto& part : parts) total->Add(part.get());   // in the order of the elements
  scope->GiveAccumulator(total);
}

}  // namespace braid
