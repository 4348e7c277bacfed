#include "ops/draft_selection.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/kernels.h"
#include "ops/merger.h"

namespace braid {
namespace {

// One model's entries of a run of open elements. Those inside the bracket have low <= key < high.
struct OpenRun {
  const float* d;
  const uint32_t* indices;
  size_t count;
  uint32_t low, high;
};

// Visits all open elements, in the order of their index, in runs within which the bracket is one of keys.
template <typename Visit>
void ForEachRun(const Bracket& bracket, std::span<const OpenElements* const> tiles, size_t model, OpenLanes lanes,
                Visit visit) {
  float base[kBlockLanes + kLanePadding], differences[kBlockLanes + kLanePadding];
  for (const OpenElements* tile : tiles)
    for (const auto& chunk : tile->chunks())
      for (size_t at = 0, end; at < chunk->count; at = end) {
        const uint32_t* const indices = chunk->indices();
        end = std::min(at + kBlockLanes, chunk->count);
        for (const Cut& cut : {bracket.sure, bracket.open})
          if (indices[at] < cut.index && cut.index <= indices[end - 1])
            end = static_cast<size_t>(std::lower_bound(indices + at, indices + end, cut.index) - indices);
        const float* d = chunk->lanes<float>(model + 1) + at;
        if (lanes == OpenLanes::kSources) {
          DecodeLanes(tile->type, chunk->lanes(tile->type, 0, at), end - at, base);
          DecodeTaskVector(tile->type, chunk->lanes(tile->type, model + 1, at), base, end - at, differences);
          d = differences;
        }
        visit(OpenRun{d, indices + at, end - at, bracket.open.MinKey(indices[at]), bracket.sure.MinKey(indices[at])});
      }
}

// Bins of neighbouring keys in a bracket, the largest first, counted in several tables: entries next to each other
// mostly fall into the same bin, and would wait for each other.
class KeyBins {
 public:
  static constexpr uint32_t kBins = 1024;

  explicit KeyBins(const Bracket& bracket)
      : top_(bracket.sure.key),
        shift_(std::max(0, static_cast<int>(std::bit_width(top_ - bracket.open.key) - std::bit_width(kBins - 1)))) {}

  // In two loops, neither of which asks where a key lies: a branch would be a coin toss.
  void Count(const OpenRun& run) {
    uint32_t keys[kBlockLanes];
    StoreKeys(run.d, run.count, keys);
    const uint32_t low = run.low, width = run.high - run.low, top = top_;
    const int shift = shift_;
    for (size_t i = 0; i < run.count; ++i) {
      const uint32_t outside = keys[i] - low < width ? 0 : ~uint32_t{0};
      keys[i] = (((top - keys[i]) >> shift) & ~outside) | (kBins & outside);
    }
    std::fill(keys + run.count, keys + (run.count + kTables - 1) / kTables * kTables, kBins);
    for (size_t i = 0; i < run.count; i += kTables)
      for (size_t t = 0; t < kTables; ++t) ++counts_[t][keys[i + t]];
  }

  uint64_t At(uint32_t bin) const {
    uint64_t count = 0;
    for (const auto& table : counts_) count += table[bin];
    return count;
  }
  bool OneKeyEach() const { return shift_ == 0; }
  uint32_t Largest(uint32_t bin) const { return top_ - (bin << shift_); }
  uint32_t Least(uint32_t bin) const { return Largest(bin) - std::min(Largest(bin), (uint32_t{1} << shift_) - 1); }

 private:
  static constexpr size_t kTables = 4;
  uint32_t top_;
  int shift_;
  uint32_t counts_[kTables][kBins + 1] = {};   // the last of what is outside
};

// The places of the entries in one bin, in the order of their index.
void CollectRun(const OpenRun& run, const KeyBins& bins, uint32_t bin, std::vector<uint64_t>* places) {
  uint32_t keys[kBlockLanes], at[kBlockLanes];
  const uint32_t low = std::max(run.low, bins.Least(bin)), end = std::min(run.high, bins.Largest(bin) + 1);
  if (low >= end) return;
  uint64_t above = 0;
  const size_t found = CollectKeys(run.d, run.count, low, end - 1, keys, at, &above);
  const size_t before = places->size();
  places->resize(before + found);
  for (size_t i = 0; i < found; ++i) (*places)[before + i] = PlaceOf(keys[i], run.indices[at[i]]);
}

// What lies ahead is fetched meanwhile: by now the tile has left the cache (62 ms became 47 in the merge of 1.24 B).
template <size_t kSize>
void Scatter(const std::byte* elements, const uint32_t* indices, size_t n, uint64_t first, std::byte* out) {
  constexpr size_t kAhead = 32;
  for (size_t i = 0; i < n; ++i) {
    __builtin_prefetch(out + (indices[std::min(i + kAhead, n - 1)] - first) * kSize, 1);
    std::memcpy(out + (indices[i] - first) * kSize, elements + i * kSize, kSize);
  }
}

}  // namespace

// By a histogram over the bracket first, then a look at the bin that holds the last entry that stays.
std::optional<OpenSelection> SelectAmongOpen(const Bracket& bracket, uint64_t k, size_t threshold,
                                             std::span<const OpenElements* const> tiles, size_t model, OpenLanes lanes,
                                             bool count_equals) {
  // Kept from one selection to the next: the pages of so much memory cost more to get than to fill.
  thread_local std::vector<uint64_t> places;
  KeyBins bins(bracket);
  ForEachRun(bracket, tiles, model, lanes, [&](const OpenRun& run) { bins.Count(run); });
  uint64_t sure = 0;
  for (const OpenElements* tile : tiles) sure += tile->staying[threshold];
  for (uint32_t bin = 0; bin < KeyBins::kBins; ++bin) sure -= bins.At(bin);
  if (sure >= k) return std::nullopt;
  uint64_t rank = k - sure - 1;   // of the last entry that stays, among the open ones
  uint32_t bin = 0;
  for (; bin < KeyBins::kBins && rank >= bins.At(bin); ++bin) rank -= bins.At(bin);
  if (bin == KeyBins::kBins) {   // all of them stay
    if (!bracket.reaches_zero()) return std::nullopt;
    return OpenSelection{.cut = {}, .above = k - rank - 1};
  }
  places.clear();
  ForEachRun(bracket, tiles, model, lanes, [&](const OpenRun& run) { CollectRun(run, bins, bin, &places); });
  const auto last = places.begin() + static_cast<ptrdiff_t>(rank);
  if (!bins.OneKeyEach()) std::nth_element(places.begin(), last, places.end());   // otherwise they are in order already
  OpenSelection selected{.cut = {.key = KeyAt(*last), .index = uint64_t{IndexAt(*last)} + 1}};
  const auto equals = [&](uint64_t place) { return KeyAt(place) == selected.cut.key; };
  if (count_equals) selected.more_equals = static_cast<uint64_t>(std::count_if(last + 1, places.end(), equals));
  return selected;
}

void ScatterElements(const std::byte* elements, const uint32_t* indices, size_t n, uint64_t first, DType type,
                     std::byte* out) {
  switch (LaneBytes(type)) {   // a size known to the compiler: no call per element
    case 2: return Scatter<2>(elements, indices, n, first, out);
    case 4: return Scatter<4>(elements, indices, n, first, out);
    default: return Scatter<8>(elements, indices, n, first, out);
  }
}

}  // namespace braid
