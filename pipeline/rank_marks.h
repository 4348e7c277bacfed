// Which units of what ranks write together are done: a file for each run of them, in a directory of the ranks.
//
//   units-12-20     units 12 up to 20 are written and durable; the checksums that came with them
//
// After another number of ranks runs may overlap. What counts is which units are in any of them.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/share.h"

namespace braid {

// Any thread. Throws Error.
class RankMarks {
 public:
  RankMarks(std::string directory, std::vector<OutputUnit> units);

  const std::vector<OutputUnit>& units() const { return units_; }
  const std::string& directory() const { return directory_; }

  // Those that nobody has marked. Nothing at all when there is no directory any more: the job is published.
  std::optional<std::vector<uint32_t>> Missing() const;

  // A shard is there before any of its units is marked. Where one with marks is gone, its marks are removed, and with
  // them those of whatever was marked at once: all of that is to be written again. `paths` are those of the shards.
  // Returns the shards that are gone. Both throw RankFilesGone, too.
  std::vector<uint32_t> ForgetGone(const std::vector<std::string>& paths) const;
  bool AnyGone(const std::vector<std::string>& paths) const;

  // Units are durable.
  void Mark(const WrittenUnits& written) const;

  // What came with the marks.
  struct Found {
    std::map<uint32_t, XXH128_hash_t> sums;   // of tensors that one rank wrote from end to end
    std::optional<double> alpha;
  };
  Found Read(size_t tensors) const;

 private:
  std::vector<UnitRun> Runs() const;
  std::vector<uint32_t> Gone(const std::vector<std::string>& paths, const std::vector<UnitRun>& runs) const;
  std::string PathOf(UnitRun run) const;

  const std::string directory_;
  const std::vector<OutputUnit> units_;
};

}  // namespace braid
