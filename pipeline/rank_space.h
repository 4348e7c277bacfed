// What a merge by several ranks has still to take of the disk they share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/rank_marks.h"

namespace braid {

// Of a job's shards at `paths`: what is neither marked as done nor reserved for a file already, whoever did that.
// Throws Error.
uint64_t BytesLeft(const Plan& plan, const RankMarks& marks, const std::vector<std::string>& paths);

// Before a rank begins to write so many bytes of the output. Throws Error(kIo) where the disk is too small for what all
// ranks have still to write, stages that are merged first among it. Returns warnings: how small compressed shards
// become is known when they are.
std::vector<std::string> CheckSpaceOfRanks(const Plan& plan, const RankMarks& marks,
                                           const std::vector<std::string>& paths, uint64_t own_bytes);

}  // namespace braid
