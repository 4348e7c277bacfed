// Statistics that are kept from one merge to the next (`--cache DIR`): for each scope and model of a recipe, where the
// entries end that stay, and the histogram of the high halves. They depend on the base and that model alone, so a merge
// with other weights needs none of the rounds that find them.
//
// DIR holds a file per base, model and kind of scope, named by a hash of their paths. Its records are keyed by what
// decides them: the identity of every file involved, the tensors' places in them, and the question. A file is
// identified by its device, inode, size, mtime and the hash of its header; in a Hugging Face cache the blob's name,
// which is the hash of its content, stands for inode and mtime. What no longer fits is never found, and dropped when
// the file is written again.
#pragma once

#include <chrono>
#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pipeline/plan.h"
#include "pipeline/statistics_file.h"

namespace braid {

// Whose statistics a file of the cache holds: two checkpoints of the plan.
struct ComparedModel {
  int32_t base = -1, model = -1;
  auto operator<=>(const ComparedModel&) const = default;
};

// Fills Plan::statistics and what is known of each scope (PlannedScope::known) from `directory`, which need not exist.
// `before_opening`: a time before the sources were opened. Files that cannot be used become warnings of the plan.
void LoadStatistics(Plan* plan, const std::string& directory, std::chrono::system_clock::time_point before_opening);

// What a merge finds out, on its way into the cache. A plan without a cache keeps nothing. Thread-safe. Never throws
// for what goes wrong in the cache: it becomes a warning.
class StatisticsKeeper {
 public:
  explicit StatisticsKeeper(const Plan& plan);
  ~StatisticsKeeper();

  // Once the scope's statistics are done. Takes the histograms from the merger.
  void Keep(const PlannedScope& scope, Merger* merger);
  // Once the output is complete: makes all that is new known to later merges. Without it, nothing changes.
  void Commit();

  const std::vector<std::string>& warnings() const { return warnings_; }
  static uint64_t MemoryBytes(const Plan& plan);

 private:
  struct OfModel {
    std::unique_ptr<StatisticsWriter> writer;
    bool opened = false;   // or tried to
  };
  void Add(ComparedModel of, const StatisticsRecord& record, std::span<const BinCount> bins);
  template <typename Body>
  void Guarded(ComparedModel of, Body body);

  const Plan& plan_;
  std::mutex mutex_;
  std::map<ComparedModel, OfModel> models_;
  std::vector<std::string> warnings_;
};

}  // namespace braid
