// dare, breadcrumbs, della and metagpt, driven as the pipeline drives them: equal to the scalar reference bit for bit,
// and what the random ones promise of their numbers.
#include <chrono>

#include "ops/merger.h"
#include "tests/ops/merge_driver.h"
#include "tests/ops/sparse_reference.h"

namespace braid {
namespace {

using reference::Sparsifier;
using reference::SparseMerge;
using test::Drive;
using test::ExpectBytes;
using test::Driven;
using test::kLaneTypes;
using test::Random;
using test::ScopeTensor;
using test::SetModel;
using test::SetShared;
using test::Source;
using test::SourceOf;

std::string NameOf(const SparseMerge& merge) {
  switch (merge.sparsifier) {
    case Sparsifier::kDare: return merge.elect ? "dare_ties" : "dare_linear";
    case Sparsifier::kBreadcrumbs: return merge.elect ? "breadcrumbs_ties" : "breadcrumbs";
    case Sparsifier::kDella: break;
  }
  return merge.elect ? "della" : "della_linear";
}

// The same merge for the driver. Lanes are rounded to `types` first, in merge, too.
ScopeTensor TensorOf(SparseMerge* merge, const std::string& name, const std::vector<DType>& types) {
  const MethodInfo& method = *FindMethod(NameOf(*merge));
  ScopeTensor tensor(name, merge->base.size());
  tensor.row = merge->row;
  merge->tensor_key = test::FactsOf(tensor).key;
  tensor.base = SourceOf(types[0], merge->base);
  merge->base = reference::Decode(types[0], tensor.base.bytes);
  Coefficients c = test::DefaultCoefficients(method, merge->models.size());
  SetShared(method, c, "lambda", merge->lambda);
  SetShared(method, c, "normalize", merge->normalize);
  SetShared(method, c, "rescale", merge->rescale);
  if (method.Find("seed") != nullptr) SetShared(method, c, "seed", static_cast<double>(merge->seed));
  if (method.Find("rescale_norm") != nullptr) SetShared(method, c, "rescale_norm", merge->paper);
  if (method.Find("scope") != nullptr) SetShared(method, c, "scope", merge->by_rows);
  for (size_t m = 0; m < merge->models.size(); ++m) {
    reference::SparseModel& model = merge->models[m];
    tensor.models.push_back(SourceOf(types[m + 1], model.lanes));
    model.lanes = reference::Decode(types[m + 1], tensor.models.back().bytes);
    SetModel(method, c, m, "weight", model.weight);
    SetModel(method, c, m, "density", model.density);
    if (method.Find("gamma") != nullptr) SetModel(method, c, m, "gamma", model.gamma);
    if (method.Find("epsilon") != nullptr) SetModel(method, c, m, "epsilon", model.epsilon);
  }
  if (method.check != nullptr) {
    EXPECT_EQ(method.check(method, c), "");
  }
  tensor.coefficients = c;
  return tensor;
}

// --- random cases -----------------------------------------------------------------------------------------

enum class Data { kGaussian, kCoarse, kEqual, kSparse, kTiny, kCount };

float Difference(Random& random, Data data) {
  switch (data) {
    case Data::kGaussian: return static_cast<float>(random.Normal() * 0.02);
    case Data::kCoarse: return static_cast<float>(static_cast<int>(random.Below(11)) - 5) / 64;
    case Data::kEqual: return random.Chance(0.5) ? 0.25f : -0.25f;
    case Data::kSparse: return random.Chance(0.05) ? 0.5f : 0.0f;
    case Data::kTiny: return static_cast<float>(random.Normal() * 1e-14);
    case Data::kCount: break;
  }
  return 0;
}

SparseMerge RandomMerge(Random& random, Sparsifier sparsifier, bool large) {
  SparseMerge merge{.sparsifier = sparsifier};
  const size_t rows = random.OneOf<size_t>({1, 2, 3, 7, 40});
  merge.row = random.OneOf<size_t>({1, 2, 3, 15, 16, 17, 64, 100, 320, 333, 511, 1000, 1024, 1025, 2048, 2500});
  if (large) merge.row = 60'000 + random.Below(90'000);
  const size_t n = merge.row * (large ? 1 + random.Below(2) : rows);
  merge.by_rows = random.Chance(0.5);
  merge.seed = random() >> random.OneOf<int>({11, 40, 63});
  const auto flip = [&] { return random.Chance(0.5); };
  merge.rescale = flip(), merge.paper = flip(), merge.elect = flip(), merge.normalize = flip();
  if (sparsifier == Sparsifier::kBreadcrumbs) merge.paper = false;
  merge.lambda = random.OneOf({1.0f, 1.0f, 0.4f, -1.5f});
  const auto data = static_cast<Data>(random.Below(static_cast<size_t>(Data::kCount)));
  const double odd = random.OneOf({0.0, 0.0, 0.01});
  const auto sprinkle = [&](float x) {
    return random.Chance(odd) ? random.OneOf<float>({NAN, INFINITY, -INFINITY, 3e38f, 0.0f, -0.0f}) : x;
  };
  std::vector<float> clean(n);
  for (float& x : clean)
    x = data == Data::kTiny ? static_cast<float>(random.Normal() * 1e-14)
                            : static_cast<float>(static_cast<int>(random.Below(33)) - 16) / 16;
  for (float x : clean) merge.base.push_back(sprinkle(random.Chance(0.01) ? -0.0f : x));
  for (size_t m = 1 + random.Below(6); m > 0; --m) {
    reference::SparseModel model{.weight = random.OneOf({1.0, 0.5, -0.4, 0.0, 0.3, random.Normal()})};
    model.density = random.OneOf({1.0, 0.2, 0.5, 0.9, 0.01, 0.0, std::uniform_real_distribution<double>(0, 1)(random)});
    model.gamma = random.OneOf({0.01, 0.0, 0.1, 0.6, 1.0});
    const double most = std::min(model.density, 1 - model.density);   // della: probabilities, without 0 and 1
    model.epsilon = most > 0 ? most * random.OneOf({0.0, 0.3, 0.9, 0.999999}) : 0.15;
    for (float x : clean) model.lanes.push_back(sprinkle(x + Difference(random, data)));
    merge.models.push_back(std::move(model));
  }
  return merge;
}

void ExpectTheReference(Sparsifier sparsifier) {
  Random random;
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::steady_clock::now() - start > std::chrono::seconds(2); };
  int cases = 0;
  for (; (cases < 120 || !spent()) && !testing::Test::HasFailure(); ++cases) {
    SparseMerge merge = RandomMerge(random, sparsifier, cases % 20 == 0);
    SCOPED_TRACE("case " + std::to_string(cases) + ", " + NameOf(merge) + " of rows of " + std::to_string(merge.row));
    std::vector<DType> types;
    const DType one = kLaneTypes[random.Below(4)];
    const bool mixed = random.Chance(0.3);
    for (size_t i = 0; i <= merge.models.size(); ++i) types.push_back(mixed ? kLaneTypes[random.Below(4)] : one);
    const ScopeTensor tensor = TensorOf(&merge, "model.layers.3.w", types);
    const test::DriveOptions drive{.blocks_per_tile = 1 + random.Below(5), .workers = 1 + random.Below(4),
                                   .type = kLaneTypes[random.Below(4)]};
    uint64_t conflicts = 0;
    const std::vector<float> expected = reference::MergeSparse(merge, &conflicts);
    const Driven driven = Drive(*FindMethod(NameOf(merge)), {tensor}, drive, random);
    ExpectBytes(expected, drive.type, driven.tensors[0]);
    EXPECT_EQ(driven.counts.conflicts, conflicts);
  }
  std::printf("[  CASES   ] %d\n", cases);
}

TEST(Dare, EqualsTheReference) { ExpectTheReference(Sparsifier::kDare); }
TEST(Breadcrumbs, EqualsTheReference) { ExpectTheReference(Sparsifier::kBreadcrumbs); }
TEST(Della, EqualsTheReference) { ExpectTheReference(Sparsifier::kDella); }

// Equal magnitudes at both ends of what stays, over several tiles.
TEST(Breadcrumbs, EqualsAtBothEndsGoByIndex) {
  Random random;
  for (bool rescale : {false, true}) {
    SparseMerge merge{.sparsifier = Sparsifier::kBreadcrumbs, .row = 300'000, .rescale = rescale};
    merge.base.assign(300'000, 0.0f);
    reference::SparseModel model{.density = 0.3, .gamma = 0.2};
    for (size_t i = 0; i < merge.base.size(); ++i) model.lanes.push_back(random.OneOf({1.0f, -1.0f, 0.5f, 0.0f}));
    merge.models = {model, model};
    merge.models[1].weight = 0.5, merge.models[1].density = 0.65, merge.models[1].gamma = 0.05;
    const ScopeTensor tensor = TensorOf(&merge, "w", {DType::kF32, DType::kF32, DType::kBF16});
    uint64_t conflicts = 0;
    const std::vector<float> expected = reference::MergeSparse(merge, &conflicts);
    const Driven driven = Drive(*FindMethod("breadcrumbs"), {tensor}, {.blocks_per_tile = 2, .workers = 3}, random);
    ExpectBytes(expected, DType::kF32, driven.tensors[0]);
    EXPECT_EQ(driven.entries, 600'000u);
    EXPECT_EQ(driven.kept, 90'000u + 195'000u);
  }
}

// Whichever way both ends are found. Gaussian entries have wide brackets in which many keys share a bin; where the
// entries grow along the tensor, or a few values make up all of them, samples say little.
TEST(Breadcrumbs, EveryApproachEqualsTheReference) {
  Random random;
  constexpr size_t kSize = 400'000;
  int drafted = 0;
  for (int data = 0; data < 3; ++data)
    for (bool elect : {false, true}) {
      SparseMerge merge{.sparsifier = Sparsifier::kBreadcrumbs, .row = kSize, .elect = elect};
      merge.base.assign(kSize, 0.25f);
      for (int m = 0; m < 3; ++m) {
        reference::SparseModel model{.weight = random.OneOf({1.0, 0.5, -0.4}),
                                     .density = random.OneOf({0.2, 0.5, 0.85}), .gamma = random.OneOf({0.01, 0.1})};
        for (size_t i = 0; i < kSize; ++i) {
          const double steps = static_cast<double>(random.Below(9)) - 4, along = static_cast<double>(i) / kSize;
          const double d = data == 0 ? random.Normal() : data == 1 ? steps : random.Normal() * along;
          model.lanes.push_back(0.25f + static_cast<float>(d / 64));
        }
        merge.models.push_back(model);
      }
      const DType type = random.OneOf({DType::kBF16, DType::kF16, DType::kF32});
      const ScopeTensor tensor = TensorOf(&merge, "w", {type, type, type, DType::kF32});
      uint64_t conflicts = 0;
      const std::vector<float> expected = reference::MergeSparse(merge, &conflicts);
      for (Approach approach : {Approach::kPlain, Approach::kSampled, Approach::kDraft}) {
        SCOPED_TRACE(testing::Message() << "data " << data << ", approach " << static_cast<int>(approach));
        const Driven driven = Drive(*FindMethod(NameOf(merge)), {tensor},
                                    {.blocks_per_tile = 2, .workers = 3, .approach = approach}, random);
        ExpectBytes(expected, DType::kF32, driven.tensors[0]);
        EXPECT_EQ(driven.counts.conflicts, conflicts);
        drafted += driven.drafted;
      }
    }
  EXPECT_GT(drafted, 0);
}

TEST(Breadcrumbs, KeepsWhatTheDensityAsksForRatherThanDropOutliers) {
  // 10 entries: gamma asks for 5 outliers, density for 8 that stay, so 2 are dropped.
  SparseMerge merge{.sparsifier = Sparsifier::kBreadcrumbs, .row = 10, .base = std::vector<float>(10)};
  merge.models = {{.lanes = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, .density = 0.8, .gamma = 0.5}};
  const ScopeTensor tensor = TensorOf(&merge, "w", {DType::kF32, DType::kF32});
  Random random;
  const Driven driven = Drive(*FindMethod("breadcrumbs"), {tensor}, {}, random);
  EXPECT_EQ(reference::Decode(DType::kF32, driven.tensors[0]), (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 0, 0}));
}

// --- rounds -----------------------------------------------------------------------------------------------

TEST(Sparse, RoundsAreThoseThatTheOptionsNeed) {
  const auto rounds = [](const char* name, double density, bool rescale, double paper) {
    const MethodInfo& method = *FindMethod(name);
    Coefficients c = test::DefaultCoefficients(method, 2);
    SetModel(method, c, 0, "density", density);
    SetShared(method, c, "rescale", rescale);
    if (method.Find("rescale_norm") != nullptr) SetShared(method, c, "rescale_norm", paper);
    return method.make(method, c, {.elements = 1000, .row = 10}, Approach::kPlain)->statistics_rounds();
  };
  for (const char* name : {"dare_linear", "dare_ties", "della", "della_linear"}) {
    EXPECT_EQ(rounds(name, 0.5, true, 0), 1u) << name;
    EXPECT_EQ(rounds(name, 0.5, true, 1), 0u) << name;
    EXPECT_EQ(rounds(name, 0.5, false, 0), 0u) << name;
    EXPECT_EQ(rounds(name, 1, true, 0), 0u) << name;
    EXPECT_EQ(rounds(name, 0, true, 0), 0u) << name;
  }
  EXPECT_EQ(rounds("breadcrumbs", 0.5, false, 0), 2u);
  EXPECT_EQ(rounds("breadcrumbs", 0.5, true, 0), 3u);
  EXPECT_EQ(rounds("breadcrumbs", 1, true, 0), 0u);
  EXPECT_EQ(rounds("breadcrumbs", 0.0001, true, 0), 0u);
}

TEST(Della, ProbabilitiesLieBetweenZeroAndOne) {
  const MethodInfo& method = *FindMethod("della");
  const auto wrong = [&](double density, double epsilon) {
    Coefficients c = test::DefaultCoefficients(method, 2);
    SetModel(method, c, 1, "density", density);
    SetModel(method, c, 1, "epsilon", epsilon);
    return !method.check(method, c).empty();
  };
  EXPECT_FALSE(wrong(0.5, 0.15));
  EXPECT_TRUE(wrong(0.15, 0.15));
  EXPECT_TRUE(wrong(0.85, 0.15));
  EXPECT_FALSE(wrong(1, 0.15));
  EXPECT_FALSE(wrong(0, 0.15));
}

// --- what is promised of random numbers -------------------------------------------------------------------

constexpr double kFar = 5;   // standard deviations: one in two million by chance

// The task vector that comes out of one model whose entries are `lanes`, over a base of zeros.
std::vector<float> TaskVector(Random& random, SparseMerge merge, const std::string& name = "w") {
  const ScopeTensor tensor = TensorOf(&merge, name, {DType::kF32, DType::kF32});
  const Driven driven = Drive(*FindMethod(NameOf(merge)), {tensor}, {.blocks_per_tile = 2, .workers = 2}, random);
  return reference::Decode(DType::kF32, driven.tensors[0]);
}

SparseMerge OneModel(Random& random, Sparsifier sparsifier, size_t n, size_t row, double density) {
  SparseMerge merge{.sparsifier = sparsifier, .row = row, .seed = random() >> 11, .base = std::vector<float>(n)};
  merge.models = {{.density = density}};
  for (size_t i = 0; i < n; ++i) merge.models[0].lanes.push_back(static_cast<float>(random.Normal()));
  return merge;
}

size_t NotZero(const std::vector<float>& lanes) {
  return lanes.size() - static_cast<size_t>(std::count(lanes.begin(), lanes.end(), 0.0f));
}

double Deviation(double hits, double n, double p) { return (hits - n * p) / std::sqrt(n * p * (1 - p)); }

TEST(Dare, KeepsItsShareAndTheNorm) {
  Random random;
  constexpr size_t kSize = 400'000;
  for (double density : {0.05, 0.3, 0.9}) {
    SparseMerge merge = OneModel(random, Sparsifier::kDare, kSize, kSize, density);
    merge.rescale = true;
    const std::vector<float> out = TaskVector(random, merge);
    EXPECT_LT(std::abs(Deviation(static_cast<double>(NotZero(out)), kSize, density)), kFar) << density;
    double before = 0, after = 0;
    for (float d : merge.models[0].lanes) before += std::fabs(d);
    for (float d : out) after += std::fabs(d);
    EXPECT_NEAR(after / before, 1, 1e-6);
  }
}

// The paper's rescaling: over many seeds an entry is on average what it was.
TEST(Dare, IsUnbiased) {
  Random random;
  constexpr size_t kSize = 3000;
  constexpr int kSeeds = 300;
  SparseMerge merge = OneModel(random, Sparsifier::kDare, kSize, kSize, 0.25);
  merge.rescale = merge.paper = true;
  std::vector<double> mean(kSize);
  for (int s = 0; s < kSeeds; ++s) {
    merge.seed = static_cast<uint64_t>(s);
    const std::vector<float> out = TaskVector(random, merge);
    for (size_t i = 0; i < kSize; ++i) mean[i] += out[i] / kSeeds;
  }
  double chi = 0;   // of squared deviations: kSize on average
  for (size_t i = 0; i < kSize; ++i) {
    const double d = merge.models[0].lanes[i], variance = d * d * (1 / 0.25 - 1) / kSeeds;
    chi += (mean[i] - d) * (mean[i] - d) / variance;
  }
  EXPECT_LT(std::abs(chi - kSize) / std::sqrt(2.0 * kSize), kFar);
}

TEST(Dare, ModelsAndTensorsAreDrawnApart) {
  Random random;
  constexpr size_t kSize = 300'000;
  constexpr double kDensity = 0.3;
  SparseMerge merge = OneModel(random, Sparsifier::kDare, kSize, kSize, kDensity);
  merge.models[0].lanes.assign(kSize, 1.0f);
  const std::vector<float> first = TaskVector(random, merge), again = TaskVector(random, merge);
  EXPECT_EQ(first, again);
  const auto together = [&](const std::vector<float>& other) {
    double both = 0;
    for (size_t i = 0; i < kSize; ++i) both += first[i] != 0 && other[i] != 0;
    return std::abs(Deviation(both, kSize, kDensity * kDensity));
  };
  EXPECT_LT(together(TaskVector(random, merge, "w2")), kFar);
  SparseMerge two = merge;
  two.models = {merge.models[0], merge.models[0]};
  two.models[0].weight = 1, two.models[1].weight = 4;
  const ScopeTensor tensor = TensorOf(&two, "w", {DType::kF32, DType::kF32, DType::kF32});
  std::vector<float> second = reference::Decode(DType::kF32,
                                                Drive(*FindMethod("dare_linear"), {tensor}, {}, random).tensors[0]);
  for (size_t i = 0; i < kSize; ++i) {
    ASSERT_EQ(second[i] == 1 || second[i] == 5, first[i] != 0);   // the first model's draws are as before
    second[i] = second[i] >= 4;
  }
  EXPECT_LT(together(second), kFar);
}

TEST(Della, LargerEntriesStayMoreOften) {
  Random random;
  constexpr size_t kRow = 1000, kRows = 400, kParts = 10;
  SparseMerge merge = OneModel(random, Sparsifier::kDella, kRow * kRows, kRow, 0.4);
  merge.models[0].epsilon = 0.3;
  const std::vector<float> out = TaskVector(random, merge);
  const std::vector<size_t> ranks = reference::Ranks(merge.models[0].lanes, kRow, false);
  std::vector<double> kept(kParts);
  for (size_t i = 0; i < out.size(); ++i) kept[ranks[i] * kParts / kRow] += out[i] != 0;
  double all = 0;
  for (size_t part = 0; part < kParts; ++part) {
    all += kept[part];
    const double p = 0.1 + 0.6 * (static_cast<double>(part) + 0.5) / kParts;   // on average
    EXPECT_LT(std::abs(Deviation(kept[part], kRow * kRows / kParts, p)), kFar) << part;
  }
  EXPECT_LT(std::abs(Deviation(all, kRow * kRows, 0.4)), kFar);
}

// Each entry divided by its own probability: the sum over a row is on average what it was.
TEST(Della, IsUnbiasedWhenDividedByProbability) {
  Random random;
  constexpr size_t kRow = 500, kRows = 600;
  SparseMerge merge = OneModel(random, Sparsifier::kDella, kRow * kRows, kRow, 0.5);
  merge.models[0].epsilon = 0.3;
  merge.rescale = merge.paper = true;
  const std::vector<float> out = TaskVector(random, merge);
  const std::vector<size_t> ranks = reference::Ranks(merge.models[0].lanes, kRow, false);
  double error = 0, variance = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double d = std::fabs(merge.models[0].lanes[i]), p = 0.2 + 0.6 * static_cast<double>(ranks[i]) / (kRow - 1);
    error += std::fabs(out[i]) - d;
    variance += d * d * (1 / p - 1);
  }
  EXPECT_LT(std::abs(error) / std::sqrt(variance), kFar);
}

// --- metagpt ----------------------------------------------------------------------------------------------

double SquaredNorm(const std::vector<float>& x, const std::vector<float>& base) {
  double total = 0;
  for (size_t block = 0; block < x.size(); block += 65'536) {
    double lane[16] = {};
    for (size_t i = block; i < std::min<size_t>(x.size(), block + 65'536); ++i) {
      const float d = x[i] - base[i];
      if (std::isfinite(d)) lane[i % 16] += static_cast<double>(d) * static_cast<double>(d);
    }
    for (size_t step = 8; step > 0; step /= 2)
      for (size_t i = 0; i < step; ++i) lane[i] += lane[i + step];
    total += lane[0];
  }
  return total;
}

TEST(MetaGpt, EqualsTheReference) {
  Random random;
  const MethodInfo& method = *FindMethod("metagpt");
  for (int c = 0; c < 60 && !testing::Test::HasFailure(); ++c) {
    SCOPED_TRACE("case " + std::to_string(c));
    const size_t models = 1 + random.Below(5);
    const double odd = random.OneOf({0.0, 0.0, 0.01}), lambda = random.OneOf({1.0, 0.7});
    std::vector<ScopeTensor> tensors;
    std::vector<std::vector<float>> base;
    std::vector<std::vector<std::vector<float>>> lanes;   // [tensor][model]
    std::vector<double> norms(models);
    for (const char* name : {"a", "b", "c"}) {   // sums are added in this order
      ScopeTensor& tensor = tensors.emplace_back(name,
                                                 c % 10 == 0 ? 150'000 + random.Below(100) : 1 + random.Below(3000));
      std::vector<float> x(tensor.elements);
      const DType type = kLaneTypes[random.Below(4)];
      const auto add = [&](Source& source, double scale, const std::vector<float>* from) {
        for (size_t i = 0; i < x.size(); ++i) {
          x[i] = (from == nullptr ? 0.0f : (*from)[i]) + static_cast<float>(random.Normal() * scale);
          if (random.Chance(odd)) x[i] = random.OneOf<float>({NAN, INFINITY, -0.0f});
        }
        source = SourceOf(type, x);
        return reference::Decode(type, source.bytes);
      };
      base.push_back(add(tensor.base, 1, nullptr));
      lanes.emplace_back();
      for (size_t m = 0; m < models; ++m) {
        lanes.back().push_back(add(tensor.models.emplace_back(), c % 7 == 3 ? 0 : 0.01 * static_cast<double>(m + 1),
                                   &base.back()));
        norms[m] += SquaredNorm(lanes.back()[m], base.back());
      }
      tensor.coefficients = test::DefaultCoefficients(method, models);
      SetShared(method, tensor.coefficients, "lambda", lambda);
    }
    double all = 0;
    for (double norm : norms) all += norm;
    const Driven driven = Drive(method, tensors, {.workers = 3}, random);
    for (size_t t = 0; t < tensors.size(); ++t) {
      std::vector<float> expected;
      for (size_t i = 0; i < base[t].size(); ++i) {
        std::vector<reference::Voter> voters;
        for (size_t m = 0; m < models; ++m) {
          const float weight = all > 0 ? static_cast<float>(norms[m] / all) : 0.0f;
          if (weight != 0) voters.push_back({lanes[t][m][i], lanes[t][m][i] - base[t][i], weight});
        }
        bool conflict;
        expected.push_back(reference::MergeElement({.lambda = static_cast<float>(lambda)}, base[t][i], voters,
                                                   &conflict));
      }
      ExpectBytes(expected, DType::kF32, driven.tensors[t]);
    }
  }
}

}  // namespace
}  // namespace braid
