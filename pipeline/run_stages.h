// Stages whose results are files for as long as the merge runs.
#pragma once

#include <atomic>
#include <string>
#include <utility>

#include "pipeline/plan.h"
#include "pipeline/progress.h"

namespace braid {

// A directory that goes, with all that is in it, at the latest with this object.
class SpilledFiles {
 public:
  // `name`: what its path begins with; the rest is drawn, so that nobody in a TMPDIR for all can have made it before.
  explicit SpilledFiles(std::string name) : name_(std::move(name)) {}
  ~SpilledFiles();
  SpilledFiles(const SpilledFiles&) = delete;
  // Where to write a stage's result; makes the directory. Throws Error.
  std::string PathFor(uint32_t stage);
  void Remove();   // throws Error

 private:
  const std::string name_;
  std::string directory_;   // empty: there is none
};

// Merges the plan's spilled stages, in order, and makes their results sources of what follows. Throws Error.
void RunSpilledStages(Plan* plan, SpilledFiles& files, const std::atomic<int>& interrupt, bool quiet,
                      Progress* progress);

}  // namespace braid
