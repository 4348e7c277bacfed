// What the methods that draft do with open elements: which there are, which of their entries stay, and back into the
// tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "ops/bracket.h"
#include "ops/draft.h"
#include "ops/dtype.h"

namespace braid {

// The places of the bits that are set, for n lanes; returns how many. `places` has room for kMorePlaces more.
inline constexpr size_t kMorePlaces = 4;
size_t PlacesOf(const uint64_t* words, size_t n, uint32_t* places);

// What the lanes of models are in the chunks of a draft.
enum class OpenLanes { kSources, kTaskVectors };

struct OpenSelection {
  Cut cut;                    // behind the k-th entry; key 0: zeros are among the k
  uint64_t above = 0;         // with key 0: how many are not zero
  uint64_t more_equals = 0;   // if they were asked for: entries behind the cut whose key is the cut's
};

// The first k entries of one model, from those that were put aside; `threshold` is which of them, as claims lie.
// Nothing where the bracket misses. Tiles in the order of the index.
std::optional<OpenSelection> SelectAmongOpen(const Bracket& bracket, uint64_t k, size_t threshold,
                                             std::span<const OpenElements* const> tiles, size_t model, OpenLanes lanes,
                                             bool count_equals);

// Puts n encoded elements where they belong in a tile that begins at element `first`.
void ScatterElements(const std::byte* elements, const uint32_t* indices, size_t n, uint64_t first, DType type,
                     std::byte* out);

}  // namespace braid
