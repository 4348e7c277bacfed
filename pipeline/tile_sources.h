// What the sources of a tile hold, once they are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/merger.h"
#include "pipeline/plan.h"
#include "pipeline/scope_run.h"

namespace braid {

uint64_t MappedBytes(const TileWork& work);

// As a merger sees them. `lanes`: room for most_models, which the tile points into.
LaneTile LanesOf(const Plan& plan, const TileWork& work, std::vector<EncodedLanes>* lanes);

// Of a tile that is not merged: integers and booleans, which have to be equal everywhere, or there is no right answer
// (Error(kIncompatible)); unchanged and excluded tensors, which have one source.
void CopyTile(const Plan& plan, const TileWork& work, std::byte* out);

}  // namespace braid
