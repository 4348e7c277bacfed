// Where the rows of an output tensor come from in one of its sources, when the source has another vocabulary: most are
// rows of the source itself, in long runs; the others are borrowed from another source, means of several sources' rows,
// zero, or padding.
//
// Sources are named by their slot in the output tensor: 0 is the base, m + 1 model m. Immutable once made; any thread
// may use it.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace braid {

struct SourceRow {
  uint32_t slot = 0;
  uint64_t row = 0;
};

struct RowRun {
  enum class Kind : uint8_t {
    kCopy,     // rows row, row + 1, ... of the source in `slot`
    kMean,     // means row, row + 1, ... of the map
    kZero,
    kPadding,  // the mean of all rows of this map that are not padding
  };
  Kind kind = Kind::kZero;
  uint32_t slot = 0;
  uint64_t first = 0, count = 0;  // rows of the output
  uint64_t row = 0;
};

class RowMap {
 public:
  // Rows of the output, in their order.
  void AppendCopy(SourceRow from) { Append(RowRun::Kind::kCopy, from.slot, from.row); }
  void AppendMean(std::vector<SourceRow> of) {
    means_.push_back(std::move(of));
    Append(RowRun::Kind::kMean, 0, means_.size() - 1);
  }
  void AppendZero() { Append(RowRun::Kind::kZero, 0, 0); }
  void AppendPadding() { Append(RowRun::Kind::kPadding, 0, 0); }

  uint64_t rows() const { return rows_; }
  const std::vector<RowRun>& runs() const { return runs_; }
  const std::vector<SourceRow>& mean(uint64_t index) const { return means_[index]; }
  const RowRun& RunOf(uint64_t row) const;  // row < rows()

  // Whether it is the source in `slot`, which has so many rows, as it is.
  bool IsIdentity(uint32_t slot, uint64_t source_rows) const;
  bool Has(RowRun::Kind kind) const;
  XXH128_hash_t Sum() const;   // of all that it says
  uint64_t MemoryBytes() const;

 private:
  void Append(RowRun::Kind kind, uint32_t slot, uint64_t row);

  uint64_t rows_ = 0;
  std::vector<RowRun> runs_;
  std::vector<std::vector<SourceRow>> means_;
};

}  // namespace braid
