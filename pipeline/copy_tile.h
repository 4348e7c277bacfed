// Tiles that are not merged: integers and booleans, which have to be the same in all sources; unchanged and excluded
// tensors, which have one.
#pragma once

#include <cstddef>

#include "pipeline/plan.h"
#include "pipeline/scope_run.h"

namespace braid {

// The elements that the tile's sources hold. Throws Error(kIncompatible) where they differ.
void CopyTile(const Plan& plan, const TileWork& work, std::byte* out);

}  // namespace braid
