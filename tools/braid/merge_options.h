// The options that merge and plan have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "pipeline/run.h"

namespace braid {

struct MergeArguments {
  std::string recipe, out, memory, shard_size, cache, compress, io = "auto";
  int threads = 0;
  int rank = 0, of = 0;   // 0: alone
  bool force = false, quiet = false, stats = false;
};

// --memory, --threads, --shard-size, --compress, --io; and --cache too.
void AddResourceOptions(CLI::App* command, MergeArguments* arguments);
void AddPlanOptions(CLI::App* command, MergeArguments* arguments);

// Merges, and reports on stdout as the arguments and --json say.
void MergeAndReport(Recipe recipe, const MergeOptions& options, bool stats);

// The recipe, with what the options change in it. Throws Error.
Recipe RecipeFrom(const MergeArguments& arguments);

// Throws Error(kUsage) for sizes that are none.
PlanOptions PlanOptionsFrom(const MergeArguments& arguments);

}  // namespace braid
