#include "pipeline/rank_space.h"

#include <algorithm>

#include "io/staging.h"
#include "pipeline/run_internal.h"

namespace braid {

uint64_t BytesLeft(const Plan& plan, const RankMarks& marks, const std::vector<std::string>& paths) {
  std::vector<uint64_t> unmarked(plan.shards.size());
  const auto missing = marks.Missing();
  for (uint32_t u = 0; u < marks.units().size(); ++u) {
    const OutputUnit& unit = marks.units()[u];
    const bool done = missing && !std::binary_search(missing->begin(), missing->end(), u);
    if (!done) unmarked[unit.shard] += unit.bytes();
  }
  uint64_t left = 0;
  for (size_t s = 0; s < paths.size(); ++s)
    if (unmarked[s] > 0)
      left += std::min(unmarked[s], plan.shards[s].bytes - std::min(plan.shards[s].bytes, AllocatedBytes(paths[s])));
  return left;
}

std::vector<std::string> CheckSpaceOfRanks(const Plan& plan, const RankMarks& marks,
                                           const std::vector<std::string>& paths, uint64_t own_bytes) {
  // Looked at first: what others reserve from now on counts for us.
  const uint64_t free = FreeSpace(marks.directory());
  const uint64_t output = BytesLeft(plan, marks, paths);
  uint64_t needed = plan.in_order ? 0 : output;
  for (const SpilledStage& spill : plan.spills) {
    const std::string directory = StageDirectory(marks.directory(), spill);
    needed += BytesLeft(*spill.plan, RankMarks(directory, OutputUnits(*spill.plan)), {StageFile(directory)});
  }
  // What waits for its turn waits in a file of each rank: here, as much of it as we have of the output.
  const uint64_t all = std::max<uint64_t>(plan.totals.bytes_written, 1);
  const double part = static_cast<double>(own_bytes) / static_cast<double>(all);
  needed += static_cast<uint64_t>(static_cast<double>(plan.totals.bytes_spilled) * std::min(part, 1.0));
  CheckSpace(plan, marks.directory(), needed, free);
  return SpaceWarnings(plan, output, free);
}

}  // namespace braid
