// The mergers, driven as the pipeline drives them, against the scalar reference: equal bytes for any data,
// options, tiles, workers and orders.
#include "ops/merger.h"

#include <chrono>

#include "tests/ops/merge_driver.h"
#include "tests/ops/reference.h"

namespace braid {
namespace {

using test::Drive;
using test::ExpectBytes;
using test::Driven;
using test::DriveOptions;
using test::kLaneTypes;
using test::Random;
using test::ScopeTensor;
using test::SetModel;
using test::SetShared;
using test::Source;
using test::SourceOf;

enum class Data { kCoarse, kGaussian, kEqual, kUnchanged, kTiny, kCount };

// A fine-tune of `base`: what separates them decides how many magnitudes are equal.
std::vector<float> FineTune(Random& random, const std::vector<float>& base, Data data) {
  std::vector<float> lanes(base.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    float d = 0;
    switch (data) {
      case Data::kCoarse:
        d = static_cast<float>(static_cast<int>(random.Below(11)) - 5) / 64;
        break;
      case Data::kGaussian:
        d = static_cast<float>(random.Normal() * 0.02);
        break;
      case Data::kEqual:
        d = random.Chance(0.5) ? 0.25f : -0.25f;
        break;
      case Data::kUnchanged:   // here and there, and not at all in half of the blocks
        d = i / kBlockLanes % 2 == 0 && random.Chance(0.02) ? 0.5f : 0.0f;
        break;
      case Data::kTiny:
        d = static_cast<float>(random.Normal() * 1e-14);
        break;
      case Data::kCount:
        break;
    }
    lanes[i] = base[i] + d;
  }
  return lanes;
}

std::vector<float> BaseLanes(Random& random, size_t n, Data data) {
  std::vector<float> lanes(n);
  for (float& lane : lanes) {
    if (data == Data::kTiny)
      lane = static_cast<float>(random.Normal() * 1e-14);
    else if (data == Data::kGaussian)
      lane = static_cast<float>(random.Normal());
    else
      lane = static_cast<float>(static_cast<int>(random.Below(33)) - 16) / 16;
    if (random.Chance(0.01)) lane = -0.0f;
  }
  return lanes;
}

void Sprinkle(Random& random, std::vector<float>& lanes, double chance) {
  for (float& lane : lanes)
    if (random.Chance(chance)) lane = random.OneOf({NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f});
}

// The random lanes of a scope: the tensors for the driver, and what the reference knows of them.
struct Scope {
  std::vector<ScopeTensor> tensors;
  std::vector<reference::Tensor> expected;
};

Scope RandomScope(Random& random, const std::vector<size_t>& sizes, size_t num_models, double odd_lanes) {
  Scope scope;
  const auto data = static_cast<Data>(random.Below(static_cast<size_t>(Data::kCount)));
  const bool one_type = random.Chance(0.4);
  const DType type = data == Data::kTiny ? DType::kF32 : kLaneTypes[random.Below(4)];
  std::vector<std::string> names = {
      "model.layers.10.w", "model.layers.2.w", "lm_head", "Z", "\xc3\xa9", "model"};
  std::shuffle(names.begin(), names.end(), random);
  for (size_t t = 0; t < sizes.size(); ++t) {
    ScopeTensor tensor(names[t], sizes[t]);
    reference::Tensor expected{.name = names[t]};
    const auto add = [&](const std::vector<float>& lanes, Source& source, std::vector<float>& decoded) {
      source = SourceOf(one_type || data == Data::kTiny ? type : kLaneTypes[random.Below(4)], lanes);
      decoded = reference::Decode(source.type, source.bytes);
    };
    std::vector<float> base = BaseLanes(random, sizes[t], data);
    const std::vector<float> clean = base;
    Sprinkle(random, base, odd_lanes / 4);
    add(base, tensor.base, expected.base);
    for (size_t m = 0; m < num_models; ++m) {
      std::vector<float> lanes = FineTune(random, clean, data);
      Sprinkle(random, lanes, odd_lanes);
      add(lanes, tensor.models.emplace_back(), expected.models.emplace_back());
    }
    scope.tensors.push_back(std::move(tensor));
    scope.expected.push_back(std::move(expected));
  }
  return scope;
}

DriveOptions RandomDrive(Random& random) {
  return {.blocks_per_tile = 1 + random.Below(3),
          .workers = 1 + random.Below(4),
          .type = kLaneTypes[random.Below(4)]};
}

size_t RandomSize(Random& random, size_t most) {
  const size_t size = random.OneOf<size_t>({1,      2,      3,      15,      17,      64,      100,
                                            1000,   1023,   1024,   1025,    2049,    5000,    20'000,
                                            65'535, 65'536, 65'537, 131'072, 150'001, 200'003, 300'000});
  return size <= most ? size : 1 + random.Below(3000);
}

void ExpectNonFinite(const std::vector<std::vector<std::byte>>& tensors, DType type,
                     const NonFinite& counts) {
  NonFinite wanted;
  for (const auto& bytes : tensors)
    for (float x : reference::Decode(type, bytes)) wanted.nan += std::isnan(x), wanted.inf += std::isinf(x);
  EXPECT_EQ(counts.nan, wanted.nan);
  EXPECT_EQ(counts.inf, wanted.inf);
}

// Drives task-vector merging of one scope and compares everything with the reference.
// Returns whether it was drafted.
bool ExpectTaskVectors(Random& random, const MethodInfo& method, Scope& scope,
                       const reference::TaskVectorOptions& options, std::optional<Approach> approach = {}) {
  const bool ties = options.elect;
  const size_t num_models = options.densities.size();
  for (size_t t = 0; t < scope.tensors.size(); ++t) {
    Coefficients c = test::DefaultCoefficients(method, num_models);
    const reference::Tensor& expected = scope.expected[t];
    SetShared(method, c, "lambda", expected.lambda);
    SetShared(method, c, "normalize", expected.normalize);
    for (size_t m = 0; m < num_models; ++m) SetModel(method, c, m, "weight", expected.weights[m]);
    for (size_t m = 0; ties && m < num_models; ++m) SetModel(method, c, m, "density", options.densities[m]);
    if (ties) {
      SetShared(method, c, "rescale", options.rescale);
      SetShared(method, c, "ties_at_threshold", options.keep_equals);
      SetShared(method, c, "zero_sign", options.majority);
      SetShared(method, c, "elect", options.elect_by_count);
      SetShared(method, c, "elect_weighted", options.elect_weighted);
    }
    scope.tensors[t].coefficients = c;
  }
  DriveOptions drive = RandomDrive(random);
  drive.approach = approach;
  const reference::Merged expected = reference::MergeTaskVectors(scope.expected, options);
  const Driven driven = Drive(method, scope.tensors, drive, random);
  for (size_t t = 0; t < scope.tensors.size(); ++t)
    ExpectBytes(expected.tensors[t], drive.type, driven.tensors[t]);
  EXPECT_EQ(driven.kept, expected.kept);
  EXPECT_EQ(driven.counts.conflicts, expected.conflicts);
  ExpectNonFinite(driven.tensors, drive.type, driven.counts.non_finite);
  EXPECT_EQ(driven.entries, expected.entries);
  return driven.drafted;
}

void RandomiseCoefficients(Random& random, Scope& scope, size_t num_models, bool differ) {
  for (size_t t = 0; t < scope.expected.size(); ++t) {
    reference::Tensor& tensor = scope.expected[t];
    tensor.weights.clear();
    for (size_t m = 0; m < num_models; ++m)
      tensor.weights.push_back(random.OneOf({1.0, 0.5, 0.3, -1.0, -0.4, 0.0, random.Normal()}));
    tensor.lambda = random.OneOf({1.0, 1.0, 0.4, 1.5, -1.0, 0.0});
    tensor.normalize = random.Chance(0.5);
    if (t > 0 && !differ) {
      tensor.weights = scope.expected[0].weights;
      tensor.lambda = scope.expected[0].lambda;
      tensor.normalize = scope.expected[0].normalize;
    }
  }
}

reference::TaskVectorOptions RandomTies(Random& random, size_t num_models) {
  reference::TaskVectorOptions options;
  for (size_t m = 0; m < num_models; ++m)
    options.densities.push_back(random.OneOf({1.0, 0.2, 0.5, 0.9, 0.01, 0.99999, 1e-9, 0.0,
                                              std::uniform_real_distribution<double>(0, 1)(random)}));
  const auto flip = [&] { return random.Chance(0.5); };
  options.rescale = flip(), options.keep_equals = flip(), options.majority = flip();
  options.elect_by_count = flip(), options.elect_weighted = flip();
  return options;
}

// Cases until the time is spent, but so many at least.
template <typename Body>
void Repeat(int least, double seconds, Body body) {
  const auto start = std::chrono::steady_clock::now();
  int cases = 0;
  const auto spent = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >= seconds;
  };
  for (; (cases < least || !spent()) && !testing::Test::HasFailure(); ++cases) {
    SCOPED_TRACE("case " + std::to_string(cases));
    body(cases);
  }
  std::printf("[  CASES   ] %d\n", cases);
}

// One tensor with coefficients of its own; every fifteenth is a large one.
Scope RandomTensor(Random& random, int number, size_t num_models) {
  Scope scope = RandomScope(random, {RandomSize(random, number % 15 == 0 ? 300'000 : 5000)}, num_models,
                            random.OneOf({0.0, 0.0, 0.001, 0.05}));
  RandomiseCoefficients(random, scope, num_models, false);
  return scope;
}

TEST(Ties, EqualsTheReferenceOverOneTensor) {
  Random random;
  Repeat(150, 3, [&](int c) {
    const size_t num_models = 1 + random.Below(7);
    Scope scope = RandomTensor(random, c, num_models);
    ExpectTaskVectors(random, *FindMethod("ties"), scope, RandomTies(random, num_models));
  });
}

// With and without a hit of the sample's bracket.
TEST(Ties, OneReadEqualsTheReference) {
  Random random;
  int drafted = 0, all = 0;
  Repeat(60, 3, [&](int c) {
    const size_t num_models = 1 + random.Below(7);
    Scope scope = RandomScope(random, {c % 4 == 0 ? 150'000 + random.Below(200'000) : 3000 + random.Below(30'000)},
                              num_models, random.OneOf({0.0, 0.0, 0.0, 0.0005}));
    RandomiseCoefficients(random, scope, num_models, false);
    reference::TaskVectorOptions options = RandomTies(random, num_models);
    options.rescale = options.majority = false;
    drafted += ExpectTaskVectors(random, *FindMethod("ties"), scope, options, Approach::kDraft);
    ++all;
  });
  EXPECT_GT(drafted, all / 4);
  EXPECT_LT(drafted, all);
}

TEST(Ties, EqualsTheReferenceOverTheWholeModel) {
  Random random;
  Repeat(80, 3, [&](int c) {
    const size_t num_models = 1 + random.Below(5);
    std::vector<size_t> sizes(1 + random.Below(5));
    for (size_t& size : sizes) size = RandomSize(random, c % 20 == 0 ? 150'001 : 3000);
    Scope scope = RandomScope(random, sizes, num_models, random.OneOf({0.0, 0.0, 0.001}));
    RandomiseCoefficients(random, scope, num_models, true);
    ExpectTaskVectors(random, *FindMethod("ties"), scope, RandomTies(random, num_models));
  });
}

TEST(Ties, ModelsMayLackTensorsOfTheirScope) {
  Random random;
  Repeat(60, 1, [&](int) {
    const size_t num_models = 1 + random.Below(4);
    std::vector<size_t> sizes(2 + random.Below(3));
    for (size_t& size : sizes) size = RandomSize(random, 3000);
    Scope scope = RandomScope(random, sizes, num_models, 0);
    RandomiseCoefficients(random, scope, num_models, true);
    for (size_t t = 0; t < sizes.size(); ++t) {
      for (size_t m = 0; m < num_models; ++m) {
        if (!random.Chance(0.3)) continue;
        scope.tensors[t].models[m].bytes.clear();
        scope.expected[t].models[m].clear();
      }
    }
    ExpectTaskVectors(random, *FindMethod("ties"), scope, RandomTies(random, num_models));
  });
}

// Bfloat16 task vectors over several reduction blocks: thousands of entries are equal to the threshold, so
// the quota is spent in one tile and what was granted decides the result.
TEST(Ties, QuotaIsSpentByIndexAcrossTiles) {
  Random random;
  for (bool majority : {false, true}) {
    for (double density : {0.1, 0.37, 0.8}) {
      ScopeTensor tensor("w", 300'000);
      reference::Tensor expected{.name = "w", .weights = {1, 0.5}, .normalize = true};
      std::vector<float> base(tensor.elements);
      for (float& x : base) x = static_cast<float>(static_cast<int>(random.Below(33)) - 16) / 16;
      tensor.base = SourceOf(DType::kBF16, base);
      expected.base = base;
      for (int m = 0; m < 2; ++m) {
        tensor.models.push_back(SourceOf(DType::kBF16, FineTune(random, base, Data::kEqual)));
        expected.models.push_back(reference::Decode(DType::kBF16, tensor.models.back().bytes));
      }
      Scope scope{.tensors = {tensor}, .expected = {expected}};
      ExpectTaskVectors(random, *FindMethod("ties"), scope,
                        {.densities = {density, density}, .rescale = true, .majority = majority});
    }
  }
}

TEST(TaskArithmetic, EqualsTheReference) {
  Random random;
  Repeat(100, 2, [&](int c) {
    const size_t num_models = 1 + random.Below(7);
    Scope scope = RandomTensor(random, c, num_models);
    if (random.Chance(0.1)) scope.expected[0].weights.assign(num_models, 0.0);
    ExpectTaskVectors(random, *FindMethod("task_arithmetic"), scope,
                      {.densities = std::vector<double>(num_models, 1.0), .elect = false});
  });
}

TEST(Linear, EqualsTheReference) {
  Random random;
  Repeat(100, 2, [&](int c) {
    const size_t num_models = 1 + random.Below(7);
    Scope scope = RandomTensor(random, c, num_models);
    reference::Tensor& expected = scope.expected[0];
    const bool average = random.Chance(0.3);
    if (average) expected.weights.assign(num_models, 1.0);
    const bool normalize = average || (expected.normalize && reference::SumOfWeights(expected.weights) != 0);
    const MethodInfo& method = *FindMethod(average ? "average" : "linear");
    Coefficients coefficients = test::DefaultCoefficients(method, num_models);
    for (size_t m = 0; !average && m < num_models; ++m)
      SetModel(method, coefficients, m, "weight", expected.weights[m]);
    if (!average) SetShared(method, coefficients, "normalize", normalize);
    scope.tensors[0].coefficients = coefficients;
    const DriveOptions drive = RandomDrive(random);
    const Driven driven = Drive(method, scope.tensors, drive, random);
    ExpectBytes(reference::Linear(expected.models, expected.weights, normalize), drive.type,
                driven.tensors[0]);
    ExpectNonFinite(driven.tensors, drive.type, driven.counts.non_finite);
    EXPECT_EQ(driven.counts.conflicts, 0u);
  });
}

TEST(Linear, SourcesOfWeightZeroAreNotRead) {
  const MethodInfo& method = *FindMethod("linear");
  Random random;
  ScopeTensor tensor("w", 2);
  for (float x : {1.0f, NAN, 3.0f}) tensor.models.push_back(SourceOf(DType::kF32, {x, x}));
  tensor.coefficients = test::DefaultCoefficients(method, 3);
  SetModel(method, tensor.coefficients, 1, "weight", 0);
  const Driven driven = Drive(method, {tensor}, {.type = DType::kF32}, random);
  EXPECT_EQ(reference::Decode(DType::kF32, driven.tensors[0]), (std::vector<float>{2, 2}));
}

// SumOfWeights follows torch.sum over a small float32 vector; these were worked out by hand. With 2^24 a sum
// in sequence would lose the ones.
TEST(Linear, WeightsAddUpInFourInterleavedSums) {
  const MethodInfo& method = *FindMethod("linear");
  Random random;
  ScopeTensor tensor("w", 1);
  const std::vector<double> weights = {0x1p24, 1, 1, 1, 0, 1, 1, 1};  // sums 2^24, 2, 2, 2
  for (size_t m = 0; m < weights.size(); ++m)
    tensor.models.push_back(SourceOf(DType::kF32, {m == 0 ? 1.0f : 0.0f}));
  tensor.coefficients = test::DefaultCoefficients(method, weights.size());
  for (size_t m = 0; m < weights.size(); ++m) SetModel(method, tensor.coefficients, m, "weight", weights[m]);
  const Driven driven = Drive(method, {tensor}, {.type = DType::kF32}, random);
  EXPECT_EQ(reference::Decode(DType::kF32, driven.tensors[0])[0], 0x1p24f / (0x1p24f + 6));
}

TEST(Merger, FoldSumsAddsAtDistancesEightFourTwoOne) {
  double sums[kSumLanes] = {};
  sums[0] = 0x1p53, sums[8] = 1, sums[4] = 1, sums[12] = 1;  // (2^53 + 1) + (1 + 1): the first 1 is lost
  EXPECT_EQ(FoldSums(sums), 0x1p53 + 2);
  double ramp[kSumLanes];
  for (size_t i = 0; i < kSumLanes; ++i) ramp[i] = static_cast<double>(i);
  EXPECT_EQ(FoldSums(ramp), 120.0);
}

TEST(Merger, RoundsAreThoseThatTheOptionsNeed) {
  const MethodInfo& ties = *FindMethod("ties");
  const auto rounds = [&](double density, bool majority) {
    Coefficients c = test::DefaultCoefficients(ties, 2);
    SetModel(ties, c, 0, "density", density);
    SetShared(ties, c, "zero_sign", majority);
    return ties.make(ties, c, {.elements = 100}, Approach::kPlain)->statistics_rounds();
  };
  EXPECT_EQ(rounds(1, false), 0u);
  EXPECT_EQ(rounds(0, false), 0u);
  EXPECT_EQ(rounds(0.5, false), 2u);
  EXPECT_EQ(rounds(0.5, true), 3u);
  EXPECT_EQ(rounds(1, true), 1u);
}

}  // namespace
}  // namespace braid
