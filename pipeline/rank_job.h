// One merge by several ranks that share a file system and nothing else: where they meet, and what they leave each other.
//
//   OUT.partial/ranks-KEY/            KEY: a hash of all that must be the same for all ranks
//     units-12-20                     units 12 up to 20 are written and durable; the checksums that came with them
//     lock                            of the rank that publishes
//     checkpoint/                     what is to become OUT
//
// Every file but the shards and the lock appears by a rename, complete and durable. There may be any number of ranks, at
// once or one after another, and another number the next time: what counts is which units are done. Whoever finds all of
// them done publishes.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/staging.h"
#include "pipeline/run.h"
#include "pipeline/share.h"

namespace braid {

// 32 hex digits: of the plan, the program's version, the options that decide bytes, and a few pages of every source.
// Throws Error.
std::string RankKey(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::vector<OutputUnit>& units);

class RankJob {
 public:
  // Joins the others, or begins. The plan must outlive it. Throws what Staging throws.
  RankJob(const Plan& plan, const std::string& fingerprint, const MergeOptions& options);

  const std::vector<OutputUnit>& units() const { return units_; }
  const std::vector<std::string>& shard_paths() const { return paths_; }
  const std::string& directory() const { return staging_.shared_directory(); }

  // Those that nobody has marked. Nothing at all when others have published meanwhile. Throws Error.
  std::optional<std::vector<uint32_t>> Missing() const;

  // Units are durable. Any thread. Throws Error.
  void Mark(const WrittenUnits& written) const;

  // With every unit done: makes OUT appear, or sees that another rank does. The rest of the report's result is the
  // caller's. Throws Error.
  enum class Outcome { kIncomplete, kPublished, kByAnother };
  Outcome Publish(const std::atomic<int>& interrupt);

 private:
  struct Found {
    std::map<uint32_t, XXH128_hash_t> sums;   // of tensors that one rank wrote from end to end
    std::optional<double> alpha;
  };
  std::vector<UnitRun> Marks() const;
  std::string MarkPath(UnitRun run) const;
  Found ReadMarks() const;
  GraphResult Complete(Found found, const std::atomic<int>& interrupt) const;
  void CheckShards() const;
  bool Lock(Fd* lock, const std::atomic<int>& interrupt) const;

  const Plan& plan_;
  const std::string fingerprint_;
  const MergeOptions& options_;
  const std::vector<OutputUnit> units_;
  Staging staging_;
  std::vector<std::string> paths_;   // of the shards
};

}  // namespace braid
