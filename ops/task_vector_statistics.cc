// The statistics rounds of ties and task_arithmetic.
#include "ops/task_vector_statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>

#include "ops/task_vector_merger.h"

namespace braid {
namespace {

// A kept bin takes 8 bytes: the histograms of a model take at most a sixteenth of its size (in bf16).
constexpr uint64_t kElementsPerKeptBin = 64;

// Never more than this, for it is outside of the budget; three models on two threads keep 3 MiB.
constexpr size_t kMostKept = 4 << 20;

// Of what is in memory, a draft's sample is taken twice: a rough one says where to look, and of a fine one only what is
// there is collected. Together they take no longer than one of 65,536 lanes, and leave half as many elements open in a
// tensor of 16 million (0.2 s of CPU in the warm merge of 1.24 B). A lane of the fine one costs a tenth of an open
// element: then their number is best where it grows with the elements to the power of 2/3.
constexpr size_t kRoughRuns = 256;
size_t FineRuns(uint64_t elements) {
  const double runs = std::pow(static_cast<double>(elements), 2.0 / 3) / 12;
  return std::max<size_t>(1024, static_cast<size_t>(runs));
}
constexpr size_t kMostInside = kSampleLanes / 4;   // of one accumulator: a quarter of what the rough sample may take

// Others than those who have a scope in memory take more.
bool IsRough(const SampleKeys& sample) {
  return std::all_of(sample.slots.begin(), sample.slots.end(), [](const PlaceSample& slot) {
    return slot.run > 0 && slot.places.size() / slot.run < 2 * kRoughRuns;
  });
}

struct KeptMemory {
  std::mutex mutex;
  std::vector<std::vector<uint64_t>> places;   // empty, but not small
  size_t bytes = 0;
};
KeptMemory& SampleMemory() {
  static KeptMemory memory;
  return memory;
}

}  // namespace

SampleKeys::SampleKeys(size_t count) : slots(count) {
  KeptMemory& memory = SampleMemory();
  std::lock_guard lock(memory.mutex);
  for (PlaceSample& slot : slots) {
    if (memory.places.empty()) break;
    slot.places = std::move(memory.places.back());
    memory.places.pop_back();
    memory.bytes -= slot.places.capacity() * sizeof(uint64_t);
  }
}

SampleKeys::~SampleKeys() {
  KeptMemory& memory = SampleMemory();
  std::lock_guard lock(memory.mutex);
  for (PlaceSample& slot : slots) {
    const size_t bytes = slot.places.capacity() * sizeof(uint64_t);
    if (memory.bytes + bytes > kMostKept) continue;
    slot.places.clear();
    memory.places.push_back(std::move(slot.places));
    memory.bytes += bytes;
  }
}

std::vector<uint64_t> Histograms::Totals(size_t slot) const {
  std::vector<uint64_t> totals(small_.begin() + static_cast<ptrdiff_t>(slot * bins_),
                               small_.begin() + static_cast<ptrdiff_t>((slot + 1) * bins_));
  if (!large_.empty())
    for (size_t i = 0; i < bins_; ++i) totals[i] += large_[slot * bins_ + i];
  return totals;
}

void Histograms::Add(Accumulator* other) {
  const auto& o = static_cast<const Histograms&>(*other);
  WillCount(o.counted_);
  for (size_t i = 0; i < small_.size(); ++i) small_[i] += o.small_[i];
  if (!o.large_.empty()) Widen();
  for (size_t i = 0; i < o.large_.size(); ++i) large_[i] += o.large_[i];
}

void Histograms::Save(const Put& put) const {
  const uint64_t wide = large_.empty() ? 0 : 1;
  put(&counted_, sizeof counted_), put(&wide, sizeof wide);
  put(small_.data(), small_.size() * sizeof(uint32_t));
  if (wide != 0) put(large_.data(), large_.size() * sizeof(uint64_t));
}

void Histograms::Load(const Get& get) {
  uint64_t counted = 0, wide = 0;
  get(&counted, sizeof counted), get(&wide, sizeof wide);
  WillCount(counted);
  if (wide != 0) Widen();
  const auto add = [&](auto* to, size_t size) {
    std::remove_pointer_t<decltype(to)> piece[512];
    for (size_t at = 0; at < size; at += std::size(piece)) {
      const size_t n = std::min(std::size(piece), size - at);
      get(piece, n * sizeof piece[0]);
      for (size_t i = 0; i < n; ++i) to[at + i] += piece[i];
    }
  };
  add(small_.data(), small_.size());
  if (wide != 0) add(large_.data(), large_.size());
}

void Histograms::WillCount(uint64_t elements) {
  counted_ += elements;
  if (counted_ < kNarrow) return;
  Widen();
  for (size_t i = 0; i < small_.size(); ++i) large_[i] += std::exchange(small_[i], 0);
  counted_ = elements;
}

void SampleKeys::Add(Accumulator* other) {
  auto& o = static_cast<SampleKeys&>(*other);
  for (size_t s = 0; s < slots.size(); ++s) {
    if (o.slots[s].run > 0) slots[s].run = o.slots[s].run;
    slots[s].places.insert(slots[s].places.end(), o.slots[s].places.begin(), o.slots[s].places.end());
  }
}

void AddRun(const float* lanes, size_t n, uint64_t first, bool by_index, PlaceSample* sample) {
  uint32_t keys[kBlockLanes];
  sample->run = n;
  StoreKeys(lanes, n, keys);
  for (size_t i = 0; i < n; ++i)
    sample->places.push_back(PlaceOf(keys[i], by_index ? static_cast<uint32_t>(first + i) : 0));
}

void InsideKeys::Add(Accumulator* other) {
  auto& o = static_cast<InsideKeys&>(*other);
  overflows |= o.overflows;
  for (size_t s = 0; s < slots.size(); ++s) {
    InsideSample &to = slots[s], &from = o.slots[s];
    if (from.run > 0) to.run = from.run;
    const auto shift = static_cast<uint32_t>(to.places.size());
    to.places.insert(to.places.end(), from.places.begin(), from.places.end());
    to.before.insert(to.before.end(), from.before.begin(), from.before.end());
    for (uint32_t end : from.ends) to.ends.push_back(shift + end);
  }
}

void AddInsideRun(const LaneTile& tile, size_t m, const Bracket& bracket, bool by_index, Scratch& scratch,
                  InsideSample* sample) {
  uint32_t keys[kBlockLanes], at[kBlockLanes];
  const uint32_t low = bracket.open.MinKey(tile.first), end = bracket.sure.MinKey(tile.first);
  uint64_t before = 0;
  sample->run = tile.count;
  const size_t inside = CollectKeysAt(tile, m, 0, tile.count, low, end - 1, scratch, keys, at, &before);
  for (size_t i = 0; i < inside; ++i)
    sample->places.push_back(PlaceOf(keys[i], by_index ? static_cast<uint32_t>(tile.first) + at[i] : 0));
  sample->before.push_back(static_cast<uint32_t>(before));
  sample->ends.push_back(static_cast<uint32_t>(sample->places.size()));
}

InsideBins::InsideBins(const Bracket& bracket, size_t most_bins)
    : lowest_(std::max(bracket.open.key, 1u)), highest_(bracket.sure.key) {
  const uint32_t width = highest_ - std::min(lowest_, highest_);
  shift_ = std::max(0, static_cast<int>(std::bit_width(width)) - static_cast<int>(std::bit_width(most_bins - 1)));
  counts_.resize((width >> shift_) + 1);
  if (shift_ > 0) keys_.resize(counts_.size());
}

void InsideBins::Count(const float* lanes, size_t n) {
  uint32_t keys[kBlockLanes], places[kBlockLanes];
  Tally(keys, CollectKeys(lanes, n, lowest_, highest_, keys, places, &above_));
}

void InsideBins::Count(const LaneTile& tile, size_t m, size_t start, size_t n, Scratch& scratch) {
  uint32_t keys[kBlockLanes], places[kBlockLanes];
  Tally(keys, CollectKeysAt(tile, m, start, n, lowest_, highest_, scratch, keys, places, &above_));
}

void InsideBins::Tally(const uint32_t* keys, size_t n) {
  for (size_t i = 0; i < n; ++i) ++counts_[(keys[i] - lowest_) >> shift_];
  for (size_t i = 0; shift_ > 0 && i < n; ++i) {
    uint32_t& seen = keys_[(keys[i] - lowest_) >> shift_];
    seen = seen == 0 || seen == keys[i] ? keys[i] : kMixed;
  }
}

void InsideBins::Add(const InsideBins& other) {
  above_ += other.above_;
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  for (size_t i = 0; i < keys_.size(); ++i)
    if (other.keys_[i] != 0) keys_[i] = keys_[i] == 0 || keys_[i] == other.keys_[i] ? other.keys_[i] : kMixed;
}

InsideBins::Found InsideBins::Find(uint64_t k) const {
  Threshold threshold{.above = above_};
  if (above_ >= k) return {};
  for (size_t bin = counts_.size(); bin-- > 0; threshold.above += counts_[bin]) {
    if (threshold.above + counts_[bin] < k) continue;
    const uint32_t first = lowest_ + (static_cast<uint32_t>(bin) << shift_), last = first + (1u << shift_) - 1;
    threshold.key = shift_ == 0 ? first : keys_[bin], threshold.equal = counts_[bin];
    if (threshold.key == kMixed)
      return {.threshold = {}, .narrower = Bracket{.sure = {last, 0}, .open = {first, UINT64_MAX}}};
    return {.threshold = threshold, .narrower = {}};
  }
  // Zeros are not counted: they are all that is left when the bracket goes down to them.
  if (lowest_ > 1) return {};
  return {.threshold = threshold, .narrower = {}};
}

void InsideCounts::Add(Accumulator* other) {
  auto& o = static_cast<InsideCounts&>(*other);
  for (size_t s = 0; s < slots.size(); ++s) slots[s].Add(o.slots[s]);
}

RoundSpec TaskVectorMerger::round(size_t r) const {
  const size_t sums = rescale_ ? trims_.size() : 0;
  switch (steps_[r]) {
    case Step::kSample:
      return {.name = "sample", .accumulator_bytes = slots_ * kSampleLanes * sizeof(uint64_t), .sample = true,
              .sample_runs = approach_ == Approach::kDraft ? kRoughRuns : RoundSpec().sample_runs};
    case Step::kNarrow:
      return {.name = "narrow", .accumulator_bytes = slots_ * kSampleLanes * sizeof(uint64_t), .sample = true,
              .sample_runs = FineRuns(elements_)};
    case Step::kInside: return {.name = "inside", .accumulator_bytes = slots_ * InsideBins::Bytes()};
    case Step::kHighHalves:
      return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(slots_, kHighBins, elements_),
              .sums = sums};
    case Step::kLowHalves:
      return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(slots_, kLowBins, elements_), .sums = sums};
    case Step::kDraft:
      return {.name = "draft", .draft = true, .open_share = kOpenShare * static_cast<double>(trims_.size()),
              .open_encoded = true};
    case Step::kSigns:
      return {.name = "signs", .accumulator_bytes = sizeof(SignSum), .ordered = ordered_possible_};
    case Step::kMerge: break;
  }
  return {.name = "merge", .ordered = ordered_possible_};
}

std::unique_ptr<Accumulator> TaskVectorMerger::NewAccumulator(size_t r) const {
  switch (steps_[r]) {
    case Step::kSample: return std::make_unique<SampleKeys>(slots_);
    case Step::kNarrow: return std::make_unique<InsideKeys>(slots_);
    case Step::kInside: {
      auto counts = std::make_unique<InsideCounts>();
      for (const Trim& trim : trims_)
        if (trim.slot >= 0) counts->slots.emplace_back(trim.bracket);
      return counts;
    }
    case Step::kHighHalves: return std::make_unique<Histograms>(slots_, kHighBins);
    case Step::kLowHalves: return std::make_unique<Histograms>(slots_, kLowBins);
    case Step::kSigns: return std::make_unique<SignSum>();
    case Step::kDraft:
    case Step::kMerge: break;
  }
  return nullptr;
}

void TaskVectorMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                                  Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  if (steps_[r] == Step::kSample) return TakeSample(tile, scratch, static_cast<SampleKeys&>(*accumulator));
  if (steps_[r] == Step::kNarrow) return TakeInside(tile, scratch, static_cast<InsideKeys&>(*accumulator));
  if (steps_[r] == Step::kInside) return CountInside(tile, scratch, static_cast<InsideCounts&>(*accumulator));
  if (steps_[r] != Step::kSigns)
    return CountHalves(steps_[r] == Step::kLowHalves, tile, scratch, static_cast<Histograms&>(*accumulator), sums);
  VoteCounts& votes = static_cast<SignSum&>(*accumulator).votes;
  TaskVectorBlock block = BlockFor(c, &tile, scratch);
  FindCuts(tile, grants, scratch);
  for (size_t start = 0; start < tile.count; start += kBlockLanes)
    ForEachSegment(tile, start, std::min(kBlockLanes, tile.count - start), scratch, [&](size_t at, size_t n) {
      DecodeBlock(tile, at, n, scratch);
      UseLanes(scratch, &block);
      CountElectedSigns(block, n, &votes);
    });
}

void TaskVectorMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  switch (steps_[r]) {
    case Step::kSample: return FinishSample(static_cast<const SampleKeys&>(*accumulator));
    case Step::kNarrow: return FinishNarrow(static_cast<const InsideKeys&>(*accumulator));
    case Step::kInside: return FinishInside(static_cast<const InsideCounts&>(*accumulator));
    case Step::kHighHalves: return FinishHigh(static_cast<const Histograms&>(*accumulator), sums);
    case Step::kLowHalves: return FinishLow(static_cast<const Histograms&>(*accumulator), sums);
    // The paper's code selects the negative entries when even the majority is a draw.
    case Step::kSigns: zero_elects_minus_ = static_cast<const SignSum&>(*accumulator).votes.sign_sum <= 0; return;
    case Step::kDraft:
    case Step::kMerge: return;
  }
}

// The tile is one run of the sample.
void TaskVectorMerger::TakeSample(const LaneTile& tile, Scratch& scratch, SampleKeys& sample) const {
  for (size_t m = 0; m < trims_.size(); ++m) {
    if (tile.models[m].bytes == nullptr || trims_[m].slot < 0) continue;
    AddRun(TaskVectorAt(tile, m, 0, tile.count, scratch), tile.count, tile.first, sampled_by_index_,
           &sample.slots[static_cast<size_t>(trims_[m].slot)]);
  }
}

void TaskVectorMerger::FinishSample(const SampleKeys& sample) {
  const bool drafts = steps_[1] == Step::kDraft;
  bool found = true;
  for (Trim& trim : trims_) {
    if (trim.slot < 0) continue;
    const auto bracket = BracketOf(sample.slots[static_cast<size_t>(trim.slot)], trim.keep, elements_,
                                   sampled_by_index_);
    found &= bracket.has_value();
    if (bracket) trim.bracket = *bracket;
  }
  if (!found && !drafts) steps_.erase(steps_.begin() + 1), FallBackAfter(Step::kSample);
  if (drafts && IsRough(sample)) steps_.insert(steps_.begin() + 1, Step::kNarrow);
}

void TaskVectorMerger::TakeInside(const LaneTile& tile, Scratch& scratch, InsideKeys& inside) const {
  if (inside.overflows) return;
  for (size_t m = 0; m < trims_.size(); ++m) {
    const Trim& trim = trims_[m];
    if (tile.models[m].bytes == nullptr || trim.slot < 0) continue;
    InsideSample& sample = inside.slots[static_cast<size_t>(trim.slot)];
    AddInsideRun(tile, m, trim.bracket, sampled_by_index_, scratch, &sample);
    inside.overflows |= sample.places.size() > kMostInside;
  }
}

void TaskVectorMerger::FinishNarrow(const InsideKeys& inside) {
  if (inside.overflows) return;
  for (Trim& trim : trims_)
    if (trim.slot >= 0)
      trim.bracket = NarrowBracket(trim.bracket, inside.slots[static_cast<size_t>(trim.slot)], trim.keep, elements_,
                                   sampled_by_index_);
}

void TaskVectorMerger::FallBackAfter(Step step) {
  const auto here = std::find(steps_.begin(), steps_.end(), step);
  steps_.insert(here + 1, {Step::kHighHalves, Step::kLowHalves});
}

void TaskVectorMerger::CountInside(const LaneTile& tile, Scratch& scratch, InsideCounts& counts) const {
  for (size_t start = 0; start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    for (size_t m = 0; m < trims_.size(); ++m)
      if (tile.models[m].bytes != nullptr && trims_[m].slot >= 0)
        counts.slots[static_cast<size_t>(trims_[m].slot)].Count(tile, m, start, n, scratch);
  }
}

void TaskVectorMerger::FinishInside(const InsideCounts& counts) {
  std::vector<Trim> trims = trims_;
  bool again = false;
  for (size_t m = 0; m < trims.size(); ++m) {
    if (trims[m].slot < 0) continue;
    const InsideBins::Found found = counts.slots[static_cast<size_t>(trims[m].slot)].Find(trims[m].keep);
    if (found.narrower) trims_[m].bracket = *found.narrower, again = true;
    else if (found.threshold) UseThreshold(*found.threshold, &trims[m]);
    else return FallBackAfter(Step::kInside);
  }
  if (again) steps_.insert(std::find(steps_.begin(), steps_.end(), Step::kInside), Step::kInside);
  else trims_ = std::move(trims);
}

// One model after the other within a reduction block: its histogram (128 or 256 KiB) then stays in L2.
void TaskVectorMerger::CountHalves(bool low, const LaneTile& tile, Scratch& scratch, Histograms& histograms,
                                   BlockSums sums) const {
  histograms.WillCount(tile.count);
  for (size_t block = 0; block < tile.count; block += kReductionBlock) {
    const size_t block_end = std::min(tile.count, block + kReductionBlock);
    for (size_t m = 0; m < trims_.size(); ++m) {
      const Trim& trim = trims_[m];
      if (tile.models[m].bytes == nullptr || trim.slot < 0 || (!low && trim.bin_known)) continue;
      uint32_t* bins = histograms.Row(static_cast<size_t>(trim.slot));
      double partial[kSumLanes] = {};
      for (size_t start = block; start < block_end; start += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, block_end - start);
        const float* d = TaskVectorAt(tile, m, start, n, scratch);
        if (low) CountLowHalves(d, n, trim.bin.high, bins);
        else CountHighHalves(d, n, bins);
        if (sums.data != nullptr) AddMagnitudes(d, n, low ? static_cast<int32_t>(trim.bin.high) : -1, partial);
      }
      if (sums.data != nullptr) sums.data[m * sums.stride + (tile.first + block) / kReductionBlock] = FoldSums(partial);
    }
  }
}

void TaskVectorMerger::FinishHigh(const Histograms& histograms, std::span<const double> sums) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.slot < 0 || trim.bin_known) continue;
    const std::vector<uint64_t> bins = histograms.Totals(static_cast<size_t>(trim.slot));
    trim.bin = FindCriticalBin(bins.data(), trim.keep);
    if (keep_high_halves_) trim.high_halves = FilledBins(bins.data(), kHighBins);
    if (trim.high_halves.size() * kElementsPerKeptBin > elements_) trim.high_halves = {};
    if (rescale_) trim.norm = sums[m];
  }
}

// What stays, by the threshold of a whole scope; returns how many entries equal to it stay.
uint64_t TaskVectorMerger::UseThreshold(const Threshold& threshold, Trim* trim) const {
  // All zeros stay with a threshold of 0, also those of tensors that the model lacks, which nobody counted.
  const uint64_t equals = threshold.key == 0 ? elements_ - threshold.above : threshold.equal;
  const uint64_t equals_kept = keep_equals_ ? equals : trim->keep - threshold.above;
  trim->keep = threshold.above + equals_kept;
  trim->found = true;
  trim->all_zero = threshold.key == 0 && threshold.above == 0;
  trim->cut = {.key = threshold.key, .index = UINT64_MAX};
  // A kept zero adds nothing, so it does not matter which ones stay.
  if (equals_kept < equals && threshold.key > 0) trim->quota = equals_kept;
  return equals_kept;
}

void TaskVectorMerger::FinishLow(const Histograms& histograms, std::span<const double> sums) {
  for (size_t m = 0; m < trims_.size(); ++m) {
    Trim& trim = trims_[m];
    if (trim.slot < 0) continue;
    const std::vector<uint64_t> bins = histograms.Totals(static_cast<size_t>(trim.slot));
    const Threshold threshold = FindThreshold(trim.bin, bins.data(), trim.keep);
    const uint64_t equals_kept = UseThreshold(threshold, &trim);
    if (!rescale_) continue;
    // Entries above the critical bin were summed in place; those within it are known by their counts.
    const auto magnitude = [&](uint32_t low) {
      return static_cast<double>(std::bit_cast<float>(trim.bin.high << 16 | low));
    };
    trim.kept_norm = sums[m];
    const uint32_t threshold_low = threshold.key & 0xffff;
    for (uint32_t low = kLowBins - 1; low > threshold_low; --low)
      if (bins[low] != 0) trim.kept_norm += static_cast<double>(bins[low]) * magnitude(low);
    trim.kept_norm += static_cast<double>(equals_kept) * magnitude(threshold_low);
    trim.factor = RescaleFactor(trim.norm, trim.kept_norm);
  }
}

}  // namespace braid
