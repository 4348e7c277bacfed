// braid-kernels: how fast the kernels of ops/kernels.h are, on each SIMD target that this machine has.
//
//     braid-kernels [--benchmark_filter=MergeEncoded.*AVX3/cache] [--benchmark_format=json]
//
// Reports CPU time per element, and bytes read and written per second. `cache`: operands of 256 KiB together,
// over and over, from a second-level cache. `memory`: operands four times as large as the last cache, 128 MiB
// or more. Kernels are called as a merge calls them, block by block; what a merge keeps in scratch (decoded
// lanes, bins, keys) stays in one block here too. Names: kernel / what it works on / target / setting.
//
// Frame/... are compression (frames.h): `bytes` of plain weights per second, and what is left of them in percent.
// Memory/read and Memory/copy are the bandwidth to compare with; copy counts bytes as read and as written.
#include <benchmark/benchmark.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/kernels.h"
#include "ops/merger.h"
#include "ops/random.h"
#include "ops/rank_buckets.h"
#include "ops/row_ranks.h"
#include "ops/sparsify.h"
#include "tools/kernels/data.h"
#include "tools/kernels/frames.h"

namespace braid::bench {
namespace {

constexpr size_t kCacheBytes = 256u << 10;

size_t MemoryBytes() {
  size_t last_cache = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches)
    last_cache = std::max(last_cache, static_cast<size_t>(cache.size));
  return std::max(size_t{128} << 20, 4 * last_cache);
}

struct Block {
  const void* const* sources;
  void* out;   // elements, or lanes in scratch
  size_t n;
};
using Body = std::function<void(const Block&)>;

struct Kernel {
  std::string name;
  std::vector<Source> sources;
  size_t out_bytes;             // of an element that goes to memory; 0: what is written stays in scratch
  std::function<Body()> make;   // when the benchmark runs: thresholds take a while
};

float* LaneScratch() {
  static float lanes[kBlockLanes + kLanePadding];
  return lanes;
}

void UseTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void Report(benchmark::State& state, size_t elements, size_t bytes) {
  using benchmark::Counter;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters["element"] = Counter(static_cast<double>(elements), rate | Counter::kInvert);
  state.counters["bytes"] = Counter(static_cast<double>(bytes), rate);
}

void Measure(benchmark::State& state, const Kernel& kernel, int64_t target, size_t total_bytes) {
  UseTarget(target);
  size_t element_bytes = kernel.out_bytes;
  for (const Source& source : kernel.sources) element_bytes += static_cast<size_t>(LaneBytes(source.type));
  const size_t n = total_bytes / element_bytes / kBlockLanes * kBlockLanes;
  std::vector<Operand> operands;
  for (const Source& source : kernel.sources) operands.emplace_back(source, n);
  const Operand out(n * kernel.out_bytes);
  const Body body = kernel.make();
  std::vector<const void*> sources(operands.size());
  for (auto _ : state) {
    for (size_t start = 0; start < n; start += kBlockLanes) {
      for (size_t s = 0; s < sources.size(); ++s)
        sources[s] = operands[s].data() + start * static_cast<size_t>(LaneBytes(kernel.sources[s].type));
      const bool to_memory = kernel.out_bytes > 0;
      std::byte* const written = out.data() + start * kernel.out_bytes;
      body({sources.data(), to_memory ? static_cast<void*>(written) : LaneScratch(), kBlockLanes});
    }
    benchmark::ClobberMemory();
  }
  Report(state, n, n * element_bytes);
}

const float* LanesOf(const Block& block, size_t source = 0) {
  return static_cast<const float*>(block.sources[source]);
}

// --- types ------------------------------------------------------------------------------------------------

void AddCodec(std::vector<Kernel>* kernels) {
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32, DType::kF64}) {
    const std::string name(DTypeName(type));
    const auto size = static_cast<size_t>(LaneBytes(type));
    kernels->push_back({"DecodeLanes/" + name, {{What::kModel, type}}, 0, [=]() -> Body {
      return [=](const Block& b) { DecodeLanes(type, b.sources[0], b.n, static_cast<float*>(b.out)); };
    }});
    kernels->push_back({"DecodeTaskVector/" + name, {{What::kModel, type}}, 0, [=]() -> Body {
      return [=, base = std::make_shared<Operand>(Source{What::kBase}, kBlockLanes)](const Block& b) {
        const auto* lanes = reinterpret_cast<const float*>(base->data());
        DecodeTaskVector(type, b.sources[0], lanes, b.n, static_cast<float*>(b.out));
      };
    }});
    kernels->push_back({"EncodeLanes/" + name, {}, size, [=]() -> Body {
      return [=, model = std::make_shared<Operand>(Source{What::kModel}, kBlockLanes)](const Block& b) {
        NonFinite counts;
        EncodeLanes(type, reinterpret_cast<const float*>(model->data()), b.n, b.out, &counts);
        benchmark::DoNotOptimize(counts);
      };
    }});
  }
}

// --- selection --------------------------------------------------------------------------------------------

Source Task() { return {What::kDelta}; }

void AddCounting(std::vector<Kernel>* kernels) {
  struct Data {
    const char* name;
    What what;
  };
  for (const Data& data : {Data{"task vector", What::kDelta}, Data{"one bin", What::kOneBin},
                           Data{"equal", What::kEqual}, Data{"zeros", What::kZeros}}) {
    const What what = data.what;
    const auto bins = [] { return std::make_shared<std::vector<uint32_t>>(std::max(kHighBins, kLowBins)); };
    kernels->push_back({std::string("CountHighHalves/") + data.name, {{what}}, 0, [=]() -> Body {
      return [=, counts = bins()](const Block& b) { CountHighHalves(LanesOf(b), b.n, counts->data()); };
    }});
    kernels->push_back({std::string("CountLowHalves/") + data.name, {{what}}, 0, [=]() -> Body {
      uint32_t key = what == What::kZeros ? 0 : kEqualKey;
      if (what == What::kDelta) key = ThresholdOf(0, DType::kBF16).key;
      const uint32_t high = key >> 16;
      return [=, counts = bins()](const Block& b) { CountLowHalves(LanesOf(b), b.n, high, counts->data()); };
    }});
  }
}

void AddSelection(std::vector<Kernel>* kernels) {
  AddCounting(kernels);
  kernels->push_back({"CountKey/task vector", {Task()}, 0, []() -> Body {
    return [key = ThresholdOf(0, DType::kBF16).key](const Block& b) {
      benchmark::DoNotOptimize(CountKey(LanesOf(b), b.n, key));
    };
  }});
  kernels->push_back({"CollectKeys/task vector", {Task()}, 0, []() -> Body {
    return [threshold = ThresholdOf(0, DType::kBF16)](const Block& b) {
      static uint32_t keys[kBlockLanes], places[kBlockLanes];
      uint64_t above = 0;
      const auto [low, key, high] = threshold;
      const size_t n = CollectKeys(LanesOf(b), b.n, low, high, keys, places, &above);
      benchmark::DoNotOptimize(n + above);
    };
  }});
  const std::vector<Source> both = {{What::kBase, DType::kBF16}, {What::kModel, DType::kBF16}};
  kernels->push_back({"CollectTaskVectorKeys/BF16", both, 0, []() -> Body {
    return [threshold = ThresholdOf(0, DType::kBF16)](const Block& b) {
      static uint32_t keys[kBlockLanes], places[kBlockLanes];
      uint64_t above = 0;
      const auto [low, key, high] = threshold;
      const size_t n =
          CollectTaskVectorKeys(DType::kBF16, b.sources[0], b.sources[1], b.n, low, high, keys, places, &above);
      benchmark::DoNotOptimize(n + above);
    };
  }});
  kernels->push_back({"StoreKeys/task vector", {Task()}, 0, []() -> Body {
    return [](const Block& b) { StoreKeys(LanesOf(b), b.n, static_cast<uint32_t*>(b.out)); };
  }});
  kernels->push_back({"AddMagnitudes/task vector", {Task()}, 0, []() -> Body {
    return [high = static_cast<int32_t>(ThresholdOf(0, DType::kBF16).key >> 16)](const Block& b) {
      static double sums[kSumLanes];
      AddMagnitudes(LanesOf(b), b.n, high, sums);
    };
  }});
}

// --- taking entries out -----------------------------------------------------------------------------------

// What is kept of a row of as many entries as a block has lanes, by draw and rank: buckets alone, or all.
Body BucketBody(bool keep) {
  struct Row {
    std::vector<uint32_t> keys = std::vector<uint32_t>(kBlockLanes + kLanePadding), draws = keys;
    std::vector<std::byte> room = std::vector<std::byte>(RankBuckets::RoomBytes(kBlockLanes));
    RankBuckets buckets;
  };
  auto row = std::make_shared<Row>();
  DrawBits({.seed = 1, .model = 1, .tensor_key = 1}, 0, kBlockLanes, row->draws.data());
  return [=](const Block& b) {
    const RankLimits limits{.low = 0.35, .step = 0.3 / static_cast<double>(b.n - 1)};
    StoreKeys(LanesOf(b), b.n, row->keys.data());
    FillBuckets(row->keys.data(), b.n, limits, row->room.data(), &row->buckets);
    if (keep && !KeepByBuckets(limits, row->draws.data(), 0, b.n, &row->buckets, static_cast<uint64_t*>(b.out)))
      std::abort();
  };
}

void AddSparsifying(std::vector<Kernel>* kernels) {
  kernels->push_back({"DrawBits", {}, sizeof(uint32_t), []() -> Body {
    return [first = uint64_t{0}](const Block& b) mutable {
      DrawBits({.seed = 1, .model = 1, .tensor_key = 1}, first, b.n, static_cast<uint32_t*>(b.out));
      first += b.n;
    };
  }});
  kernels->push_back({"KeepDrawn/task vector", {Task()}, 0, []() -> Body {
                        return [draws = std::vector<uint32_t>(kBlockLanes + kLanePadding, 1),
                                limits = std::vector<uint32_t>(kBlockLanes + kLanePadding, 2)](const Block& b) {
                          auto* const d = static_cast<float*>(b.out);
                          std::memcpy(d, b.sources[0], b.n * sizeof(float));
                          KeepDrawn(draws.data(), limits.data(), b.n, d);
                        };
                      }});
  kernels->push_back({"KeepKeys/task vector", {Task()}, 0, []() -> Body {
    return [key = ThresholdOf(0, DType::kBF16).key](const Block& b) {
      auto* const d = static_cast<float*>(b.out);
      std::memcpy(d, b.sources[0], b.n * sizeof(float));
      KeepKeys(key, kNanKey, b.n, d);
    };
  }});
  // A row of as many entries as a block has lanes.
  kernels->push_back({"RankKeys/task vector", {Task()}, 0, []() -> Body {
    return [room = std::vector<uint64_t>(2 * kBlockLanes)](const Block& b) mutable {
      auto* const keys = static_cast<uint32_t*>(b.out);
      StoreKeys(LanesOf(b), b.n, keys);
      RankKeys(keys, b.n, room.data());
    };
  }});
  // The same row, of which entries stay by their draws; what of it lies in buckets, and what is left to do.
  kernels->push_back({"FillBuckets/task vector", {Task()}, 0, []() -> Body { return BucketBody(false); }});
  kernels->push_back({"KeepByBuckets/task vector", {Task()}, 0, []() -> Body { return BucketBody(true); }});
}

// --- merging ----------------------------------------------------------------------------------------------

// What a block of so many models points to.
struct Parameters {
  Parameters(size_t models, DType from) : weight(models, 1.0f / 3) {
    for (size_t m = 0; m < models; ++m) {
      const Threshold threshold = ThresholdOf(m, from);
      min_key.push_back(threshold.min_key), sure_key.push_back(threshold.sure_key);
    }
    for (size_t m = 0; m < models; ++m) weight[m] += 0.1f * static_cast<float>(m);
  }
  // ties, as recipes have it unless they say otherwise.
  TaskVectorBlock For(const Block& b) const {
    return {.base = b.sources[0], .models = b.sources + 1, .num_models = weight.size(),
            .weight = weight.data(), .factor = nullptr, .min_key = min_key.data(),
            .elect = true, .elect_by_count = false,
            .elect_weighted = true, .zero_elects_minus = false, .divide = true, .divisor = 1, .lambda = 1};
  }
  std::vector<float> weight;
  std::vector<uint32_t> min_key, sure_key;
};

std::vector<Source> BaseAnd(size_t models, DType type) {
  std::vector<Source> sources = {{What::kBase, type}};
  for (size_t m = 0; m < models; ++m) sources.push_back({What::kModel, type, m});
  return sources;
}

void AddEncoded(DType from, DType to, size_t models, bool with_open, std::vector<Kernel>* kernels) {
  const std::string types = std::string(DTypeName(from)) + " to " + std::string(DTypeName(to));
  const std::string sources = std::to_string(models) + (with_open ? " open" : "");
  const std::string name = "MergeEncoded/" + types + ", " + sources;
  kernels->push_back({name, BaseAnd(models, from), static_cast<size_t>(LaneBytes(to)), [=]() -> Body {
    return [=, parameters = Parameters(models, from)](const Block& b) {
      uint64_t staying[kMostModels] = {}, words[kBlockLanes / 64];
      const OpenEntries open{parameters.sure_key.data(), staying, words};
      VoteCounts votes;
      const TaskVectorBlock block = parameters.For(b);
      if (!MergeEncoded(block, from, to, b.n, b.out, &votes, with_open ? &open : nullptr)) std::abort();
      benchmark::DoNotOptimize(votes);
      benchmark::DoNotOptimize(words);
    };
  }});
}

void AddLaneMerge(size_t models, bool usual, std::vector<Kernel>* kernels) {
  const std::string name = "MergeTaskVectors/" + std::to_string(models) + (usual ? "" : " by count");
  kernels->push_back({name, BaseAnd(models, DType::kF32), 0, [=]() -> Body {
    return [=, parameters = Parameters(models, DType::kF32)](const Block& b) {
      static float room[2 * kMostModels * kLanePadding];
      TaskVectorBlock block = parameters.For(b);
      block.elect_by_count = !usual;
      VoteCounts votes;
      MergeTaskVectors(block, b.n, room, static_cast<float*>(b.out), nullptr, &votes);
      benchmark::DoNotOptimize(votes);
    };
  }});
}

void AddMerging(std::vector<Kernel>* kernels) {
  for (const bool with_open : {false, true})
    for (size_t models = 1; models <= 4; ++models) {
      AddEncoded(DType::kBF16, DType::kBF16, models, with_open, kernels);
      AddEncoded(DType::kF32, DType::kF32, models, with_open, kernels);
      AddEncoded(DType::kF32, DType::kBF16, models, with_open, kernels);
    }
  for (const bool usual : {true, false})
    for (const size_t models : {3, 8}) AddLaneMerge(models, usual, kernels);
  kernels->push_back({"FindOpen/3", BaseAnd(3, DType::kF32), 0, []() -> Body {
    return [parameters = Parameters(3, DType::kF32)](const Block& b) {
      uint64_t staying[3] = {}, words[kBlockLanes / 64];
      FindOpen(parameters.For(b), b.n, {parameters.sure_key.data(), staying, words});
      benchmark::DoNotOptimize(words);
    };
  }});
  kernels->push_back({"CountElectedSigns/3", BaseAnd(3, DType::kF32), 0, []() -> Body {
    return [parameters = Parameters(3, DType::kF32)](const Block& b) {
      VoteCounts votes;
      CountElectedSigns(parameters.For(b), b.n, &votes);
      benchmark::DoNotOptimize(votes);
    };
  }});
  kernels->push_back({"WeightedSum/3", {{What::kModel}, {What::kModel}, {What::kModel}}, 0, []() -> Body {
    return [](const Block& b) {
      const float* models[] = {LanesOf(b, 0), LanesOf(b, 1), LanesOf(b, 2)};
      const float weights[] = {0.2f, 0.3f, 0.5f};
      WeightedSum(models, 3, weights, true, 1.0f, b.n, static_cast<float*>(b.out));
    };
  }});
}

// --- memory -----------------------------------------------------------------------------------------------

void ReadMemory(benchmark::State& state, size_t bytes) {
  const Operand operand(bytes);
  for (auto _ : state) {
    uint64_t sums[8] = {};
    for (size_t at = 0; at < bytes; at += sizeof sums) {
      uint64_t words[8];
      std::memcpy(words, operand.data() + at, sizeof words);
      for (size_t i = 0; i < 8; ++i) sums[i] += words[i];
    }
    benchmark::DoNotOptimize(sums);
  }
  Report(state, bytes / sizeof(float), bytes);
}

void CopyMemory(benchmark::State& state, size_t bytes) {
  const Operand from(bytes / 2), to(bytes / 2);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), bytes / 2);
    benchmark::ClobberMemory();
  }
  Report(state, bytes / 2 / sizeof(float), bytes);
}

void Register() {
  static std::vector<Kernel> kernels;
  AddCodec(&kernels);
  AddSelection(&kernels);
  AddSparsifying(&kernels);
  AddMerging(&kernels);
  const size_t memory_bytes = MemoryBytes();
  for (const bool in_memory : {false, true}) {
    const size_t bytes = in_memory ? memory_bytes : kCacheBytes;
    const std::string setting = in_memory ? "/memory" : "/cache";
    benchmark::RegisterBenchmark(("Memory/read" + setting).c_str(), ReadMemory, bytes);
    benchmark::RegisterBenchmark(("Memory/copy" + setting).c_str(), CopyMemory, bytes);
    for (const Kernel& kernel : kernels)
      for (const int64_t target : hwy::SupportedAndGeneratedTargets())
        benchmark::RegisterBenchmark((kernel.name + "/" + hwy::TargetName(target) + setting).c_str(),
                                     [=](benchmark::State& state) { Measure(state, kernel, target, bytes); });
  }
  benchmark::AddCustomContext("operands in cache", std::to_string(kCacheBytes >> 10) + " KiB");
  benchmark::AddCustomContext("operands in memory", std::to_string(memory_bytes >> 20) + " MiB");
}

}  // namespace
}  // namespace braid::bench

int main(int argc, char** argv) {
  braid::bench::Register();
  braid::bench::RegisterFrames();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
