// Stages whose results are files for as long as the merge runs.
#pragma once

#include <atomic>
#include <string>

#include "pipeline/plan.h"
#include "pipeline/progress.h"

namespace braid {

// A directory that goes, with all that is in it, at the latest with this object.
class SpilledFiles {
 public:
  explicit SpilledFiles(std::string directory) : directory_(std::move(directory)) {}
  ~SpilledFiles();
  SpilledFiles(const SpilledFiles&) = delete;
  // Where to write a stage's result; makes the directory.
  std::string PathFor(uint32_t stage);
  void Remove();   // throws Error

 private:
  std::string directory_;
  bool made_ = false;
};

// Merges the plan's spilled stages, in order, and makes their results sources of what follows. Throws Error.
void RunSpilledStages(Plan* plan, SpilledFiles& files, const std::atomic<int>& interrupt, bool quiet,
                      Progress* progress);

}  // namespace braid
