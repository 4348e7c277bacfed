#include "pipeline/row_reader.h"

#include <algorithm>
#include <cstring>

#include "ops/kernels.h"
#include "ops/row_mean.h"

namespace braid {
namespace {

constexpr uint64_t kBounce = 264 << 10;   // of SourceFiles
constexpr uint64_t kChunk = 32'768;   // elements that are decoded, or added up, at once

}  // namespace

RowReader::RowReader(const Plan& plan, Read read) : plan_(plan), read_(std::move(read)) {}

uint64_t RowReader::MemoryBytes(const Plan& plan) {
  uint64_t bytes = 0;
  for (const PlannedTensor& tensor : plan.tensors)
    for (size_t slot = 0; slot < tensor.rows.size(); ++slot) {
      if (tensor.RowsAt(slot) == nullptr) continue;
      bytes = std::max(bytes, kChunk * (sizeof(double) + 3 * sizeof(float)) + kLanePadding * sizeof(float) + kBounce);
      if (tensor.RowsAt(slot)->Has(RowRun::Kind::kPadding))
        bytes += tensor.RowElements() * (sizeof(double) + sizeof(float)) + 128;
    }
  return bytes;
}

uint64_t FileBytes(const Plan& plan, const PlannedTensor& tensor, size_t slot) {
  if (!tensor.SourceAt(slot).present()) return 0;
  const RowMap* map = tensor.RowsAt(slot);
  if (map == nullptr) return plan.Info(tensor.SourceAt(slot)).bytes;
  const auto row_bytes = [&](uint32_t from) {
    const DType type = plan.Info(tensor.SourceAt(from)).dtype;
    return tensor.RowElements() * static_cast<uint64_t>(LaneBytes(type));
  };
  uint64_t bytes = 0;
  for (const RowRun& run : map->runs()) {
    if (run.kind == RowRun::Kind::kCopy) bytes += run.count * row_bytes(run.slot);
    for (uint64_t i = 0; run.kind == RowRun::Kind::kMean && i < run.count; ++i)
      for (const SourceRow& row : map->mean(run.row + i)) bytes += row_bytes(row.slot);
  }
  return bytes;
}

void RowReader::Gather(const PlannedTensor& tensor, size_t slot, uint64_t first, uint64_t count, std::byte* to) {
  const RowMap& rows = *tensor.RowsAt(slot);
  const DType type = plan_.TypeAt(tensor, slot);
  const uint64_t width = tensor.RowElements(), size = static_cast<uint64_t>(LaneBytes(type));
  for (uint64_t at = first; at < first + count;) {
    const uint64_t row = at / width, column = at % width;
    const RowRun& run = rows.RunOf(row);
    const bool whole_run = run.kind == RowRun::Kind::kCopy || run.kind == RowRun::Kind::kZero;
    const uint64_t end = std::min(first + count, (whole_run ? run.first + run.count : row + 1) * width);
    std::byte* const out = to + (at - first) * size;
    switch (run.kind) {
      case RowRun::Kind::kCopy:
        Copy(tensor.SourceAt(run.slot), (run.row + row - run.first) * width + column, end - at, type, out);
        break;
      case RowRun::Kind::kZero: std::memset(out, 0, (end - at) * size); break;
      case RowRun::Kind::kMean: Mean(tensor, rows.mean(run.row + row - run.first), column, end - at, out); break;
      case RowRun::Kind::kPadding:
        std::memcpy(out, Padding(tensor, slot).data() + column, (end - at) * size);
        break;
    }
    at = end;
  }
}

void RowReader::Copy(const TensorSource& source, uint64_t begin, uint64_t count, DType type, std::byte* to) {
  const DType from = plan_.Info(source).dtype;
  const auto size = static_cast<uint64_t>(LaneBytes(from));
  if (from == type) return read_(source, begin * size, count * size, to);
  encoded_.resize(kChunk * sizeof(double));
  lanes_.resize(kChunk + kLanePadding);
  for (uint64_t at = 0; at < count; at += kChunk) {
    const uint64_t n = std::min(kChunk, count - at);
    read_(source, (begin + at) * size, n * size, encoded_.data());
    DecodeLanes(from, encoded_.data(), n, lanes_.data());
    std::memcpy(to + at * sizeof(float), lanes_.data(), n * sizeof(float));
  }
}

void RowReader::Mean(const PlannedTensor& tensor, const std::vector<SourceRow>& rows, uint64_t column, uint64_t count,
                     std::byte* to) {
  encoded_.resize(kChunk * sizeof(double));
  lanes_.resize(kChunk + kLanePadding);
  const uint64_t width = tensor.RowElements();
  for (uint64_t at = 0; at < count; at += kChunk) {
    const uint64_t n = std::min(kChunk, count - at);
    sum_.assign(n, 0.0f);
    for (const SourceRow& row : rows) {
      const TensorSource& source = tensor.SourceAt(row.slot);
      const auto size = static_cast<uint64_t>(LaneBytes(plan_.Info(source).dtype));
      read_(source, (row.row * width + column + at) * size, n * size, encoded_.data());
      DecodeLanes(plan_.Info(source).dtype, encoded_.data(), n, lanes_.data());
      AddRow(lanes_.data(), n, sum_.data());
    }
    DivideRow(sum_.data(), n, rows.size());
    std::memcpy(to + at * sizeof(float), sum_.data(), n * sizeof(float));
  }
}

const std::vector<float>& RowReader::Padding(const PlannedTensor& tensor, size_t slot) {
  const auto [known, is_new] = padding_.try_emplace({&tensor, slot});
  std::vector<float>& mean = known->second;
  if (!is_new) return mean;
  const uint64_t width = tensor.RowElements();
  std::vector<double> sums(width, 0.0);
  std::vector<std::byte> gathered(kChunk * sizeof(float));   // rows with padding are float32
  uint64_t rows = 0;
  for (const RowRun& run : tensor.RowsAt(slot)->runs()) {
    if (run.kind == RowRun::Kind::kPadding) continue;
    rows += run.count;
    const uint64_t end = (run.first + run.count) * width;
    for (uint64_t at = run.first * width; at < end; at += kChunk) {
      const uint64_t n = std::min(kChunk, end - at);
      Gather(tensor, slot, at, n, gathered.data());
      for (uint64_t i = 0; i < n;) {
        const uint64_t column = (at + i) % width, here = std::min(n - i, width - column);
        AddToColumns(reinterpret_cast<const float*>(gathered.data()) + i, here, sums.data() + column);
        i += here;
      }
    }
  }
  mean.resize(width);
  ColumnMeans(sums.data(), width, rows, mean.data());
  return mean;
}

}  // namespace braid
