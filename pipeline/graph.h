// The flow graph: how tiles go from mapped sources to output shards.
//
//   read ─► route ─┬─► accumulate ─► (the last tile of a round: the scope's next round) ─► route
//  (I/O thread)    ├─► claim ─► order ─► accumulate            rounds that hand out quota in index order
//                  ├─► draft ─► (the last tile of the scope: its thresholds) ─► settle ──┐
//                  └───────────► order ─► queue ─┐                                       │
//                                                join ─► merge ───────────────────────► write ─► buffers
//                                     buffers ───┘                                 (writer thread)
//
// The I/O thread touches tiles in the order of the plan, or has them read (direct reads end in any order), after taking
// their bytes from the budget; workers therefore see resident pages only. A scope that fits stays resident through all
// its rounds; a larger one is read once per round. Output buffers are tokens: a tile is merged only once it has one,
// and tiles get them in order, so that the writer, which needs each tensor's tiles in order for the checksum, never
// waits for a tile that waits for a buffer.
//
// A scope that is drafted is read once. It has tokens of its own, which the I/O thread takes for all its tiles at once,
// in the order of the plan, and which wait until the scope's last tile is drafted. Should its sample mislead (one in
// some hundred does) it starts anew, streamed, when the I/O thread has read the others.
//
// Where stages find something out of whole models before others can merge them (Plan::fronts), that comes first, phase
// by phase: such scopes have statistics only.
//
// With Plan::measured all rounds before the merge come first, for all scopes; what a scope has found out then waits,
// its tiles are read anew for the merge.
//
// Of a plan that several ranks share, a scope of which only parts are merged here counts some of its statistics, and
// gets the others by the exchange; of an ordered round, the claims first. Without an exchange it goes through all of
// them, and where quotas are handed out in order, what comes before a part is read for them.
//
// Messages are pointers. The bytes stay in the maps; a merged tile's bytes are in its token.
#pragma once

#include <xxhash.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ops/merger.h"
#include "pipeline/exchange.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/share.h"
#include "pipeline/statistics_cache.h"

namespace braid {

// What the run found.
struct GraphResult {
  std::vector<XXH128_hash_t> sums;   // per planned tensor
  MergeCounts counts;
  uint64_t entries = 0, kept = 0;    // of all trimmed task vectors
  std::optional<double> alpha = {};  // of layer_scale, where the recipe leaves it open
  uint64_t bytes_written = 0;        // as they are stored
  uint64_t bytes_spilled = 0;        // of them, those that came before their turn, before they were compressed
  std::optional<XXH128_hash_t> stream_sum = {};   // of all that left through standard output
};

// Runs the share of a plan into the shard files at `shard_paths`, which are created here and durable afterwards, or to
// standard output ("-").
// `interrupt`: when it becomes non-zero the run ends within a tile, with Error(kInterrupted). `quiet`: no progress on
// stderr. `keeper` gets the statistics of every scope. `units_done` is called with units of the share when they are
// durable, on several threads. `exchange`: with ranks that take statistics together; null: this one takes all that its
// share needs. Throws Error; then the files are incomplete, but for those units.
GraphResult RunGraph(const Plan& plan, const Share& share, const std::string& fingerprint,
                     const std::vector<std::string>& shard_paths, const std::atomic<int>& interrupt, bool quiet,
                     Progress* progress, StatisticsKeeper* keeper, Exchange* exchange = nullptr,
                     const std::function<void(const WrittenUnits&)>& units_done = {});

}  // namespace braid
