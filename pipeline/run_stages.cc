#include "pipeline/run_stages.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "io/error.h"
#include "pipeline/graph.h"
#include "pipeline/plan_lent.h"
#include "pipeline/share.h"
#include "pipeline/statistics_cache.h"

namespace braid {

namespace fs = std::filesystem;

std::string SpilledFiles::PathFor(uint32_t stage) {
  if (directory_.empty()) {
    std::string made = name_ + "-XXXXXX";
    if (::mkdtemp(made.data()) == nullptr) throw SystemError(errno, "make it", made);
    directory_ = std::move(made);
  }
  return fmt::format("{}/stage-{}.safetensors", directory_, stage + 1);
}

void SpilledFiles::Remove() {
  std::error_code failed;
  if (!directory_.empty()) fs::remove_all(directory_, failed);
  if (failed) throw SystemError(failed.value(), "remove it", directory_);
  directory_.clear();
}

SpilledFiles::~SpilledFiles() {
  std::error_code ignored;
  if (!directory_.empty()) fs::remove_all(directory_, ignored);
}

void RunSpilledStages(Plan* plan, SpilledFiles& files, const std::atomic<int>& interrupt, bool quiet,
                      Progress* progress) {
  for (const SpilledStage& spill : plan->spills) {
    const std::string path = files.PathFor(spill.stage);
    {
      const LentCheckpoints lent(plan, spill.plan.get());
      StatisticsKeeper keeper(*spill.plan);
      RunGraph(*spill.plan, Share(*spill.plan), spill.fingerprint, {path}, interrupt, quiet, progress, &keeper);
    }
    Shard& shard = plan->checkpoints[static_cast<size_t>(spill.checkpoint)].shards.front();
    shard.path = path;
    OpenForReading(path, &shard.identity);
  }
}

}  // namespace braid
