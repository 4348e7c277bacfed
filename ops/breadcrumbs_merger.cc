#include "ops/breadcrumbs_merger.h"

#include <cmath>

#include "ops/sparsify.h"
#include "ops/task_vector_merger.h"
#include "ops/task_vector_statistics.h"

namespace braid {
namespace {

// trunc(double(share) n), of a share from 0 to 1.
uint64_t Part(double share, uint64_t n) {
  return std::min(n, static_cast<uint64_t>(std::max(share, 0.0) * static_cast<double>(n)));
}

double GammaOf(const MethodInfo& method, const Coefficients& c, size_t model) {
  return c.model[model][method.At("gamma")];
}

}  // namespace

KeptPlaces KeptPlacesOf(double density, double gamma, uint64_t n) {
  if (density >= 1) return {0, n};
  const uint64_t kept = Part(density, n), first = std::min(Part(gamma, n), n - kept);
  return {first, first + kept};
}

// --- over whole tensors -----------------------------------------------------------------------------------

BreadcrumbsMerger::BreadcrumbsMerger(const MethodInfo& method, bool elect, const Coefficients& c,
                                     const TensorFacts& scope, Approach approach)
    : SparseMerger(method, elect, c, scope, false), elements_(scope.elements), trails_(models()) {
  for (size_t m = 0; m < models(); ++m) {
    if (!active(m)) continue;
    const KeptPlaces places = KeptPlacesOf(density(m), GammaOf(method, c, m), elements_);
    Trail& trail = trails_[m];
    trail.kept = places.end - places.first;
    trail.ends[0].place = places.first, trail.ends[1].place = places.end;
    for (End& end : trail.ends) {
      end.sought = trail.kept > 0 && end.place > 0 && end.place < elements_;
      end.cut = end.place == 0 || trail.kept == 0 ? Cut{kNanKey, 0} : Cut{};   // none; or all
      if (end.sought) end.slot = sought_ends_++;
    }
    if (trail.sought()) trail.slot = sought_models_++;
    norms_ |= rescale() && sparse(m) && trail.kept > 0;
  }
  if (sought_ends_ == 0) return;
  // Norms want to know what stays before the merge; a draft's indices are 32 bits wide.
  const bool drafts = approach == Approach::kDraft && !norms_ && elements_ < UINT32_MAX;
  if (drafts && elements_ <= kFewElements) SetSteps({Step::kDraft});
  else if (drafts) SetSteps({Step::kSample, Step::kDraft});
  else if (approach == Approach::kSampled) SetSteps({Step::kSample, Step::kInside});
  else SetSteps({Step::kHighHalves, Step::kLowHalves});
}

void BreadcrumbsMerger::SetSteps(std::vector<Step> steps) {
  steps_ = std::move(steps);
  selection_rounds_ = steps_.size();
}

RoundSpec BreadcrumbsMerger::round(size_t r) const {
  if (r >= selection_rounds_) return SparseMerger::round(r);
  switch (steps_[r]) {
    case Step::kSample:
      return {.name = "sample", .accumulator_bytes = sought_models_ * kSampleLanes * sizeof(uint64_t), .sample = true};
    case Step::kInside: return {.name = "inside", .accumulator_bytes = sought_ends_ * InsideBins::Bytes()};
    case Step::kHighHalves:
      return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(sought_models_, kHighBins, elements_)};
    case Step::kDraft: return {.name = "draft", .draft = true, .open_share = OpenShare()};
    case Step::kLowHalves: break;
  }
  return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(sought_ends_, kLowBins, elements_)};
}

bool BreadcrumbsMerger::Reads(size_t r, size_t model, const Coefficients& c) const {
  if (r >= selection_rounds_) return SparseMerger::Reads(r, model, c);
  return steps_[r] == Step::kDraft ? active(model) : trails_[model].sought();
}

std::unique_ptr<Accumulator> BreadcrumbsMerger::NewAccumulator(size_t r) const {
  if (r >= selection_rounds_) return nullptr;
  switch (steps_[r]) {
    case Step::kSample: return std::make_unique<SampleKeys>(sought_models_);
    case Step::kInside: {
      auto counts = std::make_unique<InsideCounts>();
      for (const Trail& trail : trails_)
        for (const End& end : trail.ends)
          if (end.sought) counts->slots.emplace_back(end.bracket);
      return counts;
    }
    case Step::kHighHalves: return std::make_unique<Histograms>(sought_models_, kHighBins);
    case Step::kDraft: return nullptr;
    case Step::kLowHalves: break;
  }
  return std::make_unique<Histograms>(sought_ends_, kLowBins);
}

// visit(trail, d, n) for the lanes of models that have an end to be found. One model after the other within a reduction
// block: what it is counted into then stays in L2.
template <typename Visit>
void BreadcrumbsMerger::ForEachSought(const LaneTile& tile, Scratch& scratch, Visit visit) const {
  for (size_t block = 0; block < tile.count; block += kReductionBlock) {
    const size_t block_end = std::min(tile.count, block + kReductionBlock);
    for (size_t m = 0; m < models(); ++m) {
      if (tile.models[m].bytes == nullptr || !trails_[m].sought()) continue;
      for (size_t start = block; start < block_end; start += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, block_end - start);
        visit(trails_[m], TaskVectorAt(tile, m, start, n, scratch), n);
      }
    }
  }
}

void BreadcrumbsMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                                   Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  if (r >= selection_rounds_) return SparseMerger::Accumulate(r, c, tile, grants, scratch, accumulator, sums);
  if (steps_[r] == Step::kSample) return TakeSample(tile, scratch, static_cast<SampleKeys&>(*accumulator));
  if (steps_[r] == Step::kInside) {
    auto& counts = static_cast<InsideCounts&>(*accumulator);
    return ForEachSought(tile, scratch, [&](const Trail& trail, const float* d, size_t n) {
      for (const End& end : trail.ends)
        if (end.sought) counts.slots[end.slot].Count(d, n);
    });
  }
  auto& histograms = static_cast<Histograms&>(*accumulator);
  histograms.WillCount(tile.count);
  ForEachSought(tile, scratch, [&](const Trail& trail, const float* d, size_t n) {
    if (steps_[r] == Step::kHighHalves) return CountHighHalves(d, n, histograms.Row(trail.slot));
    const End* const ends = trail.ends;
    if (ends[0].sought) CountLowHalves(d, n, ends[0].bin.high, histograms.Row(ends[0].slot));
    if (ends[1].sought && !trail.same_bin()) CountLowHalves(d, n, ends[1].bin.high, histograms.Row(ends[1].slot));
  });
}

// The tile is one run of the sample.
void BreadcrumbsMerger::TakeSample(const LaneTile& tile, Scratch& scratch, SampleKeys& sample) const {
  ForEachSought(tile, scratch, [&](const Trail& trail, const float* d, size_t n) {
    AddRun(d, n, tile.first, drafts(), &sample.slots[trail.slot]);
  });
}

void BreadcrumbsMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  if (r >= selection_rounds_) return SparseMerger::Finish(r, accumulator, sums);
  switch (steps_[r]) {
    case Step::kSample: return FinishSample(static_cast<const SampleKeys&>(*accumulator));
    case Step::kInside: return FinishInside(static_cast<const InsideCounts&>(*accumulator));
    case Step::kHighHalves: return FinishHigh(static_cast<const Histograms&>(*accumulator));
    case Step::kLowHalves: return FinishLow(static_cast<const Histograms&>(*accumulator));
    case Step::kDraft: return;
  }
}

void BreadcrumbsMerger::FinishSample(const SampleKeys& sample) {
  for (Trail& trail : trails_)
    for (End& end : trail.ends) {
      if (!end.sought) continue;
      const auto bracket = BracketOf(sample.slots[trail.slot], end.place, elements_, drafts());
      if (bracket) end.bracket = *bracket;
      else if (!drafts()) return SetSteps({Step::kSample, Step::kHighHalves, Step::kLowHalves});
    }
}

void BreadcrumbsMerger::FinishInside(const InsideCounts& counts) {
  bool again = false;
  for (Trail& trail : trails_)
    for (End& end : trail.ends) {
      if (!end.sought) continue;
      const InsideBins::Found found = counts.slots[end.slot].Find(end.place);
      if (found.narrower) end.bracket = *found.narrower, again = true;
      else if (found.threshold) UseThreshold(*found.threshold, &end);
      else return SetSteps({Step::kSample, Step::kInside, Step::kHighHalves, Step::kLowHalves});
    }
  if (again) SetSteps({Step::kSample, Step::kInside, Step::kInside});
}

void BreadcrumbsMerger::FinishHigh(const Histograms& histograms) {
  for (Trail& trail : trails_) {
    if (!trail.sought()) continue;
    const std::vector<uint64_t> bins = histograms.Totals(trail.slot);
    for (End& end : trail.ends)
      if (end.sought) end.bin = FindCriticalBin(bins.data(), end.place);
  }
}

void BreadcrumbsMerger::FinishLow(const Histograms& histograms) {
  for (Trail& trail : trails_) {
    std::vector<uint64_t> bins;
    for (End& end : trail.ends) {
      if (!end.sought) continue;
      if (bins.empty() || !trail.same_bin()) bins = histograms.Totals(end.slot);
      UseThreshold(FindThreshold(end.bin, bins.data(), end.place), &end);
    }
  }
}

void BreadcrumbsMerger::UseThreshold(const Threshold& threshold, End* end) {
  end->cut = {.key = threshold.key, .index = UINT64_MAX};
  // It does not matter which zeros stay.
  const uint64_t equals = end->place - threshold.above;
  if (equals < threshold.equal && threshold.key > 0) end->quota = equals;
}

bool BreadcrumbsMerger::ordered() const {
  for (const Trail& trail : trails_)
    for (const End& end : trail.ends)
      if (end.quota != kNoQuota) return true;
  return false;
}

void BreadcrumbsMerger::CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch,
                                    uint64_t* claims) const {
  for (size_t m = 0; m < models(); ++m) {
    const End* const ends = trails_[m].ends;
    if (tile.models[m].bytes == nullptr || (ends[0].quota == kNoQuota && ends[1].quota == kNoQuota)) continue;
    for (size_t start = 0; start < tile.count; start += kBlockLanes) {
      const size_t n = std::min(kBlockLanes, tile.count - start);
      const float* const d = TaskVectorAt(tile, m, start, n, scratch);
      for (size_t e = 0; e < kEnds; ++e)
        if (ends[e].quota != kNoQuota) claims[m * kEnds + e] += CountKey(d, n, ends[e].cut.key);
    }
  }
}

// The index behind the last of so many entries equal to `key`, 0 when none is granted.
uint64_t BreadcrumbsMerger::CutIndex(const LaneTile& tile, size_t m, uint32_t key, uint64_t granted,
                                     Scratch& scratch) const {
  if (granted == kNoQuota) return UINT64_MAX;
  for (size_t start = 0; granted > 0 && start < tile.count; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, tile.count - start);
    const float* const d = TaskVectorAt(tile, m, start, n, scratch);
    const uint64_t here = CountKey(d, n, key);
    if (here < granted) {
      granted -= here;
      continue;
    }
    for (size_t i = 0;; ++i)
      if (CountKey(d + i, 1, key) != 0 && --granted == 0) return tile.first + start + i + 1;
  }
  return 0;
}

void BreadcrumbsMerger::Prepare(const LaneTile& tile, const uint64_t* grants, const LaneUnit&, Scratch& scratch) const {
  scratch.cuts.clear();
  for (size_t i = 0; i < kEnds * models(); ++i) {
    const End& end = trails_[i / kEnds].ends[i % kEnds];
    Cut& cut = scratch.cuts.emplace_back(end.cut);
    if (end.quota == kNoQuota || tile.models[i / kEnds].bytes == nullptr) continue;
    cut.index = CutIndex(tile, i / kEnds, end.cut.key, grants[i], scratch);
  }
}

void BreadcrumbsMerger::Keep(const LaneTile& tile, size_t m, const LaneUnit&, size_t start, size_t n, Scratch& scratch,
                             float* d) const {
  const Cut &outliers = scratch.cuts[m * kEnds], &kept = scratch.cuts[m * kEnds + 1];
  const uint64_t first = tile.first + start;
  for (size_t at = 0, end; at < n; at = end) {   // as far as each end has one least key
    end = n;
    for (const Cut* cut : {&outliers, &kept})
      if (cut->index > first + at && cut->index < first + end) end = cut->index - first;
    KeepKeys(kept.MinKey(first + at), outliers.MinKey(first + at), end - at, d + at);
  }
}

uint64_t BreadcrumbsMerger::entries() const {
  uint64_t sum = 0;
  for (size_t m = 0; m < models(); ++m) sum += active(m) ? elements_ : 0;
  return sum;
}

uint64_t BreadcrumbsMerger::kept() const {
  uint64_t sum = 0;
  for (const Trail& trail : trails_) sum += trail.kept;
  return sum;
}

// --- over rows --------------------------------------------------------------------------------------------

BreadcrumbsRowMerger::BreadcrumbsRowMerger(const MethodInfo& method, bool elect, const Coefficients& c,
                                           const TensorFacts& scope)
    : SparseMerger(method, elect, c, scope, true), ranks_(models(), row(), UnitLanes()), places_(models()) {
  for (size_t m = 0; m < models(); ++m) {
    if (!active(m)) continue;
    places_[m] = KeptPlacesOf(density(m), GammaOf(method, c, m), row());
    norms_ |= rescale() && sparse(m) && places_[m].first < places_[m].end;
    entries_ += scope.elements;
    kept_ += scope.elements / row() * (places_[m].end - places_[m].first);
  }
}

void BreadcrumbsRowMerger::Prepare(const LaneTile& tile, const uint64_t*, const LaneUnit& unit,
                                   Scratch& scratch) const {
  for (size_t m = 0; m < models(); ++m)
    if (tile.models[m].bytes != nullptr && sparse(m))
      ranks_.Find(tile, m, unit, RowRanks::Order::kLargestFirst, scratch);
}

void BreadcrumbsRowMerger::Keep(const LaneTile&, size_t m, const LaneUnit& unit, size_t start, size_t n,
                                Scratch& scratch, float* d) const {
  const uint32_t* const ranks = ranks_.Of(m, scratch) + (start - unit.start);
  const auto first = static_cast<uint32_t>(places_[m].first), kept = static_cast<uint32_t>(places_[m].end) - first;
  for (size_t i = 0; i < n; ++i) {
    const bool stays = ranks[i] - first < kept || std::isnan(d[i]);
    d[i] = stays ? d[i] : 0.0f;
  }
}

// --- declarations -----------------------------------------------------------------------------------------

namespace {

bool ByRows(const MethodInfo& method, const Coefficients& c) { return c.shared[method.At("scope")] != 0; }

template <bool kElect>
std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& scope,
                             Approach approach) {
  if (method.WorksByRows(c)) return std::make_unique<BreadcrumbsRowMerger>(method, kElect, c, scope);
  return std::make_unique<BreadcrumbsMerger>(method, kElect, c, scope, approach);
}

std::vector<ParameterSpec> Parameters() {
  return TaskVectorParameters(false, {
      DensityParameter("share of each task vector's entries to keep"),
      {.name = "gamma", .scope = ParameterScope::kModel, .default_value = 0.01, .min = 0, .max = 1,
       .help = "share of the entries, the largest, to drop as outliers"},
      RescaleParameter(false),
      {.name = "scope", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe, .choices = {"tensor", "row"},
       .help = "choose entries over a whole tensor, or over each row by itself (the paper's code)"}});
}

}  // namespace

MethodInfo Breadcrumbs() {
  return {.name = "breadcrumbs",
          .summary = "drop the largest and the smallest entries of task vectors, add up the rest",
          .source = "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, arXiv 2312.06795",
          .base = BaseUse::kRequired,
          .parameters = Parameters(),
          .by_rows = ByRows,
          .make = Make<false>};
}

MethodInfo BreadcrumbsTies() {
  return {.name = "breadcrumbs_ties",
          .summary = "drop the largest and the smallest entries of task vectors, elect signs, merge what agrees",
          .source = "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, arXiv 2312.06795; TIES: arXiv 2306.01708",
          .base = BaseUse::kRequired,
          .parameters = Parameters(),
          .by_rows = ByRows,
          .make = Make<true>};
}

}  // namespace braid
