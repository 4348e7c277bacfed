// Gathers the rows of a source that has another vocabulary into the order of the output: see row_map.h. A range of a
// tensor is read in the runs that its rows form in the files; means are taken on the way, the mean of all rows, which
// padding needs, by reading the source once when it is first asked for.
//
// For one thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "pipeline/plan.h"

namespace braid {

class RowReader {
 public:
  // Reads bytes [begin, begin + bytes) of a source's tensor. Throws Error.
  using Read = std::function<void(const TensorSource& source, uint64_t begin, uint64_t bytes, std::byte* to)>;

  RowReader(const Plan& plan, Read read);

  // Elements [first, first + count) of the output tensor as the source in `slot` has them, whose rows are mapped, in
  // the type of Plan::TypeAt. Throws what reading throws.
  void Gather(const PlannedTensor& tensor, size_t slot, uint64_t first, uint64_t count, std::byte* to);

  // What readers of this plan occupy.
  static uint64_t MemoryBytes(const Plan& plan);

 private:
  void Copy(const TensorSource& source, uint64_t begin, uint64_t count, DType type, std::byte* to);
  void Mean(const PlannedTensor& tensor, const std::vector<SourceRow>& rows, uint64_t column, uint64_t count,
            std::byte* to);
  const std::vector<float>& Padding(const PlannedTensor& tensor, size_t slot);

  const Plan& plan_;
  Read read_;
  std::vector<std::byte> encoded_;          // one chunk
  std::vector<float> lanes_, sum_;
  std::map<std::pair<const PlannedTensor*, size_t>, std::vector<float>> padding_;
};

// Bytes of files that gathering all rows of a source takes, once; where it has padding, they are read once more for the
// mean. For a source whose rows stay in place, those of its tensor.
uint64_t FileBytes(const Plan& plan, const PlannedTensor& tensor, size_t slot);

// The ranges of files that a range of a tensor is copied from, one source's rows: what is read once per round.
// visit(source, first byte of the source's tensor, bytes)
template <typename Visit>
void ForEachFileRange(const Plan& plan, const PlannedTensor& tensor, size_t slot, uint64_t first, uint64_t count,
                      Visit visit) {
  const auto bytes_of = [&](const TensorSource& source, uint64_t elements) {
    return elements * static_cast<uint64_t>(DTypeBits(plan.Info(source).dtype)) / 8;
  };
  const TensorSource& source = tensor.SourceAt(slot);
  const RowMap* rows = tensor.RowsAt(slot);
  if (rows == nullptr) return visit(source, bytes_of(source, first), bytes_of(source, count));
  const uint64_t width = tensor.RowElements();
  for (uint64_t at = first; at < first + count;) {
    const RowRun& run = rows->RunOf(at / width);
    const uint64_t end = std::min(first + count, (run.first + run.count) * width);
    if (run.kind == RowRun::Kind::kCopy) {
      const TensorSource& from = tensor.SourceAt(run.slot);
      visit(from, bytes_of(from, run.row * width + (at - run.first * width)), bytes_of(from, end - at));
    }
    at = end;
  }
}

}  // namespace braid
