#include "ops/draft_selection.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/kernels.h"
#include "ops/merger.h"

namespace braid {
namespace {

// The places of the entries inside a model's bracket, in the order of their index.
void CollectOpenPlaces(const Bracket& bracket, std::span<const OpenElements* const> tiles, size_t model, OpenLanes lanes,
                       std::vector<uint64_t>* places) {
  float differences[kBlockLanes + kLanePadding];
  uint32_t keys[kBlockLanes], at[kBlockLanes];
  size_t found = 0;
  for (const OpenElements* tile : tiles)
    for (const auto& chunk : tile->chunks())
      for (size_t start = 0; start < chunk->count; start += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, chunk->count - start);
        const float* d = chunk->lanes(model + 1) + start;
        if (lanes == OpenLanes::kSources) {
          DecodeTaskVector(DType::kF32, d, chunk->lanes(0) + start, n, differences);
          d = differences;
        }
        uint64_t above = 0;
        const size_t inside = CollectKeys(d, n, bracket.open.MinKey(0), bracket.sure.key, keys, at, &above);
        if (places->size() < found + inside) places->resize(std::max(2 * places->size(), found + inside));
        uint64_t* const next = places->data();
        for (size_t i = 0; i < inside; ++i) {   // nearly all of them: no branch
          const uint32_t index = chunk->indices[start + at[i]];
          next[found] = PlaceOf(keys[i], index);
          found += bracket.open.Keeps(keys[i], index) & !bracket.sure.Keeps(keys[i], index);
        }
      }
  places->resize(found);
}

template <size_t kSize>
void Scatter(const std::byte* elements, const uint32_t* indices, size_t n, uint64_t first, std::byte* out) {
  for (size_t i = 0; i < n; ++i) std::memcpy(out + (indices[i] - first) * kSize, elements + i * kSize, kSize);
}

}  // namespace

size_t PlacesOf(const uint64_t* words, size_t n, uint32_t* places) {
  size_t count = 0;
  for (size_t w = 0; w * 64 < n; ++w)
    for (uint64_t left = words[w]; left != 0; left &= left - 1)
      places[count++] = static_cast<uint32_t>(w * 64 + static_cast<size_t>(std::countr_zero(left)));
  return count;
}

// By a histogram over the bracket first, then a look at the bin that holds the last entry that stays.
std::optional<OpenSelection> SelectAmongOpen(const Bracket& bracket, uint64_t k, uint64_t sure,
                                             std::span<const OpenElements* const> tiles, size_t model, OpenLanes lanes,
                                             bool count_equals) {
  constexpr int kBinBits = 12;
  // Kept from one selection to the next: the pages of so much memory cost more to get than to fill.
  thread_local std::vector<uint64_t> places;
  if (sure >= k) return std::nullopt;
  const uint32_t top = bracket.sure.key, width = top - bracket.open.key;
  const int shift = std::max(0, static_cast<int>(std::bit_width(width)) - kBinBits);
  const auto bin_of = [&](uint64_t place) { return (top - KeyAt(place)) >> shift; };
  uint32_t bins[size_t{1} << kBinBits] = {};
  CollectOpenPlaces(bracket, tiles, model, lanes, &places);
  for (uint64_t place : places) ++bins[bin_of(place)];
  uint64_t rank = k - sure - 1;   // of the last entry that stays, among the open ones
  size_t bin = 0;
  for (; bin < std::size(bins) && rank >= bins[bin]; ++bin) rank -= bins[bin];
  if (bin == std::size(bins)) {   // all of them stay
    if (!bracket.reaches_zero()) return std::nullopt;
    return OpenSelection{.cut = {}, .above = k - rank - 1};
  }
  size_t inside = 0;
  for (uint64_t place : places) places[inside] = place, inside += bin_of(place) == bin;   // a coin toss: no branch
  places.resize(inside);
  const auto last = places.begin() + static_cast<ptrdiff_t>(rank);
  if (shift > 0) std::nth_element(places.begin(), last, places.end());   // otherwise they are in order already
  OpenSelection selected{.cut = {.key = KeyAt(*last), .index = uint64_t{IndexAt(*last)} + 1}};
  const auto equals = [&](uint64_t place) { return KeyAt(place) == selected.cut.key; };
  if (count_equals) selected.more_equals = static_cast<uint64_t>(std::count_if(last + 1, places.end(), equals));
  return selected;
}

void ScatterElements(const std::byte* elements, const uint32_t* indices, size_t n, uint64_t first, DType type, std::byte* out) {
  switch (LaneBytes(type)) {   // a size known to the compiler: no call per element
    case 2: return Scatter<2>(elements, indices, n, first, out);
    case 4: return Scatter<4>(elements, indices, n, first, out);
    default: return Scatter<8>(elements, indices, n, first, out);
  }
}

}  // namespace braid
