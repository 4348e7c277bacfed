#include "pipeline/share.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace braid {
namespace {

constexpr uint64_t kAlignment = 64 << 10;
// So many units, or as many as make units of a GiB: few enough that marking them as done costs nothing, and enough for
// as many ranks as make sense.
constexpr uint64_t kUnits = 256;
constexpr uint64_t kLargestUnit = 1 << 30;
constexpr uint64_t kCheapCut = 32;   // a part is so many times what its cut costs
constexpr uint64_t kPartsOfRun = 16;

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Of an output of so many bytes.
uint64_t UnitBytes(uint64_t output) {
  return std::clamp(RoundUp(output / kUnits, kAlignment), kAlignment, kLargestUnit);
}

// Where a shard's file may be cut, and at what price.
class Cuts {
 public:
  // Tensors of one shard, in the order of the file.
  explicit Cuts(std::span<const PlannedTensor> tensors) : tensors_(tensors) {}

  // The cheapest of the places in [least, most], the one nearest to `wanted` of equal ones; all are aligned.
  uint64_t Best(uint64_t wanted, uint64_t least, uint64_t most) const {
    uint64_t best = wanted, price = Price(wanted);
    const auto consider = [&](uint64_t place) {
      if (place < least || place > most) return;
      const uint64_t its = Price(place);
      const auto away = [&](uint64_t p) { return p > wanted ? p - wanted : wanted - p; };
      if (its < price || (its == price && away(place) < away(best))) best = place, price = its;
    };
    // Only a tensor's first and last places can be better than its others.
    const auto begin = std::partition_point(tensors_.begin(), tensors_.end(), [&](const PlannedTensor& tensor) {
      return tensor.offset + tensor.bytes < least;
    });
    for (auto tensor = begin; tensor != tensors_.end() && tensor->offset <= most; ++tensor) {
      consider(tensor->offset / kAlignment * kAlignment);
      consider(RoundUp(tensor->offset, kAlignment));
    }
    return best;
  }

 private:
  // Bytes of the tensor that is cut there, if it has statistics.
  uint64_t Price(uint64_t place) const {
    const auto tensor = std::partition_point(tensors_.begin(), tensors_.end(), [&](const PlannedTensor& t) {
      return t.offset + t.bytes <= place;
    });
    if (tensor == tensors_.end() || tensor->offset >= place || tensor->action != TensorAction::kMerge) return 0;
    return tensor->bytes;
  }

  std::span<const PlannedTensor> tensors_;
};

uint64_t BytesOf(const std::vector<OutputUnit>& units, const std::vector<uint32_t>& wanted) {
  uint64_t bytes = 0;
  for (uint32_t u : wanted) bytes += units[u].bytes();
  return bytes;
}

// Whose each of `wanted` is, by where its middle lies.
std::vector<uint32_t> OwnersOf(const std::vector<OutputUnit>& units, const std::vector<uint32_t>& wanted, uint32_t of) {
  const uint64_t total = std::max<uint64_t>(BytesOf(units, wanted), 1);
  uint64_t before = 0;
  std::vector<uint32_t> owners;
  for (uint32_t u : wanted) {
    // 128 bits: bytes times ranks.
    const auto middle = static_cast<unsigned __int128>(before + units[u].bytes() / 2) * of;
    owners.push_back(static_cast<uint32_t>(middle / total));
    before += units[u].bytes();
  }
  return owners;
}

// Of the tensor that lies across the begin of a unit, and whose statistics both sides need.
uint64_t CutBytes(const Plan& plan, const OutputUnit& unit) {
  const auto tensor = std::partition_point(plan.tensors.begin(), plan.tensors.end(), [&](const PlannedTensor& t) {
    return t.shard < unit.shard || (t.shard == unit.shard && t.offset + t.bytes <= unit.begin);
  });
  const bool cut = tensor != plan.tensors.end() && tensor->shard == unit.shard && tensor->offset < unit.begin &&
                   tensor->action == TensorAction::kMerge;
  return cut ? tensor->bytes : 0;
}

}  // namespace

uint64_t BlockOf(const Plan& plan, const PlannedTensor& tensor) {
  const uint64_t unit = plan.TileUnit(tensor);
  return unit == 0 ? kReductionBlock : unit;
}

UnitRun UnitsOf(const Plan& plan, const std::vector<OutputUnit>& units, uint32_t t) {
  const PlannedTensor& tensor = plan.tensors[t];
  const auto place = [&](uint64_t byte) {   // the unit that has it
    const auto at = std::partition_point(units.begin(), units.end(), [&](const OutputUnit& unit) {
      return unit.shard < tensor.shard || (unit.shard == tensor.shard && unit.end <= byte);
    });
    return static_cast<uint32_t>(at - units.begin());
  };
  const uint32_t first = place(tensor.offset);
  return {first, tensor.bytes == 0 ? first : place(tensor.offset + tensor.bytes - 1) + 1};
}

ElementRange BlocksIn(const Plan& plan, const PlannedTensor& tensor, const OutputUnit& unit) {
  const uint64_t block = BlockOf(plan, tensor);
  const uint64_t block_bytes = block * static_cast<uint64_t>(DTypeBits(tensor.type)) / 8;
  const auto before = [&](uint64_t place) {   // whole blocks before a place in the file
    if (place <= tensor.offset) return uint64_t{0};
    const uint64_t bytes = place - tensor.offset;
    return bytes >= tensor.bytes ? tensor.elements : std::min(tensor.elements, bytes / block_bytes * block);
  };
  return {before(unit.begin), before(unit.end)};
}

std::vector<UnitRun> RunsOfRanks(const std::vector<OutputUnit>& units, uint32_t of) {
  std::vector<uint32_t> all(units.size());
  std::iota(all.begin(), all.end(), 0);
  const std::vector<uint32_t> owners = OwnersOf(units, all, of);   // ascending
  std::vector<UnitRun> runs;
  uint32_t at = 0;
  for (uint32_t rank = 0; rank < of; ++rank) {
    const uint32_t first = at;
    while (at < owners.size() && owners[at] == rank) ++at;
    runs.push_back({first, at});
  }
  return runs;
}

std::vector<OutputUnit> OutputUnits(const Plan& plan) {
  uint64_t total = 0;
  for (const PlannedShard& shard : plan.shards) total += shard.bytes;
  const uint64_t size = UnitBytes(total);
  std::vector<OutputUnit> units;
  if (plan.in_order) {
    for (uint32_t s = 0; s < plan.shards.size(); ++s) units.push_back({s, 0, plan.shards[s].bytes});
    return units;
  }
  size_t first = 0;
  for (uint32_t s = 0; s < plan.shards.size(); ++s) {
    size_t last = first;
    while (last < plan.tensors.size() && plan.tensors[last].shard == s) ++last;
    const Cuts cuts(std::span(plan.tensors).subspan(first, last - first));
    first = last;
    const uint64_t bytes = plan.shards[s].bytes, pieces = std::max<uint64_t>(bytes / size, 1);
    // The header is written in one piece.
    uint64_t begin = 0;
    const uint64_t least = RoundUp(plan.shards[s].header.size(), kAlignment);
    for (uint64_t i = 1; i < pieces; ++i) {
      const uint64_t wanted = RoundUp(i * (bytes / pieces), kAlignment), slack = size / 4;
      const uint64_t end = cuts.Best(wanted, wanted - std::min(wanted, slack), wanted + slack);
      if (end <= begin || end < least || end >= bytes) continue;
      units.push_back({s, begin, end});
      begin = end;
    }
    units.push_back({s, begin, bytes});
  }
  return units;
}

// Within a tensor units end half a unit apart, at least, since ends are moved by a quarter of one at most.
uint64_t MostPieces(const Plan& plan, const PlannedScope& scope) {
  const uint64_t output = plan.totals.bytes_written, size = UnitBytes(output), tensors = scope.tensors.size();
  uint64_t bytes = 0;
  for (uint32_t t : scope.tensors) bytes += plan.tensors[t].bytes;
  return tensors + std::min(output / size + plan.shards.size(), 2 * bytes / size + tensors);
}

std::string IdleRanksText(const Plan& plan, const std::vector<OutputUnit>& units, uint32_t of) {
  const std::vector<UnitRun> runs = RunsOfRanks(units, of);
  const auto idle = std::count_if(runs.begin(), runs.end(), [](UnitRun run) { return run.first == run.last; });
  if (idle == 0) return "";
  std::string text = fmt::format("{} of {} ranks {} nothing to do: ", idle, of, idle == 1 ? "has" : "have");
  const std::string size = units.size() == 1 ? "1 piece" : fmt::format("{} pieces", units.size());
  if (!plan.in_order) return text + fmt::format("the output has {}", size);
  if (plan.single_file) return text + "one file is compressed by one rank; name a directory as OUT";
  const uint64_t megabytes = std::max<uint64_t>(plan.totals.bytes_written / of / 2 / 1'000'000, 1);
  return text + fmt::format("the output has {} shard{}, and each is compressed by one rank; with --shard-size {}MB "
                            "there would be more",
                            units.size(), units.size() == 1 ? "" : "s", megabytes);
}

std::vector<uint32_t> UnitsOfRank(const std::vector<OutputUnit>& units, const std::vector<uint32_t>& wanted,
                                  uint32_t rank, uint32_t of) {
  const std::vector<uint32_t> owners = OwnersOf(units, wanted, of);
  std::vector<uint32_t> mine;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (owners[i] == rank) mine.push_back(wanted[i]);
  return mine;
}

// Each takes half of what would be its part of the rest. The last ones have a sixteenth of it.
std::vector<std::vector<uint32_t>> PartsToTake(const Plan& plan, const std::vector<OutputUnit>& units,
                                               const std::vector<uint32_t>& wanted, uint32_t of) {
  const std::vector<uint32_t> owners = OwnersOf(units, wanted, of);
  uint64_t left = BytesOf(units, wanted), bytes = 0;
  const uint64_t least = left / of / 16;
  std::vector<std::vector<uint32_t>> parts;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (bytes == 0) parts.emplace_back();
    parts.back().push_back(wanted[i]);
    bytes += units[wanted[i]].bytes();
    const bool cut_anyway = i + 1 == wanted.size() || owners[i + 1] != owners[i] || wanted[i + 1] != wanted[i] + 1;
    if (bytes < std::max(left / of / 2, least)) continue;
    if (!cut_anyway && CutBytes(plan, units[wanted[i + 1]]) > bytes / kCheapCut) continue;
    left -= bytes, bytes = 0;
  }
  return parts;
}

std::vector<UnitRun> PartsOfRun(const Plan& plan, const std::vector<OutputUnit>& units, UnitRun run) {
  uint64_t all = 0, bytes = 0;
  for (uint32_t u = run.first; u < run.last; ++u) all += units[u].bytes();
  std::vector<UnitRun> parts;
  for (uint32_t u = run.first; u < run.last; ++u) {
    if (bytes == 0) parts.push_back({u, u});
    parts.back().last = u + 1;
    bytes += units[u].bytes();
    if (bytes < all / kPartsOfRun || u + 1 == run.last) continue;
    if (CutBytes(plan, units[u + 1]) <= bytes / kCheapCut) bytes = 0;
  }
  return parts;
}

Share::Share(const Plan& plan) : plan_(plan), everything_(true), written_(plan.shards.size()) {
  for (uint32_t s = 0; s < plan.shards.size(); ++s) {
    written_[s].push_back({0, plan.shards[s].bytes});
    bytes_written_ += plan.shards[s].bytes;
  }
  for (const PlannedTensor& tensor : plan.tensors) whole_.push_back({0, tensor.elements});
}

Share::Share(const Plan& plan, std::vector<OutputUnit> all_units, const std::vector<uint32_t>& units)
    : plan_(plan), all_units_(std::move(all_units)), written_(plan.shards.size()) {
  for (uint32_t u : units) units_.push_back(all_units_[u]);
  for (const OutputUnit& unit : units_) {
    std::vector<ByteRange>& ranges = written_[unit.shard];
    // The header of a single file, unless it is compressed, holds checksums: whoever publishes writes it.
    const bool without_header = plan.single_file && !plan.in_order;
    const uint64_t begin = without_header ? std::max(unit.begin, plan.shards[unit.shard].header.size()) : unit.begin;
    if (!ranges.empty() && ranges.back().end == begin) ranges.back().end = unit.end;
    else ranges.push_back({begin, unit.end});
    bytes_written_ += unit.end - begin;
  }
  for (const PlannedTensor& tensor : plan.tensors) whole_.push_back({0, tensor.elements});
  states_.assign(plan.tensors.size(), State::kNone);
  for (uint32_t t = 0; t < plan.tensors.size(); ++t) AddTensor(t);
}

void Share::AddTensor(uint32_t t) {
  const PlannedTensor& tensor = plan_.tensors[t];
  const uint64_t begin = tensor.offset, end = tensor.offset + tensor.bytes, block = BlockOf(plan_, tensor);
  const auto bits = static_cast<uint64_t>(DTypeBits(tensor.type));
  std::vector<ElementRange> ranges;
  for (const ByteRange& range : Written(tensor.shard)) {
    if (range.end <= begin || range.begin >= end) continue;
    if (range.begin <= begin && range.end >= end) {
      states_[t] = State::kWhole;
      return;
    }
    const uint64_t from = std::max(range.begin, begin) - begin, to = std::min(range.end, end) - begin;
    const uint64_t first = from * 8 / bits / block * block;
    const uint64_t last = std::min(tensor.elements, RoundUp((to * 8 + bits - 1) / bits, block));
    if (!ranges.empty() && ranges.back().last >= first) ranges.back().last = last;
    else ranges.push_back({first, last});
  }
  if (ranges.empty()) return;
  states_[t] = State::kCut;
  cut_.emplace(t, std::move(ranges));
}

std::span<const ElementRange> Share::Merged(uint32_t tensor) const {
  if (Whole(tensor)) return {&whole_[tensor], 1};
  const auto cut = cut_.find(tensor);
  if (cut == cut_.end()) return {};
  return cut->second;
}

bool Share::Whole(const PlannedScope& scope) const {
  return std::all_of(scope.tensors.begin(), scope.tensors.end(), [&](uint32_t t) { return Whole(t); });
}

bool Share::Any(const PlannedScope& scope) const {
  return std::any_of(scope.tensors.begin(), scope.tensors.end(), [&](uint32_t t) { return !Merged(t).empty(); });
}

}  // namespace braid
