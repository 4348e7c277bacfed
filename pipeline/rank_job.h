// One merge by several ranks that share a file system and nothing else: where they meet, what they leave each other.
//
//   OUT.partial/ranks-KEY/            KEY: a hash of all that must be the same for all ranks
//     units-12-20                     what is done (rank_marks.h)
//     claim-12-20                     who is at what (rank_turns.h)
//     stage-1/                        the same, and its result, of a stage that is merged first
//     lock                            of the rank that publishes
//     checkpoint/                     what is to become OUT
//
// Every file but the lock, claims, and shards that are not compressed, appears by a rename, complete and durable. There
// may be any number of ranks, at once or one after another, and another number the next time: what counts is which
// units are done. Whoever finds all of them done publishes: first the checkpoint gets its place and name, then the rest
// vanishes at once, by a rename; so whoever does not find a shard looks again under the lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "io/staging.h"
#include "pipeline/rank_marks.h"
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

  const RankMarks& marks() const { return marks_; }
  const std::vector<std::string>& shard_paths() const { return paths_; }

  // Throws Error(kIo), and leaves nothing behind, where the disk is too small (rank_space.h).
  std::vector<std::string> CheckSpace(uint64_t own_bytes);

  // Shards that somebody has removed since their units were marked: the units are missing again. Their names. Waits for
  // a rank that is about to publish. Throws RankFilesGone when one has.
  std::vector<std::string> ForgetGone(const std::atomic<int>& interrupt) const;

  // With every unit done: makes OUT appear, or sees that another rank does. Call ForgetGone before. The rest of the
  // report's result is the caller's. Throws Error.
  enum class Outcome { kIncomplete, kPublished, kByAnother };
  Outcome Publish(const std::atomic<int>& interrupt);

 private:
  RankJob(const Plan& plan, const std::string& fingerprint, const MergeOptions& options, std::vector<OutputUnit> units);
  GraphResult Complete(const RankMarks::Found& found, const std::atomic<int>& interrupt) const;
  void WriteHeader(const GraphResult& result) const;
  void CheckShards() const;
  enum class Turn { kOurs, kPublished, kNoLocks };
  Turn Lock(Fd* lock, const std::atomic<int>& interrupt) const;

  const Plan& plan_;
  const std::string fingerprint_;
  const MergeOptions& options_;
  Staging staging_;
  const RankMarks marks_;
  std::vector<std::string> paths_;   // of the shards
};

}  // namespace braid
