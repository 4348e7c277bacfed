#include "tests/ops/merge_driver.h"

#include <algorithm>
#include <numeric>

#include "tests/ops/reference.h"

namespace braid::test {
namespace {

struct TileJob {
  size_t tensor = 0;
  uint64_t first = 0;
  size_t count = 0;
  std::vector<uint64_t> claims = {}, grants = {};
};

class Driver {
 public:
  Driver(const MethodInfo& method, const std::vector<ScopeTensor>& tensors, const DriveOptions& options,
         Random& random)
      : method_(method), tensors_(tensors), options_(options), random_(random) {
    num_models_ = tensors[0].models.size();
    order_.resize(tensors.size());
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::sort(order_.begin(), order_.end(),
              [&](size_t a, size_t b) { return tensors[a].name < tensors[b].name; });
    uint64_t elements = 0;
    for (size_t t : order_) {
      elements += tensors[t].elements;
      const size_t step = options.blocks_per_tile * BlockOf(tensors[t]);
      for (size_t first = 0; first < tensors[t].elements; first += step)
        jobs_.push_back({.tensor = t, .first = first, .count = std::min(step, tensors[t].elements - first)});
    }
    elements_ = elements;
    const Approach sampled = tensors.size() == 1 && random.Chance(0.6) ? Approach::kDraft : Approach::kSampled;
    const Approach any = random.Chance(0.3) ? Approach::kPlain : sampled;
    merger_ = Make(options.approach.value_or(any));
    if (merger_->DecisionBytes() > 0 && random.Chance(0.5)) merger_->KeepDecisions();
    size_t workspace = 0;
    for (size_t r = 0; r <= merger_->statistics_rounds(); ++r)
      workspace = std::max(workspace, merger_->round(r).scratch_bytes);
    for (size_t w = 0; w < options.workers; ++w) scratch_.push_back(std::make_unique<Scratch>(num_models_, workspace));
    for (const ScopeTensor& tensor : tensors) {  // every source at an odd address
      bytes_.emplace_back();
      bytes_.back().push_back(Skewed(tensor.base));
      for (const Source& model : tensor.models) bytes_.back().push_back(Skewed(model));
    }
  }

  Driven Run() {
    Driven driven;
    for (size_t r = 0; r < merger_->statistics_rounds(); ++r) {
      if (!merger_->round(r).draft) {
        RunStatistics(r);
      } else if (RunDraft(r, &driven)) {
        driven.drafted = true;
      } else {  // anew
        merger_ = Make(Approach::kPlain);
        driven = Driven();
        r = SIZE_MAX;
      }
    }
    if (!driven.drafted) driven = RunMerge(merger_->statistics_rounds());
    driven.entries = merger_->entries();
    driven.kept = merger_->kept();
    driven.norms = merger_->norms();
    return driven;
  }

 private:
  // Those of the first tensor, but a weight that is 0 there counts as one that is not, if any tensor has one.
  Coefficients CoefficientsOfScope() const {
    Coefficients shared = tensors_[order_[0]].coefficients;
    const int weight = method_.IndexOf("weight");
    for (size_t m = 0; weight >= 0 && m < num_models_; ++m)
      for (const ScopeTensor& tensor : tensors_)
        if (const double w = tensor.coefficients.model[m][static_cast<size_t>(weight)]; w != 0)
          shared.model[m][static_cast<size_t>(weight)] = w;
    return shared;
  }

  std::unique_ptr<Merger> Make(Approach approach) const {
    TensorFacts facts{.elements = elements_};
    if (tensors_.size() == 1) facts = FactsOf(tensors_[0]);
    return method_.make(method_, CoefficientsOfScope(), facts, approach);
  }

  static std::vector<std::byte> Skewed(const Source& source) {
    std::vector<std::byte> bytes = source.bytes;
    if (!bytes.empty()) bytes.insert(bytes.begin(), std::byte{0});
    return bytes;
  }

  // The tile as round r may see it: only the sources that it reads.
  LaneTile TileOf(const TileJob& job, size_t r, std::vector<EncodedLanes>& models) const {
    const ScopeTensor& tensor = tensors_[job.tensor];
    const auto lanes = [&](const Source& source, size_t which) -> EncodedLanes {
      const std::vector<std::byte>& bytes = bytes_[job.tensor][which];
      if (bytes.empty()) return {.type = source.type};
      return {.type = source.type,
              .bytes = bytes.data() + 1 + job.first * static_cast<size_t>(LaneBytes(source.type))};
    };
    models.clear();
    bool any = false;
    for (size_t m = 0; m < num_models_; ++m) {
      const bool reads = merger_->Reads(r, m, tensor.coefficients);
      models.push_back(reads ? lanes(tensor.models[m], m + 1) : EncodedLanes{});
      any = any || reads;
    }
    const bool wants_base = (method_.base == BaseUse::kRequired || !tensor.base.bytes.empty()) &&
                            (any || r == merger_->statistics_rounds());
    return {.first = job.first,
            .count = job.count,
            .tensor = FactsOf(tensor),
            .base = wants_base ? lanes(tensor.base, 0) : EncodedLanes{},
            .models = models};
  }

  std::vector<size_t> Shuffled() {
    std::vector<size_t> jobs(jobs_.size());
    std::iota(jobs.begin(), jobs.end(), size_t{0});
    std::shuffle(jobs.begin(), jobs.end(), random_);
    return jobs;
  }

  bool Wanted(const TileJob& job, size_t r) const {
    for (size_t m = 0; m < num_models_; ++m)
      if (merger_->Reads(r, m, tensors_[job.tensor].coefficients)) return true;
    return false;
  }

  // Claims in any order, grants in the order of the index.
  void HandOut(size_t r) {
    std::vector<EncodedLanes> models;
    for (size_t j : Shuffled()) {
      TileJob& job = jobs_[j];
      job.claims.assign(num_models_ * merger_->claims_per_model(), 0);
      job.grants.assign(job.claims.size(), 0);
      if (!Wanted(job, r)) continue;
      merger_->CountClaims(tensors_[job.tensor].coefficients, TileOf(job, r, models),
                           *scratch_[random_.Below(options_.workers)], job.claims.data());
    }
    for (size_t i = 0; i < num_models_ * merger_->claims_per_model(); ++i) {
      uint64_t left = merger_->Quota(i);
      if (left == Merger::kNoQuota) continue;
      for (TileJob& job : jobs_) {
        job.grants[i] = std::min(left, job.claims[i]);
        left -= job.grants[i];
      }
    }
  }

  // What round r is to see: all tiles, or, for a sample, short runs from each of them.
  std::vector<TileJob> JobsOf(const RoundSpec& spec) {
    if (!spec.sample) return jobs_;
    std::vector<TileJob> runs;
    constexpr size_t kRun = 32;
    const size_t stride = random_.OneOf<size_t>({32, 96, 480, 2048});
    for (const TileJob& job : jobs_)
      for (size_t at = 0; at + kRun <= job.count; at += stride)
        runs.push_back({.tensor = job.tensor, .first = job.first + at, .count = kRun});
    return runs;
  }

  // Into driven->tensors; false: start anew.
  bool RunDraft(size_t r, Driven* driven) {
    const auto size = static_cast<size_t>(LaneBytes(options_.type));
    StartTensors(driven);
    std::vector<OpenElements> open(jobs_.size());
    std::vector<EncodedLanes> models;
    for (size_t j : Shuffled()) {
      const TileJob& job = jobs_[j];
      open[j] = OpenElements(&pool_, num_models_ * merger_->claims_per_model());
      if (!merger_->Draft(tensors_[0].coefficients, TileOf(job, r, models), *scratch_[random_.Below(options_.workers)],
                          options_.type, driven->tensors[0].data() + job.first * size, &open[j], &driven->counts))
        return false;
    }
    std::vector<const OpenElements*> in_order;
    for (const OpenElements& elements : open) in_order.push_back(&elements);
    if (!merger_->FinishDraft(in_order)) return false;
    for (size_t j : Shuffled())
      merger_->Settle(tensors_[0].coefficients, open[j], jobs_[j].first, *scratch_[random_.Below(options_.workers)],
                      options_.type, driven->tensors[0].data() + jobs_[j].first * size, &driven->counts);
    FinishTensors(driven);
    return true;
  }

  void RunStatistics(size_t r) {
    const RoundSpec spec = merger_->round(r);
    if (spec.ordered) HandOut(r);
    std::vector<std::unique_ptr<Accumulator>> accumulators;
    for (size_t w = 0; w < options_.workers; ++w) {
      accumulators.push_back(merger_->NewAccumulator(r));
    }
    std::vector<std::vector<double>> sums;  // per tensor
    for (const ScopeTensor& tensor : tensors_) sums.emplace_back(spec.sums * Blocks(tensor), 0.0);
    std::vector<EncodedLanes> models;
    std::vector<TileJob> jobs = JobsOf(spec);
    std::shuffle(jobs.begin(), jobs.end(), random_);
    for (const TileJob& job : jobs) {
      if (!Wanted(job, r)) continue;
      const size_t worker = random_.Below(options_.workers);
      const BlockSums room =
          spec.sums == 0 ? BlockSums{} : BlockSums{sums[job.tensor].data(), Blocks(tensors_[job.tensor])};
      merger_->Accumulate(r, tensors_[job.tensor].coefficients, TileOf(job, r, models),
                          spec.ordered ? job.grants.data() : nullptr, *scratch_[worker],
                          accumulators[worker].get(), room);
    }
    std::shuffle(accumulators.begin(), accumulators.end(), random_);
    // Into a fresh one, or into one that has counted itself.
    std::unique_ptr<Accumulator> total = random_.Chance(0.5) ? merger_->NewAccumulator(r) : nullptr;
    for (auto& accumulator : accumulators) {
      if (total == nullptr)
        total = std::move(accumulator);
      else
        total->Add(accumulator.get());
    }
    std::vector<double> totals(spec.sums, 0.0);
    for (size_t q = 0; q < spec.sums; ++q) {
      for (size_t t : order_) {
        double sum = 0;
        for (size_t b = 0; b < Blocks(tensors_[t]); ++b) sum += sums[t][q * Blocks(tensors_[t]) + b];
        totals[q] += sum;
      }
    }
    merger_->Finish(r, total.get(), totals);
  }

  Driven RunMerge(size_t r) {
    const bool ordered = merger_->round(r).ordered;
    if (ordered) HandOut(r);
    Driven driven;
    const auto size = static_cast<size_t>(LaneBytes(options_.type));
    StartTensors(&driven);
    std::vector<EncodedLanes> models;
    for (size_t j : Shuffled()) {
      const TileJob& job = jobs_[j];
      merger_->Merge(tensors_[job.tensor].coefficients, TileOf(job, r, models),
                     ordered ? job.grants.data() : nullptr, *scratch_[random_.Below(options_.workers)],
                     options_.type, driven.tensors[job.tensor].data() + job.first * size, &driven.counts);
    }
    FinishTensors(&driven);
    return driven;
  }

  static constexpr auto kGuard = std::byte{0x5a};
  static constexpr size_t kGuards = 64;

  void StartTensors(Driven* driven) const {
    driven->tensors.clear();
    for (const ScopeTensor& tensor : tensors_)
      driven->tensors.emplace_back(tensor.elements * static_cast<size_t>(LaneBytes(options_.type)) + kGuards, kGuard);
  }
  void FinishTensors(Driven* driven) const {
    const auto size = static_cast<size_t>(LaneBytes(options_.type));
    for (size_t t = 0; t < tensors_.size(); ++t) {
      std::vector<std::byte>& bytes = driven->tensors[t];
      const auto end = bytes.begin() + static_cast<ptrdiff_t>(tensors_[t].elements * size);
      EXPECT_EQ(std::count(end, bytes.end(), kGuard), static_cast<ptrdiff_t>(kGuards))
          << "written past the end";
      bytes.erase(end, bytes.end());
    }
  }

  size_t Blocks(const ScopeTensor& tensor) const {
    const size_t block = BlockOf(tensor);
    return (tensor.elements + block - 1) / block;
  }
  // What tiles are multiples of, and sums are of.
  size_t BlockOf(const ScopeTensor& tensor) const {
    const size_t unit = method_.TileUnit(tensor.coefficients, FactsOf(tensor));
    return unit == 0 ? kReductionBlock : unit;
  }

  const MethodInfo& method_;
  const std::vector<ScopeTensor>& tensors_;
  const DriveOptions& options_;
  Random& random_;
  size_t num_models_ = 0;
  std::vector<size_t> order_;  // tensors by name
  std::vector<TileJob> jobs_;  // in the order of the index
  uint64_t elements_ = 0;
  OpenPool pool_{tensors_[0].models.size() + 1, random_.Chance(0.9) ? uint64_t{64} << 20 : 100'000};
  std::unique_ptr<Merger> merger_;
  std::vector<std::unique_ptr<Scratch>> scratch_;
  std::vector<std::vector<std::vector<std::byte>>> bytes_;  // [tensor][0: base, m + 1: model]
};

}  // namespace

void ExpectBytes(const std::vector<float>& expected, DType type, const std::vector<std::byte>& bytes) {
  const std::vector<std::byte> wanted = reference::Encode(type, expected);
  ASSERT_EQ(bytes.size(), wanted.size());
  if (bytes == wanted) return;
  const auto at = std::mismatch(bytes.begin(), bytes.end(), wanted.begin()).first - bytes.begin();
  const size_t i = static_cast<size_t>(at) / static_cast<size_t>(LaneBytes(type));
  FAIL() << "element " << i << " of " << expected.size() << " as " << DTypeName(type) << ": "
         << reference::Decode(type, bytes)[i] << " instead of " << expected[i];
}

TensorFacts FactsOf(const ScopeTensor& tensor) {
  return {.elements = tensor.elements, .row = tensor.row > 0 ? tensor.row : tensor.elements, .slice = tensor.slice,
          .key = std::hash<std::string>()(tensor.name)};
}

Driven Drive(const MethodInfo& method, const std::vector<ScopeTensor>& tensors, const DriveOptions& options,
             Random& random) {
  return Driver(method, tensors, options, random).Run();
}

Coefficients DefaultCoefficients(const MethodInfo& method, size_t num_models) {
  Coefficients coefficients;
  for (const ParameterSpec& parameter : method.parameters)
    coefficients.shared.push_back(parameter.default_value);
  coefficients.model.assign(num_models, coefficients.shared);
  return coefficients;
}

void SetShared(const MethodInfo& method, Coefficients& coefficients, std::string_view name, double value) {
  ASSERT_GE(method.IndexOf(name), 0) << name;
  coefficients.shared[method.At(name)] = value;
}

void SetModel(const MethodInfo& method, Coefficients& coefficients, size_t model, std::string_view name,
              double value) {
  ASSERT_GE(method.IndexOf(name), 0) << name;
  coefficients.model[model][method.At(name)] = value;
}

}  // namespace braid::test
