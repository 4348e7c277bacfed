#include "pipeline/inspect.h"

#include <tbb/parallel_pipeline.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "ops/kernels.h"
#include "ops/merger.h"
#include "pipeline/budget.h"
#include "pipeline/tensor_reader.h"
#include "pipeline/threads.h"

namespace braid {
namespace {

// What one reduction block contributes, its 16 sums folded.
struct BlockStatistics {
  double sum = 0, squares = 0, largest = 0;
  uint64_t nan = 0, inf = 0, zeros = 0;
};

// The 16 interleaved accumulators of one block.
struct Lanes16 {
  std::array<double, kSumLanes> sum{}, squares{}, largest{};
};

// n values of a lane type as float64, exactly, then zeros up to a multiple of kSumLanes.
void DecodeWide(DType type, const std::byte* bytes, size_t n, float* lanes, double* values) {
  if (type == DType::kF64) {
    std::memcpy(values, bytes, n * sizeof(double));
  } else {
    DecodeLanes(type, bytes, n, lanes);
    for (size_t i = 0; i < n; ++i) values[i] = lanes[i];
  }
  std::fill(values + n, values + (n + kSumLanes - 1) / kSumLanes * kSumLanes, 0.0);
}

void CountSpecial(const double* values, size_t n, BlockStatistics* out) {
  constexpr double kLargest = std::numeric_limits<double>::max();
  uint32_t nan = 0, inf = 0, zeros = 0;
  for (size_t i = 0; i < n; ++i) {
    nan += values[i] != values[i];
    inf += std::abs(values[i]) > kLargest;
    zeros += values[i] == 0;
  }
  out->nan += nan, out->inf += inf, out->zeros += zeros;
}

void AddValues(const double* values, size_t n, Lanes16* lanes) {
  constexpr double kLargest = std::numeric_limits<double>::max();
  for (size_t i = 0; i < n; i += kSumLanes)
    for (size_t j = 0; j < kSumLanes; ++j) {
      const double magnitude = std::abs(values[i + j]);
      const bool finite = magnitude <= kLargest;
      const double value = finite ? values[i + j] : 0.0;
      lanes->sum[j] += value;
      lanes->squares[j] += value * value;
      lanes->largest[j] = std::max(lanes->largest[j], finite ? magnitude : 0.0);
    }
}

BlockStatistics StatisticsOfBlock(DType type, const std::byte* bytes, size_t count) {
  alignas(64) float lanes[kBlockLanes + kLanePadding];
  alignas(64) double values[kBlockLanes + kSumLanes];
  BlockStatistics out;
  Lanes16 sums;
  for (size_t start = 0; start < count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, count - start);
    DecodeWide(type, bytes + start * static_cast<size_t>(LaneBytes(type)), n, lanes, values);
    CountSpecial(values, n, &out);
    AddValues(values, n, &sums);
  }
  out.largest = *std::max_element(sums.largest.begin(), sums.largest.end());
  out.sum = FoldSums(sums.sum.data());
  out.squares = FoldSums(sums.squares.data());
  return out;
}

// A window on its way: read in order, computed anywhere, added up in order.
struct Window {
  size_t tensor = 0;
  uint64_t first = 0, count = 0;  // elements
  ResidentRange range;
  std::vector<BlockStatistics> blocks;
};
using WindowPtr = std::shared_ptr<Window>;

class Source {
 public:
  explicit Source(const Checkpoint& checkpoint) : checkpoint_(checkpoint), reader_(checkpoint) {}

  // The next window in file order, or null at the end.
  WindowPtr Next() {
    while (tensor_ < checkpoint_.tensors.size()) {
      const CheckpointTensor& tensor = checkpoint_.tensors[tensor_];
      if (IsLaneType(tensor.info.dtype) && first_ < tensor.info.elements) return Read(tensor);
      ++tensor_, first_ = 0;
    }
    return nullptr;
  }

  void Finish() { reader_.Finish(); }

 private:
  WindowPtr Read(const CheckpointTensor& tensor) {
    const int bits = DTypeBits(tensor.info.dtype);
    const uint64_t count = std::min(WindowElements(bits), tensor.info.elements - first_);
    auto window = std::make_shared<Window>(
        Window{tensor_, first_, count, reader_.Read(tensor, BytesOf(first_, bits), BytesOf(count, bits)), {}});
    first_ += count;
    return window;
  }

  const Checkpoint& checkpoint_;
  TensorReader reader_;
  size_t tensor_ = 0;
  uint64_t first_ = 0;
};

void Compute(DType type, Window* window) {
  window->range.Load();
  for (uint64_t at = 0; at < window->count; at += kReductionBlock) {
    const size_t count = std::min<uint64_t>(kReductionBlock, window->count - at);
    window->blocks.push_back(
        StatisticsOfBlock(type, window->range.data() + at * static_cast<uint64_t>(LaneBytes(type)), count));
  }
}

// Adds up one tensor after the other.
class Summary {
 public:
  Summary(const Checkpoint& checkpoint, std::vector<TensorStatistics>* out) : checkpoint_(checkpoint), out_(*out) {}

  void Add(const Window& window) {
    if (window.first == 0) total_ = {};
    for (const BlockStatistics& block : window.blocks) {
      total_.sum += block.sum;
      total_.squares += block.squares;
      total_.largest = std::max(total_.largest, block.largest);
      total_.nan += block.nan, total_.inf += block.inf, total_.zeros += block.zeros;
    }
    const uint64_t elements = checkpoint_.tensors[window.tensor].info.elements;
    if (window.first + window.count < elements) return;
    window.range.CheckUnchanged();
    const uint64_t finite = elements - total_.nan - total_.inf;
    out_[window.tensor] = {std::sqrt(total_.squares),
                           total_.largest,
                           finite == 0 ? 0.0 : total_.sum / static_cast<double>(finite),
                           total_.nan,
                           total_.inf,
                           total_.zeros};
  }

 private:
  const Checkpoint& checkpoint_;
  std::vector<TensorStatistics>& out_;
  BlockStatistics total_;  // of the tensor whose windows are coming in
};

std::vector<DTypeTotal> TotalsByDType(const Checkpoint& checkpoint) {
  std::map<DType, DTypeTotal> totals;
  for (const CheckpointTensor& tensor : checkpoint.tensors) {
    DTypeTotal& total = totals[tensor.info.dtype];
    total.dtype = tensor.info.dtype;
    ++total.tensors;
    total.elements += tensor.info.elements;
    total.bytes += tensor.info.bytes;
  }
  std::vector<DTypeTotal> out;
  for (const auto& [dtype, total] : totals) out.push_back(total);
  std::stable_sort(out.begin(), out.end(), [](const DTypeTotal& a, const DTypeTotal& b) { return a.bytes > b.bytes; });
  return out;
}

}  // namespace

Inspection Inspect(const std::string& reference) {
  Inspection out;
  out.checkpoint = OpenCheckpointForReading(reference);
  out.by_dtype = TotalsByDType(out.checkpoint);
  for (const DTypeTotal& total : out.by_dtype) out.elements += total.elements, out.bytes += total.bytes;
  for (const Shard& shard : out.checkpoint.shards) out.metadata.push_back(shard.metadata);
  return out;
}

std::vector<TensorStatistics> ComputeStatistics(const Checkpoint& checkpoint) {
  std::vector<TensorStatistics> out(checkpoint.tensors.size());
  Source source(checkpoint);
  Summary summary(checkpoint, &out);
  CheckThreads(static_cast<size_t>(DefaultThreads()));
  tbb::parallel_pipeline(
      WindowsInFlight(),
      tbb::make_filter<void, WindowPtr>(tbb::filter_mode::serial_in_order,
                                        [&](tbb::flow_control& control) {
                                          WindowPtr window = source.Next();
                                          if (window == nullptr) control.stop();
                                          return window;
                                        }) &
          tbb::make_filter<WindowPtr, WindowPtr>(tbb::filter_mode::parallel,
                                                 [&](WindowPtr window) {
                                                   Compute(checkpoint.tensors[window->tensor].info.dtype, window.get());
                                                   return window;
                                                 }) &
          tbb::make_filter<WindowPtr, void>(tbb::filter_mode::serial_in_order,
                                            [&](const WindowPtr& window) { summary.Add(*window); }));
  source.Finish();
  return out;
}

}  // namespace braid
