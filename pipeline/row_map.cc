#include "pipeline/row_map.h"

#include <algorithm>

#include "io/checksum.h"

namespace braid {

const RowRun& RowMap::RunOf(uint64_t row) const {
  return *std::prev(std::upper_bound(runs_.begin(), runs_.end(), row,
                                     [](uint64_t wanted, const RowRun& run) { return wanted < run.first; }));
}

bool RowMap::IsIdentity(uint32_t slot, uint64_t source_rows) const {
  if (rows_ != source_rows || runs_.size() != 1) return false;
  const RowRun& run = runs_.front();
  return run.kind == RowRun::Kind::kCopy && run.slot == slot && run.row == 0;
}

bool RowMap::Has(RowRun::Kind kind) const {
  return std::any_of(runs_.begin(), runs_.end(), [&](const RowRun& run) { return run.kind == kind; });
}

void RowMap::Append(RowRun::Kind kind, uint32_t slot, uint64_t row) {
  const uint64_t first = rows_++;
  if (!runs_.empty()) {
    RowRun& last = runs_.back();
    const bool counts = kind == RowRun::Kind::kCopy || kind == RowRun::Kind::kMean;
    if (last.kind == kind && last.slot == slot && (!counts || last.row + last.count == row)) {
      ++last.count;
      return;
    }
  }
  runs_.push_back({kind, slot, first, 1, row});
}

XXH128_hash_t RowMap::Sum() const {
  Checksum sum;
  const auto add = [&](uint64_t value) { sum.Add(&value, sizeof(value)); };
  for (const RowRun& run : runs_) {
    add(static_cast<uint64_t>(run.kind)), add(run.slot), add(run.count), add(run.row);
    for (uint64_t i = 0; run.kind == RowRun::Kind::kMean && i < run.count; ++i) {
      add(means_[run.row + i].size());
      for (const SourceRow& row : means_[run.row + i]) add(row.slot), add(row.row);
    }
  }
  return sum.Take();
}

uint64_t RowMap::MemoryBytes() const {
  uint64_t bytes = sizeof(*this) + runs_.capacity() * sizeof(RowRun) + means_.capacity() * sizeof(means_[0]);
  for (const auto& mean : means_) bytes += mean.capacity() * sizeof(SourceRow) + 16;
  return bytes;
}

}  // namespace braid
