// The main job, start to end: recipe -> plan -> graph -> checkpoint.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/exchange.h"
#include "pipeline/graph.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"

namespace braid {

// One of several processes that make one output together, by the file system they share.
struct RankOptions {
  uint32_t rank = 0, of = 1;
};

struct MergeOptions {
  std::string out;      // a directory, one file when it ends in .safetensors[.zst], or "-": standard output
  PlanOptions plan;
  bool force = false;   // replace an existing checkpoint
  bool quiet = false;   // nothing on stderr but errors
  bool copy_tokenizer = true;
  bool write_model_card = true;   // README.md
  std::optional<RankOptions> rank = {};   // nothing: alone
  Group* group = nullptr;                 // processes that were started together, and are the ranks
};

// What a rank did.
struct RankReport : RankOptions {
  uint64_t units = 0, all_units = 0;   // pieces of the output: written by it; of all ranks
  uint64_t units_missing = 0;          // that other ranks have still to write
  bool complete = false;               // OUT is there
  bool published = false;              // by this rank
  bool together = false;               // with others that were started with it: the report is of all of them
};

struct MergeReport {
  std::string output;
  double seconds = 0;
  uint64_t bytes_read = 0, bytes_written = 0;
  uint64_t peak_resident = 0;             // VmHWM of the process
  GraphResult result;
  PlanTotals totals;
  std::string fingerprint;
  std::vector<std::string> warnings;      // already printed unless quiet
  std::optional<RankReport> rank = {};
};

// Merges; a rank merges its part, and what it takes for OUT to appear is that all ranks have done theirs. Nothing
// appears at `out` before all of it is complete and durable. `interrupt`: a signal handler may set it to end the run.
// `progress` is filled while it runs. Throws Error.
MergeReport RunMerge(const std::string& recipe_path, const MergeOptions& options, const std::atomic<int>& interrupt,
                     Progress* progress);

// The same for a recipe that was read already.
MergeReport RunMerge(Recipe recipe, const MergeOptions& options, const std::atomic<int>& interrupt, Progress* progress);

// The plan of a recipe, and its warnings as a user reads them ("recipe.toml:3:1: ...").
std::vector<std::string> WarningTexts(const Plan& plan);

// What one should know about space and paths before a merge: throws Error when OUT must not be written or the disk
// is too small.
void CheckOutput(const Plan& plan, const MergeOptions& options);

}  // namespace braid
