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
  return c.model[model][static_cast<size_t>(method.IndexOf("gamma"))];
}

}  // namespace

KeptPlaces KeptPlacesOf(double density, double gamma, uint64_t n) {
  if (density >= 1) return {0, n};
  const uint64_t kept = Part(density, n), first = std::min(Part(gamma, n), n - kept);
  return {first, first + kept};
}

// --- over whole tensors -----------------------------------------------------------------------------------

BreadcrumbsMerger::BreadcrumbsMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope)
    : SparseMerger(method, elect, c, scope, false), elements_(scope.elements), trails_(models()), slot_of_(models()) {
  for (size_t m = 0; m < models(); ++m) {
    if (!active(m)) continue;
    const KeptPlaces places = KeptPlacesOf(density(m), GammaOf(method, c, m), elements_);
    Trail& trail = trails_[m];
    trail.kept = places.end - places.first;
    trail.ends[0].place = places.first, trail.ends[1].place = places.end;
    for (End& end : trail.ends) {
      end.sought = trail.kept > 0 && end.place > 0 && end.place < elements_;
      end.cut = end.place == 0 || trail.kept == 0 ? Cut{kNanKey, 0} : Cut{};   // none; or all
    }
    if (trail.sought()) slot_of_[m] = slots_++;
    norms_ |= rescale() && sparse(m) && trail.kept > 0;
  }
  selection_rounds_ = slots_ > 0 ? 2 : 0;
}

RoundSpec BreadcrumbsMerger::round(size_t r) const {
  if (r >= selection_rounds_) return SparseMerger::round(r);
  if (r == 0) return {.name = "high halves", .accumulator_bytes = Histograms::Bytes(slots_, kHighBins, elements_)};
  return {.name = "low halves", .accumulator_bytes = Histograms::Bytes(kEnds * slots_, kLowBins, elements_)};
}

bool BreadcrumbsMerger::Reads(size_t r, size_t model, const Coefficients& c) const {
  return r < selection_rounds_ ? trails_[model].sought() : SparseMerger::Reads(r, model, c);
}

std::unique_ptr<Accumulator> BreadcrumbsMerger::NewAccumulator(size_t r) const {
  if (r >= selection_rounds_) return nullptr;
  if (r == 0) return std::make_unique<Histograms>(slots_, kHighBins);
  return std::make_unique<Histograms>(kEnds * slots_, kLowBins);
}

// One model after the other within a reduction block: its histograms then stay in L2.
void BreadcrumbsMerger::Accumulate(size_t r, const Coefficients& c, const LaneTile& tile, const uint64_t* grants,
                                   Scratch& scratch, Accumulator* accumulator, BlockSums sums) const {
  if (r >= selection_rounds_) return SparseMerger::Accumulate(r, c, tile, grants, scratch, accumulator, sums);
  auto& histograms = static_cast<Histograms&>(*accumulator);
  histograms.WillCount(tile.count);
  for (size_t block = 0; block < tile.count; block += kReductionBlock) {
    const size_t block_end = std::min(tile.count, block + kReductionBlock);
    for (size_t m = 0; m < models(); ++m) {
      if (tile.models[m].bytes == nullptr || !trails_[m].sought()) continue;
      const End* const ends = trails_[m].ends;
      const bool same_bin = ends[0].sought && ends[1].sought && ends[0].bin.high == ends[1].bin.high;
      for (size_t start = block; start < block_end; start += kBlockLanes) {
        const size_t n = std::min(kBlockLanes, block_end - start);
        const float* const d = TaskVectorAt(tile, m, start, n, scratch);
        if (r == 0) CountHighHalves(d, n, histograms.Row(slot_of_[m]));
        for (size_t e = 0; r == 1 && e < kEnds; ++e)
          if (ends[e].sought && !(e == 1 && same_bin)) CountLowHalves(d, n, ends[e].bin.high, histograms.Row(kEnds * slot_of_[m] + e));
      }
    }
  }
}

void BreadcrumbsMerger::Finish(size_t r, Accumulator* accumulator, std::span<const double> sums) {
  if (r >= selection_rounds_) return SparseMerger::Finish(r, accumulator, sums);
  if (r == 0) FinishHigh(static_cast<const Histograms&>(*accumulator));
  else FinishLow(static_cast<const Histograms&>(*accumulator));
}

void BreadcrumbsMerger::FinishHigh(const Histograms& histograms) {
  for (size_t m = 0; m < models(); ++m) {
    if (!trails_[m].sought()) continue;
    const std::vector<uint64_t> bins = histograms.Totals(slot_of_[m]);
    for (End& end : trails_[m].ends)
      if (end.sought) end.bin = FindCriticalBin(bins.data(), end.place);
  }
}

void BreadcrumbsMerger::FinishLow(const Histograms& histograms) {
  for (size_t m = 0; m < models(); ++m) {
    std::vector<uint64_t> bins;
    for (size_t e = 0; e < kEnds; ++e) {
      End& end = trails_[m].ends[e];
      if (!end.sought) continue;
      const bool counted = e == 1 && trails_[m].ends[0].sought && trails_[m].ends[0].bin.high == end.bin.high;
      if (!counted) bins = histograms.Totals(kEnds * slot_of_[m] + e);
      const Threshold threshold = FindThreshold(end.bin, bins.data(), end.place);
      end.cut = {.key = threshold.key, .index = UINT64_MAX};
      // It does not matter which zeros stay.
      const uint64_t equals = end.place - threshold.above;
      if (equals < threshold.equal && threshold.key > 0) end.quota = equals;
    }
  }
}

bool BreadcrumbsMerger::ordered() const {
  for (const Trail& trail : trails_)
    for (const End& end : trail.ends)
      if (end.quota != kNoQuota) return true;
  return false;
}

void BreadcrumbsMerger::CountClaims(const Coefficients&, const LaneTile& tile, Scratch& scratch, uint64_t* claims) const {
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
uint64_t BreadcrumbsMerger::CutIndex(const LaneTile& tile, size_t m, uint32_t key, uint64_t granted, Scratch& scratch) const {
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

BreadcrumbsRowMerger::BreadcrumbsRowMerger(const MethodInfo& method, bool elect, const Coefficients& c, const TensorFacts& scope)
    : SparseMerger(method, elect, c, scope, true), ranks_(models(), row(), UnitLanes()), places_(models()) {
  for (size_t m = 0; m < models(); ++m) {
    if (!active(m)) continue;
    places_[m] = KeptPlacesOf(density(m), GammaOf(method, c, m), row());
    norms_ |= rescale() && sparse(m) && places_[m].first < places_[m].end;
    entries_ += scope.elements;
    kept_ += scope.elements / row() * (places_[m].end - places_[m].first);
  }
}

void BreadcrumbsRowMerger::Prepare(const LaneTile& tile, const uint64_t*, const LaneUnit& unit, Scratch& scratch) const {
  for (size_t m = 0; m < models(); ++m)
    if (tile.models[m].bytes != nullptr && sparse(m)) ranks_.Find(tile, m, unit, RowRanks::Order::kLargestFirst, scratch);
}

void BreadcrumbsRowMerger::Keep(const LaneTile&, size_t m, const LaneUnit& unit, size_t start, size_t n, Scratch& scratch,
                                float* d) const {
  const uint32_t* const ranks = ranks_.Of(m, scratch) + (start - unit.start);
  const auto first = static_cast<uint32_t>(places_[m].first), kept = static_cast<uint32_t>(places_[m].end) - first;
  for (size_t i = 0; i < n; ++i) {
    const bool stays = ranks[i] - first < kept || std::isnan(d[i]);
    d[i] = stays ? d[i] : 0.0f;
  }
}

// --- declarations -----------------------------------------------------------------------------------------

namespace {

bool ByRows(const MethodInfo& method, const Coefficients& c) { return c.shared[static_cast<size_t>(method.IndexOf("scope"))] != 0; }

template <bool kElect>
std::unique_ptr<Merger> Make(const MethodInfo& method, const Coefficients& c, const TensorFacts& scope, Approach) {
  if (method.WorksByRows(c)) return std::make_unique<BreadcrumbsRowMerger>(method, kElect, c, scope);
  return std::make_unique<BreadcrumbsMerger>(method, kElect, c, scope);
}

std::vector<ParameterSpec> Parameters() {
  std::vector<ParameterSpec> parameters = TaskVectorParameters(false);
  const std::vector<ParameterSpec> own = {
      DensityParameter("share of each task vector's entries to keep"),
      {.name = "gamma", .scope = ParameterScope::kModel, .default_value = 0.01, .min = 0, .max = 1,
       .help = "share of the entries, the largest, to drop as outliers"},
      RescaleParameter(false),
      {.name = "scope", .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe, .choices = {"tensor", "row"},
       .help = "choose entries over a whole tensor, or over each row by itself (the paper's code)"}};
  parameters.insert(parameters.end(), own.begin(), own.end());
  return parameters;
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
