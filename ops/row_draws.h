// Which entries of rows stay that are drawn by their ranks: a bit per entry.
#pragma once

#include "ops/random.h"
#include "ops/rank_buckets.h"
#include "ops/sparse_merger.h"

namespace braid {

// Of all rows of a unit, in the workspace of a worker.
class RowDraws {
 public:
  // `unit`: the most lanes that one holds.
  RowDraws(size_t models, size_t row, size_t unit) : models_(models), row_(row), unit_(unit) {}

  size_t WorkspaceBytes() const { return KeyBytes() + RoomBytes() + models_ * Words() * sizeof(uint64_t); }
  // Uses scratch.base, scratch.draws and the lanes of the model.
  void Find(const LaneTile& tile, size_t model, const LaneUnit& unit, const RandomStream& stream,
            const RankLimits& limits, Scratch& scratch) const;
  // Those that were found last, from the unit's first lane on; which of its zeros stay is left open.
  uint64_t* Of(size_t model, Scratch& scratch) const {
    return reinterpret_cast<uint64_t*>(scratch.workspace + KeyBytes() + RoomBytes()) + model * Words();
  }

 private:
  size_t KeyBytes() const { return RoundUp((unit_ + kLanePadding) * sizeof(uint32_t)); }
  size_t RoomBytes() const { return RoundUp(std::max(2 * row_ * sizeof(uint64_t), RankBuckets::RoomBytes(row_))); }
  size_t Words() const { return unit_ / 64 + 2; }
  static size_t RoundUp(size_t bytes) { return (bytes + 63) / 64 * 64; }

  size_t models_, row_, unit_;
};

}  // namespace braid
