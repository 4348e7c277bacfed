// The ranks of a row's entries by magnitude.
#pragma once

#include "ops/sparse_merger.h"

namespace braid {

// Replaces each of n < 2^32 keys, all below 2^31, by its rank: 0 for the smallest, equal ones by their index. `room`
// holds 2 n numbers. A radix sort over three digits, O(n) whatever the keys are.
void RankKeys(uint32_t* keys, size_t n, uint64_t* room);

// The ranks of all rows of a unit, in the workspace of a worker.
class RowRanks {
 public:
  enum class Order { kSmallestFirst, kLargestFirst };   // rank 0

  // `unit`: the most lanes that one holds.
  RowRanks(size_t models, size_t row, size_t unit) : models_(models), row_(row), unit_(unit) {}

  size_t WorkspaceBytes() const { return 2 * row_ * sizeof(uint64_t) + models_ * unit_ * sizeof(uint32_t); }
  // Uses scratch.base and the lanes of the model.
  void Find(const LaneTile& tile, size_t model, const LaneUnit& unit, Order order, Scratch& scratch) const;
  // Those that were found last, in the order of the unit's lanes.
  uint32_t* Of(size_t model, Scratch& scratch) const {
    return reinterpret_cast<uint32_t*>(scratch.workspace + 2 * row_ * sizeof(uint64_t)) + model * unit_;
  }

 private:
  size_t models_, row_, unit_;
};

}  // namespace braid
