// slerp, nuslerp, multislerp, karcher and model_stock, driven as the pipeline drives them, against plain double
// arithmetic: every element is the reference rounded once, but where the reference itself is within its own error of a
// boundary.
#include "ops/gram_merger.h"

#include <functional>
#include <numeric>

#include "tests/ops/combination_reference.h"
#include "tests/ops/merge_driver.h"
#include "tests/ops/reference.h"

namespace braid {
namespace {

using reference::Vector;
using test::Drive;
using test::DriveOptions;
using test::kLaneTypes;
using test::Random;
using test::ScopeTensor;
using test::SetModel;
using test::SetShared;
using test::Source;
using test::SourceOf;

Source F32(const std::vector<float>& lanes) { return SourceOf(DType::kF32, lanes); }

Vector Lanes(const Source& source) {
  const std::vector<float> lanes = reference::Decode(source.type, source.bytes);
  return {lanes.begin(), lanes.end()};
}

// What a merge method makes of the lanes of its models; of task vectors where there is a base.
using Formula = std::function<Vector(const std::vector<Vector>& models)>;

struct Case {
  ScopeTensor tensor{"w", 0};
  bool relative = false;
};

// Models that have something in common, of any norm.
Case RandomCase(Random& random, size_t num_models, bool relative, size_t elements, size_t row = 0) {
  Case made{.tensor = ScopeTensor("w", elements), .relative = relative};
  made.tensor.row = row;
  const double size = random.OneOf({1e-3, 0.02, 1.0, 30.0}), in_common = random.OneOf({0.0, 0.3, 1.0, 5.0});
  std::vector<float> base(elements), common(elements);
  for (float& x : base) x = static_cast<float>(random.Normal() * size);
  for (float& x : common) x = static_cast<float>(random.Normal() * size * in_common);
  if (relative) made.tensor.base = SourceOf(kLaneTypes[random.Below(4)], base);
  for (size_t m = 0; m < num_models; ++m) {
    std::vector<float> lanes(elements);
    const double own = size * random.OneOf({0.1, 1.0, 2.0});
    for (size_t i = 0; i < elements; ++i)
      lanes[i] = (relative ? base[i] : 0) + common[i] + static_cast<float>(random.Normal() * own);
    made.tensor.models.push_back(SourceOf(kLaneTypes[random.Below(4)], lanes));
  }
  return made;
}

// Of the merged task vector. Without a base it has no effect.
void RandomLambda(Random& random, const MethodInfo& method, Case* given) {
  SetShared(method, given->tensor.coefficients, "lambda", random.OneOf({1.0, 0.3, -1.5, 0.0, 2.0}));
}
double LambdaOf(const MethodInfo& method, const Case& given) {
  return given.relative ? given.tensor.coefficients.shared[method.At("lambda")] : 1;
}

// Where few elements could make models opposite, and a method has no answer then, the tests add some.
size_t RandomSize(Random& random, int c) {
  if (c % 12 == 0) return random.OneOf<size_t>({65'535, 65'536, 65'537, 150'001, 200'003});
  return random.OneOf<size_t>({2, 3, 15, 16, 17, 100, 1000, 1023, 1024, 1025, 2049, 5000});
}

// The element nearest to x in the output's type, as a number.
double Rounded(DType type, double x) {
  const reference::Format& format = type == DType::kF16 ? reference::kF16 : type == DType::kBF16 ? reference::kBF16
      : reference::kF32;
  return reference::Value(format, reference::Round(format, x));
}

// Runs it twice with other tiles, workers and orders, which must change nothing, and compares with the formula.
std::vector<float> ExpectFormula(Random& random, const MethodInfo& method, const Case& given, const Formula& formula,
                                 DType type) {
  std::vector<Vector> models;
  for (const Source& model : given.tensor.models)
    if (!model.bytes.empty()) models.push_back(Lanes(model));
  const Vector base = given.relative ? Lanes(given.tensor.base) : Vector(given.tensor.elements, 0.0);
  Vector largest(base.size());
  for (size_t i = 0; i < base.size(); ++i)
    for (Vector& model : models)
      largest[i] = std::max({largest[i], std::fabs(model[i]), std::fabs(base[i])}), model[i] -= base[i];
  const double lambda = LambdaOf(method, given);
  Vector expected(base.size());
  const size_t row = given.tensor.row == 0 ? base.size() : given.tensor.row;
  for (size_t first = 0; first < base.size(); first += row) {
    std::vector<Vector> rows;
    for (const Vector& model : models)
      rows.emplace_back(model.begin() + static_cast<ptrdiff_t>(first),
                        model.begin() + static_cast<ptrdiff_t>(first + row));
    const Vector merged = formula(rows);
    for (size_t i = 0; i < row; ++i) expected[first + i] = base[first + i] + lambda * merged[i];
  }
  const auto drive = [&] {
    return Drive(method, {given.tensor},
                 {.blocks_per_tile = 1 + random.Below(3), .workers = 1 + random.Below(4), .type = type},
                 random).tensors[0];
  };
  const std::vector<std::byte> bytes = drive();
  EXPECT_EQ(bytes, drive()) << "depends on tiles or workers";
  const std::vector<float> lanes = reference::Decode(type, bytes);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = 1e-11 * std::max(std::fabs(lambda), 1.0) * largest[i];
    if (lanes[i] >= Rounded(type, expected[i] - error) && lanes[i] <= Rounded(type, expected[i] + error)) continue;
    ADD_FAILURE() << "element " << i << " of " << expected.size() << " as " << DTypeName(type) << ": " << lanes[i]
                  << " instead of " << expected[i];
    break;
  }
  return lanes;
}

template <typename Body>
void Repeat(int cases, Body body) {
  for (int c = 0; c < cases && !testing::Test::HasFailure(); ++c) {
    SCOPED_TRACE("case " + std::to_string(c));
    body(c);
  }
}

DType AnyType(Random& random) { return kLaneTypes[random.Below(4)]; }

std::vector<float> Driven(const MethodInfo& method, const ScopeTensor& tensor) {
  Random random(1);
  return reference::Decode(DType::kF32, Drive(method, {tensor}, {}, random).tensors[0]);
}

ScopeTensor TensorOf(const MethodInfo& method, const std::vector<std::vector<float>>& models,
                     const std::vector<float>& base = {}) {
  ScopeTensor tensor("w", models[0].size());
  if (!base.empty()) tensor.base = F32(base);
  for (const auto& model : models) tensor.models.push_back(F32(model));
  tensor.coefficients = test::DefaultCoefficients(method, models.size());
  return tensor;
}

std::string CheckOf(const MethodInfo& method, const Coefficients& c) { return method.check(method, c); }

// --- slerp ---------------------------------------------------------------------------------------------------

const MethodInfo& TheSlerp() { return *FindMethod("slerp"); }

TEST(Slerp, OfTwoIsTheFormula) {
  Random random;
  Repeat(150, [&](int c) {
    Case given = RandomCase(random, 2, false, RandomSize(random, c));
    const double t = random.OneOf({0.5, 0.1, 0.9, -0.4, 1.7, random.Normal()});
    given.tensor.coefficients = test::DefaultCoefficients(TheSlerp(), 2);
    SetShared(TheSlerp(), given.tensor.coefficients, "t", t);
    ExpectFormula(random, TheSlerp(), given, [&](const auto& x) { return reference::Slerp(x[0], x[1], t); },
                  AnyType(random));
  });
}

TEST(Slerp, OfManyGoesFromOneToTheNext) {
  Random random;
  Repeat(100, [&](int c) {
    const size_t num_models = 2 + random.Below(5);
    Case given = RandomCase(random, num_models, false, RandomSize(random, c));
    given.tensor.coefficients = test::DefaultCoefficients(TheSlerp(), num_models);
    std::vector<double> weights;
    for (size_t m = 0; m < num_models; ++m) {
      weights.push_back(random.OneOf({1.0, 0.5, 0.2, 3.0}));
      SetModel(TheSlerp(), given.tensor.coefficients, m, "weight", weights[m]);
    }
    ExpectFormula(random, TheSlerp(), given, [&](const auto& x) { return reference::SlerpMany(x, weights); },
                  AnyType(random));
  });
}

TEST(Slerp, AtItsEndsIsOneModelAndReadsNoOther) {
  for (double t : {0.0, 1.0}) {
    ScopeTensor tensor = TensorOf(TheSlerp(), {{1, -0.0f, 3, 1e-40f}, {5, 6, -0.0f, 8}});
    tensor.models[t == 0 ? 1 : 0] = F32({NAN, NAN, NAN, NAN});
    SetShared(TheSlerp(), tensor.coefficients, "t", t);
    const auto merger = TheSlerp().make(TheSlerp(), tensor.coefficients, {.elements = 4}, Approach::kPlain);
    EXPECT_EQ(merger->statistics_rounds(), 0u);
    EXPECT_EQ(merger->Reads(0, 0, tensor.coefficients), t == 0);
    EXPECT_EQ(merger->Reads(0, 1, tensor.coefficients), t == 1);
    Random random(1);
    EXPECT_EQ(Drive(TheSlerp(), {tensor}, {}, random).tensors[0], tensor.models[t == 0 ? 0 : 1].bytes);
  }
}

TEST(Slerp, ZeroVectorsAreAtRightAngles) {
  ScopeTensor tensor = TensorOf(TheSlerp(), {{0, 0, 0}, {1, 2, 3}});
  SetShared(TheSlerp(), tensor.coefficients, "t", 0.5);
  const auto half = static_cast<float>(std::sqrt(0.5));
  EXPECT_EQ(Driven(TheSlerp(), tensor), (std::vector<float>{half, 2 * half, static_cast<float>(3 * std::sqrt(0.5))}));
}

TEST(Slerp, ParallelAndOppositeModelsAreInterpolatedLinearly) {
  for (float factor : {1.0f, 2.0f, -1.0f, -2.0f, 0.3f, -0.3f}) {
    ScopeTensor tensor = TensorOf(TheSlerp(), {{1, 2, 4}, {factor, 2 * factor, 4 * factor}});
    SetShared(TheSlerp(), tensor.coefficients, "t", 0.25);
    const double share = 0.75 + 0.25 * static_cast<double>(factor);
    EXPECT_EQ(Driven(TheSlerp(), tensor),
              (std::vector<float>{static_cast<float>(share), static_cast<float>(2 * share),
                                  static_cast<float>(4 * share)}));
  }
}

TEST(Slerp, AModelThatLacksTheTensorLeavesTheOther) {
  ScopeTensor tensor = TensorOf(TheSlerp(), {{1, 2}, {3, 4}});
  SetShared(TheSlerp(), tensor.coefficients, "t", 0.0);
  tensor.models[0].bytes.clear();
  SetModel(TheSlerp(), tensor.coefficients, 0, "weight", -0.0);   // as the plan says that it has none
  EXPECT_EQ(Driven(TheSlerp(), tensor), (std::vector<float>{3, 4}));
}

TEST(Slerp, TakesEitherTOrWeights) {
  const auto with = [&](size_t models, double t, std::vector<double> weights) {
    Coefficients c = test::DefaultCoefficients(TheSlerp(), models);
    if (t != kNoDefault) SetShared(TheSlerp(), c, "t", t);
    for (size_t m = 0; m < weights.size(); ++m) SetModel(TheSlerp(), c, m, "weight", weights[m]);
    return CheckOf(TheSlerp(), c);
  };
  EXPECT_EQ(with(2, 0.5, {}), "");
  EXPECT_EQ(with(2, kNoDefault, {1, 2}), "");
  EXPECT_EQ(with(4, kNoDefault, {1, 0, 2, 1}), "");
  EXPECT_EQ(with(3, kNoDefault, {1, 0, -0.5}), "");
  EXPECT_NE(with(3, 0.5, {}), "");
  EXPECT_NE(with(2, 0.5, {1, 1}), "");
  EXPECT_NE(with(2, kNoDefault, {}), "");
  EXPECT_NE(with(2, kNoDefault, {1}), "");
  EXPECT_NE(with(3, kNoDefault, {1, -1, 1}), "");
  EXPECT_NE(with(3, kNoDefault, {0, 0, 0}), "");
}

// --- nuslerp -------------------------------------------------------------------------------------------------

const MethodInfo& TheNuslerp() { return *FindMethod("nuslerp"); }

TEST(Nuslerp, IsTheFormulaFlatAndByRows) {
  Random random;
  Repeat(200, [&](int c) {
    const bool by_rows = random.Chance(0.5);
    const size_t row = by_rows ? random.OneOf<size_t>({7, 64, 1000, 1025, 70'000}) : 0;
    const size_t elements = by_rows ? row * (row > 60'000 ? 2 : 1 + random.Below(9)) : 12 + RandomSize(random, c);
    Case given = RandomCase(random, 2, random.Chance(0.5), elements, row);
    Coefficients& coefficients = given.tensor.coefficients;
    coefficients = test::DefaultCoefficients(TheNuslerp(), 2);
    if (by_rows && random.Chance(0.5)) SetShared(TheNuslerp(), coefficients, "axis", 1);
    else if (by_rows) SetShared(TheNuslerp(), coefficients, "nuslerp_flatten", 0);
    EXPECT_EQ(TheNuslerp().WorksByRows(coefficients), by_rows);
    const double a = random.OneOf({1.0, 0.3, -0.2}), b = random.OneOf({1.0, 0.7, 0.2});
    SetModel(TheNuslerp(), coefficients, 0, "weight", a);
    SetModel(TheNuslerp(), coefficients, 1, "weight", b);
    RandomLambda(random, TheNuslerp(), &given);
    ExpectFormula(random, TheNuslerp(), given, [&](const auto& x) { return reference::Nuslerp(x[0], x[1], a, b); },
                  AnyType(random));
  });
}

// Columns of `slices` elements each; the formula sees them one by one, as if they were rows.
TEST(Nuslerp, OfColumnsIsTheFormula) {
  Random random;
  Repeat(25, [&](int c) {
    using Sizes = std::pair<size_t, size_t>;
    const auto [slices, slice] = c % 5 == 0 ? random.OneOf<Sizes>({{1500, 1025}, {70'000, 33}, {70, 40'000}})
                                            : Sizes(7 + random.Below(60), 1 + random.Below(1200));
    Case columns = RandomCase(random, 2, random.Chance(0.5), slices * slice, slices);
    Case given = columns;
    const auto transpose = [&](const Source& from) {
      const auto size = static_cast<size_t>(LaneBytes(from.type));
      Source to{.type = from.type, .bytes = std::vector<std::byte>(from.bytes.size())};
      for (size_t i = 0; i < slices && !from.bytes.empty(); ++i)
        for (size_t j = 0; j < slice; ++j)
          std::copy_n(&from.bytes[(j * slices + i) * size], size, &to.bytes[(i * slice + j) * size]);
      return to;
    };
    given.tensor.base = transpose(columns.tensor.base);
    for (Source& model : given.tensor.models) model = transpose(model);
    given.tensor.row = slice, given.tensor.slice = slice;
    const double lambda = random.OneOf({1.0, 0.3, -1.5});
    for (Case* one : {&columns, &given}) {
      Coefficients& coefficients = one->tensor.coefficients = test::DefaultCoefficients(TheNuslerp(), 2);
      SetShared(TheNuslerp(), coefficients, "nuslerp_flatten", 0);
      SetShared(TheNuslerp(), coefficients, "nuslerp_row_wise", one == &given);
      SetModel(TheNuslerp(), coefficients, 0, "weight", 0.7);
      SetShared(TheNuslerp(), coefficients, "lambda", lambda);
    }
    const DType type = AnyType(random);
    const std::vector<float> expected = ExpectFormula(
        random, TheNuslerp(), columns, [](const auto& x) { return reference::Nuslerp(x[0], x[1], 0.7, 1); }, type);
    const auto drive = [&](size_t groups) {
      return Drive(TheNuslerp(), {given.tensor}, {.blocks_per_tile = groups, .workers = 3, .type = type},
                   random).tensors[0];
    };
    const std::vector<std::byte> bytes = drive(1);
    EXPECT_EQ(bytes, drive(2));
    // Rows and columns add up in another order, so that a few are the neighbour.
    const std::vector<float> lanes = reference::Decode(type, bytes);
    size_t different = 0;
    for (size_t i = 0; i < slices; ++i)
      for (size_t j = 0; j < slice; ++j) {
        const float merged = lanes[i * slice + j], wanted = expected[j * slices + i];
        different += merged != wanted;
        ASSERT_NEAR(merged, wanted, 0.01 * std::fabs(wanted) + 1e-6);
      }
    EXPECT_LE(different, slices * slice / 10'000);
  });
}

TEST(Nuslerp, AVectorIsItsOwnColumn) {
  ScopeTensor tensor = TensorOf(TheNuslerp(), {{1, 2, 4}, {3, -1, 4}});
  const std::vector<float> flat = Driven(TheNuslerp(), tensor);
  SetShared(TheNuslerp(), tensor.coefficients, "axis", 2);
  EXPECT_EQ(Driven(TheNuslerp(), tensor), flat);
}

TEST(Nuslerp, RowsOfOneElementAreInterpolatedLinearly) {
  ScopeTensor tensor = TensorOf(TheNuslerp(), {{1, 2, -4.5f}, {-2, 2, 0}});
  tensor.row = 1;
  SetShared(TheNuslerp(), tensor.coefficients, "axis", 1);
  SetModel(TheNuslerp(), tensor.coefficients, 1, "weight", 3);
  const std::vector<float> merged = Driven(TheNuslerp(), tensor);
  EXPECT_EQ(merged[0], -1.25f);
  EXPECT_EQ(merged[1], 2.0f);
  EXPECT_EQ(merged[2], static_cast<float>(-4.5 * std::sin(std::acos(-1.0) / 8)));   // a zero is at right angles
}

TEST(Nuslerp, OppositeModelsAreInterpolatedLinearly) {
  ScopeTensor tensor = TensorOf(TheNuslerp(), {{1, 2, 4.7f}, {-1, -2, -4.7f}});
  SetModel(TheNuslerp(), tensor.coefficients, 1, "weight", 3);
  EXPECT_EQ(Driven(TheNuslerp(), tensor), (std::vector<float>{-0.5f, -1, -2.35f}));
}

TEST(Nuslerp, ZeroTaskVectorsKeepTheBase) {
  ScopeTensor tensor = TensorOf(TheNuslerp(), {{1, -0.0f, 3}, {1, 0, 3}}, {1, -0.0f, 3});
  EXPECT_EQ(reference::Encode(DType::kF32, Driven(TheNuslerp(), tensor)), tensor.base.bytes);
}

TEST(Nuslerp, RefusesWhatItDoesNotKnow) {
  Coefficients c = test::DefaultCoefficients(TheNuslerp(), 2);
  EXPECT_EQ(CheckOf(TheNuslerp(), c), "");
  SetShared(TheNuslerp(), c, "nuslerp_row_wise", 1);   // without effect
  EXPECT_EQ(CheckOf(TheNuslerp(), c), "");
  SetShared(TheNuslerp(), c, "nuslerp_flatten", 0);
  EXPECT_EQ(CheckOf(TheNuslerp(), c), "");
  EXPECT_EQ(TheNuslerp().TileUnit(c, {.elements = 24, .row = 4, .slice = 12}), 24u);
  SetShared(TheNuslerp(), c, "axis", 1);
  EXPECT_NE(CheckOf(TheNuslerp(), c).find("both"), std::string::npos);
}

// --- multislerp ----------------------------------------------------------------------------------------------

const MethodInfo& TheMultislerp() { return *FindMethod("multislerp"); }

TEST(Multislerp, IsTheFormula) {
  Random random;
  Repeat(150, [&](int c) {
    const size_t num_models = 2 + random.Below(5);
    Case given = RandomCase(random, num_models, random.Chance(0.5), 12 + RandomSize(random, c));
    Coefficients& coefficients = given.tensor.coefficients;
    coefficients = test::DefaultCoefficients(TheMultislerp(), num_models);
    const bool normalize = random.Chance(0.5);
    const double eps = random.OneOf({1e-8, 1e-8, 1e-3});
    SetShared(TheMultislerp(), coefficients, "normalize_weights", normalize);
    SetShared(TheMultislerp(), coefficients, "eps", eps);
    std::vector<double> weights;
    for (size_t m = 0; m < num_models; ++m) {
      weights.push_back(random.OneOf({1.0, 0.5, 0.2, m == 1 ? 2.0 : -0.1}));
      SetModel(TheMultislerp(), coefficients, m, "weight", weights[m]);
    }
    if (std::fabs(std::accumulate(weights.begin(), weights.end(), 0.0)) < 0.2) return;
    RandomLambda(random, TheMultislerp(), &given);
    ExpectFormula(random, TheMultislerp(), given,
                  [&](const auto& x) { return reference::Multislerp(x, weights, normalize, eps); }, AnyType(random));
  });
}

TEST(Multislerp, WhereDirectionsCancelTwoAreAddedAndMoreAreAnError) {
  EXPECT_EQ(Driven(TheMultislerp(), TensorOf(TheMultislerp(), {{1, 2}, {-3, -6}})), (std::vector<float>{-1, -2}));
  EXPECT_EQ(Driven(TheMultislerp(), TensorOf(TheMultislerp(), {{2, 3}, {-2, -5}}, {1, 1})),
            (std::vector<float>{0, -1}));
  EXPECT_THROW(Driven(TheMultislerp(), TensorOf(TheMultislerp(), {{2, 2}, {-1, -1}, {0, 0}})), NoMerge);
}

TEST(Multislerp, OneModelComesOutAsItIs) {
  for (const std::vector<float>& base : {std::vector<float>{}, std::vector<float>{1e10f, 7, 7}}) {
    ScopeTensor tensor = TensorOf(TheMultislerp(), {{1e-20f, -0.0f, 3}}, base);
    EXPECT_EQ(reference::Encode(DType::kF32, Driven(TheMultislerp(), tensor)), tensor.models[0].bytes);
    tensor = TensorOf(TheMultislerp(), {{1e-20f, -0.0f, 3}, {NAN, NAN, NAN}}, base);
    SetModel(TheMultislerp(), tensor.coefficients, 1, "weight", 0);
    EXPECT_EQ(reference::Encode(DType::kF32, Driven(TheMultislerp(), tensor)), tensor.models[0].bytes);
  }
}

TEST(Multislerp, WithoutNormalizingOneOfTwoIsItsShare) {
  ScopeTensor tensor = TensorOf(TheMultislerp(), {{4, 8}, {1, 1}});
  SetShared(TheMultislerp(), tensor.coefficients, "normalize_weights", 0);
  SetModel(TheMultislerp(), tensor.coefficients, 0, "weight", 0.5);
  SetModel(TheMultislerp(), tensor.coefficients, 1, "weight", 0);
  EXPECT_EQ(Driven(TheMultislerp(), tensor), (std::vector<float>{2, 4}));
}

TEST(Multislerp, RefusesWeightsThatAddUpToNothing) {
  Coefficients c = test::DefaultCoefficients(TheMultislerp(), 2);
  SetModel(TheMultislerp(), c, 1, "weight", -1);
  EXPECT_NE(CheckOf(TheMultislerp(), c), "");
  SetShared(TheMultislerp(), c, "normalize_weights", 0);
  EXPECT_EQ(CheckOf(TheMultislerp(), c), "");
  ScopeTensor tensor = TensorOf(TheMultislerp(), {{4, 8}, {1, 1}});
  for (size_t m : {0, 1}) SetModel(TheMultislerp(), tensor.coefficients, m, "weight", 0);
  EXPECT_THROW(Driven(TheMultislerp(), tensor), NoMerge);
}

// --- karcher -------------------------------------------------------------------------------------------------

const MethodInfo& TheKarcher() { return *FindMethod("karcher"); }

TEST(Karcher, IsTheFormula) {
  Random random;
  Repeat(120, [&](int c) {
    const size_t num_models = 2 + random.Below(5);
    Case given = RandomCase(random, num_models, false, 12 + RandomSize(random, c));
    given.tensor.coefficients = test::DefaultCoefficients(TheKarcher(), num_models);
    const int max_iter = random.OneOf({10, 1, 0, 100});
    const double tol = random.OneOf({1e-5, 1e-9});
    SetShared(TheKarcher(), given.tensor.coefficients, "max_iter", max_iter);
    SetShared(TheKarcher(), given.tensor.coefficients, "tol", tol);
    if (random.Chance(0.2)) given.tensor.models[1] = F32(std::vector<float>(given.tensor.elements, 0.0f));
    ExpectFormula(random, TheKarcher(), given, [&](const auto& x) { return reference::Karcher(x, max_iter, tol); },
                  AnyType(random));
  });
}

TEST(Karcher, OfOppositeModelsStaysAtTheFirst) {
  EXPECT_EQ(Driven(TheKarcher(), TensorOf(TheKarcher(), {{1, 2}, {-2, -4}})), (std::vector<float>{1.5f, 3}));
}

TEST(Karcher, OfZerosIsZero) {
  EXPECT_EQ(Driven(TheKarcher(), TensorOf(TheKarcher(), {{0, 0}, {0, 0}})), (std::vector<float>{0, 0}));
}

TEST(Karcher, TakesThoseThatAreThere) {
  ScopeTensor tensor = TensorOf(TheKarcher(), {{1, 2}, {3, 5}, {4, -1}});
  tensor.models[0].bytes.clear(), tensor.models[2].bytes.clear();
  EXPECT_EQ(Driven(TheKarcher(), tensor), (std::vector<float>{3, 5}));
  tensor.models[2] = F32({5, -3});   // at right angles to {3, 5}
  const std::vector<float> two = Driven(TheKarcher(), tensor);
  EXPECT_NEAR(two[0], 8 * std::sqrt(0.5), 1e-6);
  EXPECT_NEAR(two[1], 2 * std::sqrt(0.5), 1e-6);
}

TEST(Karcher, IterationsAreWhole) {
  Coefficients c = test::DefaultCoefficients(TheKarcher(), 2);
  EXPECT_EQ(CheckOf(TheKarcher(), c), "");
  SetShared(TheKarcher(), c, "max_iter", 1.5);
  EXPECT_NE(CheckOf(TheKarcher(), c), "");
}

// --- model_stock ---------------------------------------------------------------------------------------------

const MethodInfo& TheModelStock() { return *FindMethod("model_stock"); }

TEST(ModelStock, IsTheFormulaFlatAndByRows) {
  Random random;
  Repeat(150, [&](int c) {
    const size_t num_models = 2 + random.Below(4);
    const bool by_rows = random.Chance(0.5);
    const size_t row = by_rows ? random.OneOf<size_t>({33, 64, 1000, 1025, 70'000}) : 0;
    Case given = RandomCase(random, num_models, true,
                            by_rows ? row * (row > 60'000 ? 2 : 1 + random.Below(9)) : 33 + RandomSize(random, c), row);
    given.tensor.coefficients = test::DefaultCoefficients(TheModelStock(), num_models);
    SetShared(TheModelStock(), given.tensor.coefficients, "filter_wise", by_rows);
    EXPECT_EQ(TheModelStock().WorksByRows(given.tensor.coefficients), by_rows);
    if (random.Chance(0.2)) given.tensor.models[1] = given.tensor.base;
    RandomLambda(random, TheModelStock(), &given);
    ExpectFormula(random, TheModelStock(), given, reference::ModelStock, AnyType(random));
  });
}

TEST(ModelStock, WithoutAnEstimateKeepsTheBase) {
  // Two that move in opposite directions: 1 + cos = 0. And none that moves.
  for (float moved : {0.5f, 0.0f}) {
    const ScopeTensor tensor = TensorOf(TheModelStock(), {{1 + moved, 2 + moved, -0.0f}, {1 - moved, 2 - moved, 0}},
                                        {1, 2, -0.0f});
    EXPECT_EQ(reference::Encode(DType::kF32, Driven(TheModelStock(), tensor)), tensor.base.bytes);
  }
}

TEST(ModelStock, OneThatIsThereComesOutAsItIs) {
  ScopeTensor tensor = TensorOf(TheModelStock(), {{1, 2}, {7, 8}}, {1e9f, 2});
  tensor.models[1].bytes.clear();
  for (bool by_rows : {false, true}) {
    SetShared(TheModelStock(), tensor.coefficients, "filter_wise", by_rows);
    EXPECT_EQ(Driven(TheModelStock(), tensor), (std::vector<float>{1, 2}));
  }
}

// --- all -----------------------------------------------------------------------------------------------------

// Where nothing is left of the task vector the base keeps its bits.
TEST(GramMerger, ALambdaOfZeroIsTheBase) {
  for (const char* name : {"nuslerp", "multislerp", "model_stock"}) {
    const MethodInfo& method = *FindMethod(name);
    ScopeTensor tensor = TensorOf(method, {{1, 2, -3}, {4, 1, 0.5f}}, {1, -0.0f, 3});
    SetShared(method, tensor.coefficients, "lambda", 0);
    EXPECT_EQ(reference::Encode(DType::kF32, Driven(method, tensor)), tensor.base.bytes) << name;
  }
}

TEST(GramMerger, NanAndInfinityMakeTheWholeTensorNan) {
  for (float bad : {NAN, INFINITY}) {
    ScopeTensor tensor = TensorOf(TheKarcher(), {{1, 2, bad}, {3, 5, 1}});
    for (float x : Driven(TheKarcher(), tensor)) EXPECT_TRUE(std::isnan(x));
    tensor = TensorOf(TheNuslerp(), {{1, 2, bad, 4}, {3, 5, 1, 7}});
    tensor.row = 2;
    SetShared(TheNuslerp(), tensor.coefficients, "axis", 1);
    const std::vector<float> rows = Driven(TheNuslerp(), tensor);   // the row
    EXPECT_FALSE(std::isnan(rows[0]) || std::isnan(rows[1]));
    EXPECT_TRUE(std::isnan(rows[2]) && std::isnan(rows[3]));
  }
}

TEST(GramMerger, CosinesOfTheSameAndTheOppositeAreExact) {
  Random random;
  for (int i = 0; i < 1000; ++i) {
    const double square = std::exp(random.Normal() * 50);
    EXPECT_EQ(Cosine(square, square, square), 1);
    EXPECT_EQ(Cosine(square, square, -square), -1);
    EXPECT_EQ(Cosine(square, 4 * square, -2 * square), -1);
  }
}

}  // namespace
}  // namespace braid
