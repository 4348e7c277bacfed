// TIES by hand: the examples of the paper's figure, and the rules at the corners.
#include "tests/ops/merge_driver.h"
#include "tests/ops/reference.h"

namespace braid {
namespace {

using test::Random;
using test::ScopeTensor;
using test::SetModel;
using test::SetShared;

using Options = std::vector<std::pair<std::string_view, double>>;

// ties over one float32 tensor; `base` is zeros when empty. The Merger's answer must be the reference's too.
std::vector<float> Ties(const std::vector<std::vector<float>>& models, const Options& shared = {},
                        std::vector<double> weights = {}, std::vector<double> densities = {},
                        std::vector<float> base = {}) {
  const MethodInfo& method = *FindMethod("ties");
  const size_t n = models[0].size();
  base.resize(n, 0.0f);
  weights.resize(models.size(), 1.0);
  densities.resize(models.size(), 1.0);
  ScopeTensor tensor("w", n);
  tensor.coefficients = test::DefaultCoefficients(method, models.size());
  tensor.base.bytes = reference::Encode(DType::kF32, base);
  for (size_t m = 0; m < models.size(); ++m) {
    tensor.models.push_back({.type = DType::kF32, .bytes = reference::Encode(DType::kF32, models[m])});
    SetModel(method, tensor.coefficients, m, "weight", weights[m]);
    SetModel(method, tensor.coefficients, m, "density", densities[m]);
  }
  for (const auto& [name, value] : shared) SetShared(method, tensor.coefficients, name, value);
  const auto option = [&](std::string_view name) {
    return tensor.coefficients.shared[method.At(name)];
  };
  const reference::Merged expected =
      reference::MergeTaskVectors({{.name = "w",
                                    .base = base,
                                    .models = models,
                                    .weights = weights,
                                    .lambda = option("lambda"),
                                    .normalize = option("normalize") != 0}},
                                  {.densities = densities,
                                   .rescale = option("rescale") != 0,
                                   .keep_equals = option("ties_at_threshold") != 0,
                                   .majority = option("zero_sign") != 0,
                                   .elect_by_count = option("elect") != 0,
                                   .elect_weighted = option("elect_weighted") != 0});
  Random random(1);
  const test::Driven driven = test::Drive(method, {tensor}, {.type = DType::kF32}, random);
  EXPECT_EQ(driven.tensors[0], reference::Encode(DType::kF32, expected.tensors[0]));
  EXPECT_EQ(driven.kept, expected.kept);
  return reference::Decode(DType::kF32, driven.tensors[0]);
}

uint32_t BitsOf(float x) { return test::ToBits(x); }

// Three models (rows) and three entries (columns):
//     entry 0: +0.5 -0.2 -0.2   sum +0.1: elects plus,  mean of {0.5} is 0.5
//     entry 1: +0.6 -0.4  0     sum +0.2: elects plus,  mean of {0.6} is 0.6
//     entry 2: +0.3 -0.1 +0.2   sum +0.4: elects plus,  mean of {0.3, 0.2} is 0.25
const std::vector<std::vector<float>> kPaper = {
    {0.5f, 0.6f, 0.3f}, {-0.2f, -0.4f, -0.1f}, {-0.2f, 0.0f, 0.2f}};

TEST(TiesExample, ElectsByMassAndAveragesWhatAgrees) {
  EXPECT_EQ(Ties(kPaper), (std::vector<float>{0.5f, 0.6f, (0.3f + 0.2f) / 2}));
}

// By count, entry 0 elects minus (one against two: mean -0.2), and entry 1 is a draw, which elects plus.
TEST(TiesExample, ElectsByCount) {
  EXPECT_EQ(Ties(kPaper, {{"elect", 1}}), (std::vector<float>{-0.2f, 0.6f, (0.3f + 0.2f) / 2}));
}

// Of three entries, int(2/3 3) = 2 stay in each model: {0.5, 0.6, _}, {-0.2, -0.4, _}, {-0.2, _, 0.2}.
TEST(TiesExample, TrimsBeforeItElects) {
  const std::vector<double> densities(3, 2.0 / 3.0);
  ASSERT_EQ(static_cast<int>(densities[0] * 3), 2);
  EXPECT_EQ(Ties(kPaper, {}, {}, densities), (std::vector<float>{0.5f, 0.6f, 0.2f}));
}

TEST(TiesExample, WithoutNormalizeAgreeingEntriesAddUp) {
  EXPECT_EQ(Ties(kPaper, {{"normalize", 0}}), (std::vector<float>{0.5f, 0.6f, 0.3f + 0.2f}));
}

TEST(TiesExample, LambdaScalesTheMergedTaskVector) {
  EXPECT_EQ(Ties({{0.5f}, {0.25f}}, {{"lambda", 2}}, {}, {}, {}), std::vector<float>{0.75f});
  EXPECT_EQ(Ties({{1.5f}, {1.25f}}, {{"lambda", 2}}, {}, {}, {1.0f}), std::vector<float>{1.75f});
}

// Weights 1, 3 on +0.5, -0.25: weighted votes +0.5, -0.75 elect minus; unweighted ones elect plus.
TEST(TiesExample, WeightsCountInTheElectionUnlessToldOtherwise) {
  EXPECT_EQ(Ties({{0.5f}, {-0.25f}}, {}, {1, 3}), std::vector<float>{-0.25f});
  EXPECT_EQ(Ties({{0.5f}, {-0.25f}}, {{"elect_weighted", 0}}, {1, 3}), std::vector<float>{0.5f});
}

// A negative weight turns a vote round: +0.5 with weight -1 votes -0.5 and agrees with -0.25. Divided by -1 +
// 1 = 0 means not divided.
TEST(TiesExample, NegativeWeightsForget) {
  EXPECT_EQ(Ties({{0.5f}}, {}, {-1}), std::vector<float>{0.5f});  // -0.5 divided by -1
  EXPECT_EQ(Ties({{0.5f}}, {{"normalize", 0}}, {-1}), std::vector<float>{-0.5f});
  EXPECT_EQ(Ties({{0.5f}, {-0.25f}}, {}, {-1, 1}), std::vector<float>{-0.75f});
}

// Magnitudes 1 1 1 1 2, density 0.6 keeps 3: the 2 and the first two of the equals. "keep" keeps int(0.6 5) +
// 1 = 4 and, the fourth being one of equals, all.
TEST(TiesRules, EqualsAtTheThreshold) {
  const std::vector<float> model = {1, -1, 1, 1, 2};
  EXPECT_EQ(Ties({model}, {}, {}, {0.6}), (std::vector<float>{1, -1, 0, 0, 2}));
  EXPECT_EQ(Ties({model}, {{"ties_at_threshold", 1}}, {}, {0.6}), model);
  // 3 2 1 with density 1/3: one stays, or with "keep" two.
  EXPECT_EQ(Ties({{3, 2, 1}}, {}, {}, {0.34}), (std::vector<float>{3, 0, 0}));
  EXPECT_EQ(Ties({{3, 2, 1}}, {{"ties_at_threshold", 1}}, {}, {0.34}), (std::vector<float>{3, 2, 0}));
  // The least density keeps one entry, density 0 none.
  EXPECT_EQ(Ties({{1, 1, 1}}, {}, {}, {1e-6}), (std::vector<float>{1, 0, 0}));
  EXPECT_EQ(Ties({{1, 1, 1}}, {}, {}, {0.0}), (std::vector<float>{0, 0, 0}));
}

// Norm 8, of which 6 stays: what stays is multiplied by 8 / 6.
TEST(TiesRules, RescaleRestoresTheNorm) {
  const float factor = static_cast<float>(8.0 / 6.0);
  EXPECT_EQ(Ties({{4, -2, 1, 1}}, {{"rescale", 1}}, {}, {0.5}),
            (std::vector<float>{4 * factor, -2 * factor, 0, 0}));
  // Below a norm of 1e-7 nothing is rescaled.
  EXPECT_EQ(Ties({{4e-9f, 1e-9f}}, {{"rescale", 1}}, {}, {0.5}), (std::vector<float>{4e-9f, 0}));
}

// One infinite or NaN entry says nothing about the norm of the others: no rescaling, and no NaN elsewhere.
TEST(TiesRules, RescaleLeavesNormsThatAreNotFinite) {
  EXPECT_EQ(Ties({{INFINITY, 4, 1, 1}}, {{"rescale", 1}}, {}, {0.5}),
            (std::vector<float>{INFINITY, 4, 0, 0}));
  const std::vector<float> with_nan = Ties({{NAN, 4, 1, 1}}, {{"rescale", 1}}, {}, {0.5});
  EXPECT_TRUE(std::isnan(with_nan[0]));
  EXPECT_EQ((std::vector<float>{with_nan.begin() + 1, with_nan.end()}), (std::vector<float>{4, 0, 0}));
}

TEST(TiesRules, CancelledVotesElectPlus) { EXPECT_EQ(Ties({{0.5f}, {-0.5f}}), std::vector<float>{0.5f}); }

// The draw of entry 0 goes with most other entries: two minus against one plus.
TEST(TiesRules, CancelledVotesElectTheMajority) {
  const Options majority = {{"zero_sign", 1}};
  EXPECT_EQ(Ties({{0.5f, -1, -1, 1}, {-0.5f, 0, 0, 0}}, majority), (std::vector<float>{-0.5f, -1, -1, 1}));
  EXPECT_EQ(Ties({{0.5f, 1, 1, -1}, {-0.5f, 0, 0, 0}}, majority), (std::vector<float>{0.5f, 1, 1, -1}));
  // A majority that is a draw itself counts as minus.
  EXPECT_EQ(Ties({{0.5f, 1, -1}, {-0.5f, 0, 0}}, majority), (std::vector<float>{-0.5f, 1, -1}));
  EXPECT_EQ(Ties({{0.5f}, {-0.5f}}, majority), std::vector<float>{-0.5f});
}

TEST(TiesRules, UnchangedElementsKeepTheBitsOfTheBase) {
  const std::vector<float> out = Ties({{-0.0f, 0.0f, -1.0f}}, {}, {}, {}, {-0.0f, -0.0f, -1.0f});
  EXPECT_EQ(BitsOf(out[0]), 0x80000000u);
  EXPECT_EQ(BitsOf(out[1]), 0x80000000u);  // 0 - -0 is 0
  EXPECT_EQ(BitsOf(out[2]), BitsOf(-1.0f));
  EXPECT_EQ(BitsOf(Ties({{0.5f}}, {{"lambda", 0}}, {}, {}, {-0.0f})[0]), 0x80000000u);
  EXPECT_EQ(BitsOf(Ties({{0.5f, 2.0f}}, {}, {}, {0.5}, {-0.0f, 0.0f})[0]), 0x80000000u);  // trimmed
}

TEST(TiesRules, NanAnywhereIsTheCanonicalNan) {
  const float odd_nan = test::FromBits(0xff800123);
  // Trimmed or not, in a model or in the base.
  EXPECT_EQ(BitsOf(Ties({{odd_nan, 1}})[0]), 0x7fc00000u);
  EXPECT_EQ(BitsOf(Ties({{1, odd_nan, odd_nan, 1}}, {}, {}, {0.25})[2]), 0x7fc00000u);
  EXPECT_EQ(BitsOf(Ties({{odd_nan, 1}}, {}, {}, {0.0})[0]), 0x7fc00000u);
  EXPECT_EQ(BitsOf(Ties({{1, 1}}, {}, {}, {}, {odd_nan, 0})[0]), 0x7fc00000u);
  EXPECT_EQ(BitsOf(Ties({{odd_nan}, {1}}, {}, {0, 1})[0]), BitsOf(1.0f));  // weight 0: not looked at
}

// NaN ranks above infinity and infinity above all else, so they take the places of what density keeps.
TEST(TiesRules, NanAndInfinityRankFirst) {
  const std::vector<float> out = Ties({{5, INFINITY, NAN, 7}}, {}, {}, {0.5});
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[1], INFINITY);
  EXPECT_TRUE(std::isnan(out[2]));
  EXPECT_EQ(out[3], 0.0f);
}

}  // namespace
}  // namespace braid
