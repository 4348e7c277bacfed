#include "ops/gram_merger.h"

#include <algorithm>
#include <numeric>

#include "ops/mergers_internal.h"
#include "ops/trigonometry.h"

namespace braid {
namespace {

// Writes sum of shares[i] times the lanes of models[i].
void WriteCombination(const LaneTile& tile, std::span<const size_t> models, std::span<const double> shares,
                      size_t start, size_t count, Scratch& scratch, DType type, std::byte* out, MergeCounts* counts) {
  const auto zeros = static_cast<size_t>(std::count(shares.begin(), shares.end(), 0.0));
  const bool as_it_is = zeros + 1 == shares.size() && std::count(shares.begin(), shares.end(), 1.0) == 1;
  const bool relative = tile.base.bytes != nullptr && !as_it_is;
  if (!relative && models.empty()) throw NoMerge("no model has a weight other than 0");
  const auto has_share = [&](size_t m) {
    for (size_t i = 0; i < models.size(); ++i)
      if (models[i] == m) return shares[i] != 0;
    return false;
  };
  scratch.terms.clear();
  for (size_t m : models) scratch.terms.push_back(scratch.wide[m]);
  for (size_t at = start; at < start + count; at += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, start + count - at);
    WidenBlock(tile, relative, at, n, scratch, has_share);
    CombineLanes(scratch.terms.data(), models.size(), shares.data(), relative ? scratch.base : nullptr, n,
                 RoundingFor(type), scratch.out);
    EncodeLanes(type, scratch.out, n, out + at * static_cast<size_t>(LaneBytes(type)), &counts->non_finite);
  }
}

size_t Pairs(size_t sources) { return sources * (sources + 1) / 2; }

// The square of products from those of the pairs i <= j, in the order of i, then j.
template <typename ProductOfPair>
void FillGram(std::span<const size_t> places, size_t sources, ProductOfPair product, double* gram) {
  const size_t size = places.size();
  for (size_t i = 0; i < size; ++i)
    for (size_t j = i; j < size; ++j) {
      const size_t a = places[i], b = places[j];
      gram[i * size + j] = gram[j * size + i] = product(a * sources - a * (a + 1) / 2 + b);
    }
}

}  // namespace

double Cosine(double xx, double yy, double xy) {
  // The square root of a square is exact, so that vectors which are the same, or opposite, have a cosine of 1, or -1.
  return std::clamp(xy / std::sqrt(xx * yy), -1.0, 1.0);
}

std::pair<double, double> SphericalShares(double cosine, double t) {
  const double angle = ArcCos(cosine), sine = Sin(angle);
  return {Sin((1 - t) * angle) / sine, Sin(t * angle) / sine};
}

std::vector<size_t> AllModels(const Coefficients& c) {
  std::vector<size_t> models(c.model.size());
  std::iota(models.begin(), models.end(), size_t{0});
  return models;
}

std::vector<size_t> ModelsWithWeight(const MethodInfo& method, const Coefficients& c) {
  const auto weight = method.At("weight");
  std::vector<size_t> models = AllModels(c);
  std::erase_if(models, [&](size_t m) { return c.model[m][weight] == 0; });
  return models;
}

GramMerger::GramMerger(const MethodInfo& method, std::vector<size_t> sources, bool by_rows, double alone)
    : lambda_(method), sources_(std::move(sources)), by_rows_(by_rows), alone_(alone) {
  if (sources_.size() > 1) return;
  models_ = sources_;
  shares_.assign(sources_.size(), alone_);
  solved_ = true;
}

// Per block: the products of every two sources, and the elements of each, which tell whether it is there.
RoundSpec GramMerger::round(size_t r) const {
  if (r == statistics_rounds()) return {.name = "merge"};
  return {.name = "inner products", .sums = Pairs(sources_.size()) + sources_.size()};
}

bool GramMerger::Reads(size_t r, size_t model, const Coefficients&) const {
  if (by_rows_ || r < statistics_rounds() || !solved_)
    return std::find(sources_.begin(), sources_.end(), model) != sources_.end();
  for (size_t i = 0; i < models_.size(); ++i)
    if (models_[i] == model) return shares_[i] != 0;
  return false;
}

// Of at most one reduction block; into scratch.products, one after the other, those of pairs i <= j.
void GramMerger::AddProductsOf(const LaneTile& tile, size_t start, size_t count, Scratch& scratch) const {
  const auto is_source = [&](size_t m) { return std::find(sources_.begin(), sources_.end(), m) != sources_.end(); };
  scratch.partial.assign(Pairs(sources_.size()) * kSumLanes, 0.0);
  for (size_t at = start; at < start + count; at += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, start + count - at);
    WidenBlock(tile, tile.base.bytes != nullptr, at, n, scratch, is_source);
    double* sums = scratch.partial.data();
    for (size_t i = 0; i < sources_.size(); ++i)
      for (size_t j = i; j < sources_.size(); ++j, sums += kSumLanes) {
        const size_t a = sources_[i], b = sources_[j];
        if (tile.models[a].bytes != nullptr && tile.models[b].bytes != nullptr)
          AddProducts(scratch.wide[a], scratch.wide[b], n, sums);
      }
  }
  for (size_t p = 0; p < Pairs(sources_.size()); ++p) scratch.products[p] += FoldSums(&scratch.partial[p * kSumLanes]);
}

void GramMerger::Accumulate(size_t, const Coefficients&, const LaneTile& tile, const uint64_t*, Scratch& scratch,
                            Accumulator*, BlockSums sums) const {
  const size_t pairs = Pairs(sources_.size());
  for (size_t start = 0; start < tile.count; start += kReductionBlock) {
    const size_t n = std::min(kReductionBlock, tile.count - start);
    const size_t block = (tile.first + start) / kReductionBlock;
    scratch.products.assign(pairs, 0.0);
    AddProductsOf(tile, start, n, scratch);
    for (size_t p = 0; p < pairs; ++p) sums.data[p * sums.stride + block] = scratch.products[p];
    for (size_t i = 0; i < sources_.size(); ++i)
      if (tile.models[sources_[i]].bytes != nullptr)
        sums.data[(pairs + i) * sums.stride + block] = static_cast<double>(n);
  }
}

void GramMerger::FindShares(const Gram& gram, std::span<double> shares) const {
  std::fill(shares.begin(), shares.end(), 0.0);
  if (gram.size() == 1) shares[0] = alone_;
  if (gram.size() > 1) Solve(gram, shares);
}

void GramMerger::Finish(size_t, Accumulator*, std::span<const double> sums) {
  const size_t pairs = Pairs(sources_.size());
  std::vector<size_t> places;   // among the sources, of those that are there
  for (size_t i = 0; i < sources_.size(); ++i)
    if (sums[pairs + i] > 0) places.push_back(i), models_.push_back(sources_[i]);
  std::vector<double> products(places.size() * places.size());
  FillGram(places, sources_.size(), [&](size_t pair) { return sums[pair]; }, products.data());
  shares_.resize(places.size());
  FindShares({models_, products}, shares_);
  solved_ = true;
}

void GramMerger::MergeRow(const LaneTile& tile, size_t start, size_t count, Scratch& scratch, DType type,
                          std::byte* out, double lambda, MergeCounts* counts) const {
  const size_t pairs = Pairs(sources_.size()), size = scratch.voters.size();
  scratch.products.assign(pairs + size * size, 0.0);
  for (size_t at = start; at < start + count; at += kReductionBlock)
    AddProductsOf(tile, at, std::min(kReductionBlock, start + count - at), scratch);
  double* const gram = scratch.products.data() + pairs;
  scratch.shares.resize(size);
  FillGram(scratch.places, sources_.size(), [&](size_t pair) { return scratch.products[pair]; }, gram);
  FindShares({scratch.voters, {gram, size * size}}, scratch.shares);
  for (double& share : scratch.shares) share *= lambda;
  WriteCombination(tile, scratch.voters, scratch.shares, start, count, scratch, type, out, counts);
}

void GramMerger::Merge(const Coefficients& c, const LaneTile& tile, const uint64_t*, Scratch& scratch, DType type,
                       std::byte* out, MergeCounts* counts) const {
  const double lambda = lambda_.Of(c, tile);
  if (!by_rows_) {
    scratch.shares = shares_;
    for (double& share : scratch.shares) share *= lambda;
    return WriteCombination(tile, models_, scratch.shares, 0, tile.count, scratch, type, out, counts);
  }
  scratch.voters.clear(), scratch.places.clear();
  for (size_t i = 0; i < sources_.size(); ++i)
    if (tile.models[sources_[i]].bytes != nullptr) scratch.voters.push_back(sources_[i]), scratch.places.push_back(i);
  const size_t row = tile.tensor.row;
  for (size_t start = 0; start < tile.count; start += row)
    MergeRow(tile, start, row, scratch, type, out, lambda, counts);
}

}  // namespace braid
