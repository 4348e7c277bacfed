// What one rank does of a plan that several share.
//
// The output is cut into units: ranges of a shard's bytes, that the plan alone decides, so every rank knows the same
// ones, however many ranks there are and whatever memory they have. A unit is written by one rank, marked as done, and
// never written again. Its ends are multiples of 64 KiB in the file: two machines that write parts of one page through
// page caches of their own lose bytes, and pages have up to 64 KiB. Where a tensor is cut, both sides merge the
// reduction block (or the row) that lies across, and write their bytes of it.
//
// Compressed shards have no places: each of them is one unit.
//
// A cut costs statistics: either side needs those of the whole tensor. So ends are moved, by a quarter of a unit at
// most, to where they cut the smallest tensor, or none.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/shard_writer.h"
#include "pipeline/plan.h"

namespace braid {

// Bytes of a shard's file.
struct OutputUnit {
  uint32_t shard = 0;
  uint64_t begin = 0, end = 0;
  uint64_t bytes() const { return end - begin; }
};

// Units [first, last).
struct UnitRun {
  uint32_t first = 0, last = 0;
};

struct ElementRange {
  uint64_t first = 0, last = 0;   // behind the last one
};

// Every byte of the output is in one unit, in the order of the shards; the first unit of a shard has its header.
std::vector<OutputUnit> OutputUnits(const Plan& plan);

// Of those that `wanted` names, a run with about an nth of their bytes: all ranks' runs are disjoint and cover them.
std::vector<uint32_t> UnitsOfRank(const std::vector<OutputUnit>& units, const std::vector<uint32_t>& wanted,
                                  uint32_t rank, uint32_t of);

// The same for ranks that take one part after another: runs of those that `wanted` names, large ones first, so that
// ranks of any speed end together. Between them is where UnitsOfRank would cut, too, or where a cut costs next to
// nothing.
std::vector<std::vector<uint32_t>> PartsToTake(const Plan& plan, const std::vector<OutputUnit>& units,
                                               const std::vector<uint32_t>& wanted, uint32_t of);

// The same for a rank that has a run of its own, and others that help it: about equal parts, in order, between which a
// cut costs next to nothing. They depend on nothing that differs between ranks.
std::vector<UnitRun> PartsOfRun(const Plan& plan, const std::vector<OutputUnit>& units, UnitRun run);

// The runs of all ranks when no unit is done yet.
std::vector<UnitRun> RunsOfRanks(const std::vector<OutputUnit>& units, uint32_t of);

// How many pieces the units cut a scope's tensors into, at most.
uint64_t MostPieces(const Plan& plan, const PlannedScope& scope);

// What tiles of a tensor are multiples of: reduction blocks, or its units.
uint64_t BlockOf(const Plan& plan, const PlannedTensor& tensor);

// Of so many ranks, those that have nothing to do, and why, as a warning; empty when each has something.
std::string IdleRanksText(const Plan& plan, const std::vector<OutputUnit>& units, uint32_t of);

// The units that a tensor has bytes in.
UnitRun UnitsOf(const Plan& plan, const std::vector<OutputUnit>& units, uint32_t tensor);

// The blocks of a tensor whose last byte lies in a unit: each is in one.
ElementRange BlocksIn(const Plan& plan, const PlannedTensor& tensor, const OutputUnit& unit);

// Units whose bytes are durable, ascending, and checksums of tensors that were completed since the last ones were.
struct WrittenUnits {
  std::vector<OutputUnit> units = {};
  std::vector<std::pair<uint32_t, XXH128_hash_t>> sums = {};
  std::optional<double> alpha = {};   // of layer_scale, where it is found
};

// Pure data; the plan must outlive it.
class Share {
 public:
  explicit Share(const Plan& plan);   // everything
  // Of all units, those.
  Share(const Plan& plan, std::vector<OutputUnit> all_units, const std::vector<uint32_t>& units);

  bool everything() const { return everything_; }
  const std::vector<OutputUnit>& units() const { return units_; }   // ascending; none where it is everything
  const std::vector<OutputUnit>& all_units() const { return all_units_; }

  // Elements of a tensor that are merged, ascending and apart: whole reduction blocks or tile units.
  std::span<const ElementRange> Merged(uint32_t tensor) const;
  bool Whole(uint32_t tensor) const { return everything_ || states_[tensor] == State::kWhole; }
  bool Whole(const PlannedScope& scope) const;
  bool Any(const PlannedScope& scope) const;

  // Bytes of a shard's file that are written, ascending and apart. None: the shard is not touched.
  std::span<const ByteRange> Written(uint32_t shard) const { return written_[shard]; }
  uint64_t bytes_written() const { return bytes_written_; }

 private:
  enum class State : uint8_t { kNone, kWhole, kCut };
  void AddTensor(uint32_t t);

  const Plan& plan_;
  bool everything_ = false;
  std::vector<OutputUnit> all_units_, units_;
  std::vector<std::vector<ByteRange>> written_;   // per shard
  std::vector<State> states_;                     // per tensor
  std::vector<ElementRange> whole_;               // per tensor: all of it, if it is whole
  std::unordered_map<uint32_t, std::vector<ElementRange>> cut_;
  uint64_t bytes_written_ = 0;
};

}  // namespace braid
