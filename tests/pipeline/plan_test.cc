// The plan's promises: the smallest budget, the bytes that will be read, the fingerprint.
#include "pipeline/plan.h"

#include <gtest/gtest.h>

#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::Floats;
using fixture::kGiB;
using fixture::kMiB;
using fixture::StoredTensor;

std::vector<double> Ramp(size_t n, double step) {
  std::vector<double> values(n);
  for (size_t i = 0; i < n; ++i)
    values[i] = step * static_cast<double>(i * 7919 % 1'000'003 % 1009);  // neighbours are not alike: a sample tells
  return values;
}

class PlanTest : public testing::Test {
 protected:
  PlanTest() { WriteFamily(""); }

  // base, a and b under `root`; together some 9 MB.
  void WriteFamily(const std::string& root, size_t shards_of_b = 2) {
    const auto write = [&](const std::string& name, DType type, double step, size_t shards) {
      fixture::WriteCheckpoint(place_, root + name,
                               {Floats("model.embed_tokens.weight", type, {1000, 700}, Ramp(700'000, step)),
                                Floats("model.layers.0.w", type, {300'000}, Ramp(300'000, 2 * step)),
                                Floats("model.norm.weight", type, {5}, Ramp(5, step))},
                               shards);
    };
    write("base", DType::kBF16, 0.001, 1);
    write("a", DType::kBF16, 0.0012, 3);
    write("b", DType::kF32, 0.0009, shards_of_b);
  }

  std::string Recipe(const std::string& text, const std::string& root = "") {
    std::string filled;
    for (const char c : text) filled += c == '@' ? place_ / root : std::string(1, c);
    const bool yaml = text.starts_with("merge_method");
    return place_.Write(root + (yaml ? "recipe.yml" : "recipe.toml"), filled);
  }

  std::string Ties(const std::string& parameters, const std::string& of_a = "", const std::string& of_b = "") {
    return Recipe("method = 'ties'\nbase = '@base'\n[parameters]\n" + parameters + "\n[[models]]\npath = '@a'\n" +
                  of_a + "\n[[models]]\npath = '@b'\n" + of_b + "\n");
  }

  Error PlanError(const std::string& recipe, const PlanOptions& options = {}) {
    return fixture::ErrorOf([&] { fixture::PlanOf(recipe, options); });
  }

  // Merges; what the plan foretold must have been read and written.
  Plan CheckBytes(const std::string& recipe, const PlanOptions& options) {
    Plan plan = fixture::PlanOf(recipe, options);
    const MergeReport report = fixture::Merge(recipe, place_ / "out", options);
    EXPECT_EQ(report.bytes_read, plan.totals.bytes_read);
    EXPECT_EQ(report.bytes_written, plan.totals.bytes_written);
    EXPECT_EQ(report.fingerprint, PlanFingerprint(plan));
    uint64_t on_disk = 0;
    for (const auto& [name, bytes] : fixture::FilesOf(place_ / "out"))
      if (name.ends_with(".safetensors")) on_disk += bytes.size();
    EXPECT_EQ(on_disk, plan.totals.bytes_written);
    std::filesystem::remove_all(place_ / "out");
    return plan;
  }

  fixture::TemporaryDirectory place_;
};

constexpr uint64_t kBF16Bytes = 2 * 1'000'005, kF32Bytes = 4 * 1'000'005;

TEST_F(PlanTest, SmallestBudgetIsNamedAndWorks) {
  for (const char* parameters : {"density = 0.2", "density = 0.2\nscope = 'model'\nrescale = true", "density = 1"})
    for (int threads : {1, 3}) {
      SCOPED_TRACE(testing::Message() << parameters << ", " << threads << " threads");
      const std::string recipe = Ties(parameters);
      const Error error = PlanError(recipe, {.memory = kMiB / 4, .threads = threads});
      ASSERT_EQ(error.code(), ErrorCode::kMemory);
      const std::string hint = error.hint();
      const size_t digit = hint.find_first_of("0123456789");
      ASSERT_NE(digit, std::string::npos) << hint;
      EXPECT_TRUE(hint.ends_with("MiB")) << hint;
      const uint64_t least = std::stoull(hint.substr(digit)) * kMiB;
      EXPECT_EQ(PlanError(recipe, {.memory = least - kMiB, .threads = threads}).code(), ErrorCode::kMemory);
      const Plan plan = CheckBytes(recipe, {.memory = least, .threads = threads});
      EXPECT_LE(plan.memory.least, least);
      EXPECT_GT(plan.memory.least, least - kMiB);
    }
}

// Where tensors are small, output buffers are small too, and must not take what tiles and histograms need.
TEST_F(PlanTest, SmallestBudgetOfSmallTensorsWorks) {
  for (size_t elements : {1, 1000, 30'000, 65'536, 70'000}) {
    SCOPED_TRACE(elements);
    for (const char* name : {"base", "a", "b"}) {
      std::filesystem::remove_all(place_ / name);
      fixture::WriteCheckpoint(place_, name, {Constant("w", DType::kF32, elements, 1)});
    }
    const std::string recipe = Ties("density = 0.2\nrescale = true");
    const Error error = PlanError(recipe, {.memory = 1000, .threads = 4});
    const size_t digit = error.hint().find_first_of("0123456789");
    ASSERT_NE(digit, std::string::npos) << error.what();
    CheckBytes(recipe, {.memory = std::stoull(error.hint().substr(digit)) * kMiB, .threads = 4});
    CheckBytes(recipe,
               {.memory = fixture::PlanOf(recipe, {.memory = kMiB * 512, .threads = 4}).memory.least, .threads = 4});
  }
}

// Hundreds of small tensors, which need no statistics when they are drafted whole, between larger ones that do.
TEST_F(PlanTest, ManySmallTensorsInTheSmallestBudget) {
  for (const char* name : {"base", "a", "b"}) {
    std::filesystem::remove_all(place_ / name);
    std::vector<StoredTensor> tensors;
    for (size_t t = 0; t < 300; ++t)
      tensors.push_back(Floats("w" + std::to_string(t), DType::kBF16, {t % 100 == 0 ? 70'000u : 500u},
                               Ramp(t % 100 == 0 ? 70'000 : 500, 0.001 * static_cast<double>(name[0] - 'a' + 1))));
    fixture::WriteCheckpoint(place_, name, tensors, 1);
  }
  const std::string recipe = Ties("density = 0.2");
  const Error error = PlanError(recipe, {.memory = 1000, .threads = 4});
  const uint64_t least = std::stoull(error.hint().substr(error.hint().find_first_of("0123456789"))) * kMiB;
  for (uint64_t memory : {least, least + kMiB, least + 8 * kMiB, 256 * kMiB}) {
    fixture::Merge(recipe, place_ / "out", {.memory = memory, .threads = 4});
    std::filesystem::remove_all(place_ / "out");
  }
}

TEST_F(PlanTest, BytesOfAResidentMergeAreReadOnce) {
  const Plan plan = CheckBytes(Ties("density = 0.2"), {.memory = kGiB, .threads = 2});
  EXPECT_EQ(plan.totals.bytes_read, 2 * kBF16Bytes + kF32Bytes);
  for (const PlannedScope& scope : plan.scopes) EXPECT_TRUE(scope.resident);
}

TEST_F(PlanTest, BytesOfAStreamedMergeAreReadInEachRound) {
  const std::string recipe = Ties("density = 0.2\nscope = 'model'");
  const Plan plan = CheckBytes(recipe, {.memory = kGiB, .threads = 2});
  EXPECT_EQ(plan.totals.bytes_read, 2 * (2 * kBF16Bytes + kF32Bytes));
  const uint64_t least = plan.memory.least;
  const Plan small = CheckBytes(Ties("density = 0.2"), {.memory = least, .threads = 1});
  EXPECT_FALSE(small.scopes.front().resident);
  EXPECT_GT(small.totals.bytes_read, 2 * (2 * kBF16Bytes + kF32Bytes));
}

TEST_F(PlanTest, SourcesWithoutWeightAreNotRead) {
  for (uint64_t memory : {uint64_t{16 * kMiB}, uint64_t{kGiB}}) {
    CheckBytes(Ties("density = 0.2", "weight = [0, 1]"), {.memory = memory, .threads = 2});
    CheckBytes(Ties("density = 0.2\nscope = 'model'", "weight = [0, 1]"), {.memory = memory, .threads = 2});
    CheckBytes(Ties("density = 0.2\nscope = 'model'\nties_at_threshold = 'keep'", "weight = [0, 1]"),
               {.memory = memory, .threads = 2});
  }
  const Plan none = CheckBytes(Ties("density = 0.2", "weight = 0"), {.memory = kGiB});
  EXPECT_EQ(none.totals.bytes_read, kBF16Bytes + kF32Bytes) << "the base and b";
  const std::string linear = "method = 'linear'\n[[models]]\npath = '@a'\nweight = 1\n[[models]]\npath = '@b'\n";
  EXPECT_EQ(CheckBytes(Recipe(linear), {}).totals.bytes_read, kBF16Bytes + kF32Bytes);
  EXPECT_EQ(CheckBytes(Recipe(linear + "weight = 0\n"), {}).totals.bytes_read, kBF16Bytes);
}

TEST_F(PlanTest, FingerprintKnowsWhatDecidesTheBytes) {
  const std::string text = "method = 'ties'\nbase = '@base'\n[parameters]\ndensity = 0.2\n"
                           "[[models]]\npath = '@a'\n[[models]]\npath = '@b'\n";
  const auto of = [](const std::string& recipe, const PlanOptions& options) {
    return PlanFingerprint(fixture::PlanOf(recipe, options));
  };
  const std::string first = of(Recipe(text), {.memory = kGiB, .threads = 1});
  EXPECT_EQ(first.size(), 32u);
  EXPECT_EQ(first, of(Recipe(text), {.memory = 32 * kMiB, .threads = 1}));
  EXPECT_EQ(first, of(Recipe(text), {.memory = kGiB, .threads = 7, .tile_elements = 65'536}));
  WriteFamily("elsewhere/");
  EXPECT_EQ(first, of(Recipe(text, "elsewhere/"), {.memory = kGiB}));

  EXPECT_NE(first, of(Ties("density = 0.21"), {.memory = kGiB}));
  EXPECT_NE(first, of(Ties("density = 0.2\nzero_sign = 'majority'"), {.memory = kGiB}));
  EXPECT_NE(first, of(Recipe("dtype = 'float16'\n" + text), {.memory = kGiB}));
  EXPECT_NE(first, of(Recipe(text), {.memory = kGiB, .shard_bytes = 1'000'000}));
  EXPECT_NE(first, of(Recipe(text), {.memory = kGiB, .single_file = true}));
  WriteFamily("resized/", 3);
  EXPECT_NE(first, of(Recipe(text, "resized/"), {.memory = kGiB}));
}

TEST_F(PlanTest, AFilterThatMatchesNothing) {
  const Error error = PlanError(Ties("", "[[models.overrides]]\ntensors = '*.mpl.*'\nweight = 2"));
  EXPECT_EQ(error.code(), ErrorCode::kUsage);
  EXPECT_NE(error.message().find("*.mpl.*"), std::string::npos) << error.message();
  const std::string yaml = Recipe("merge_method: ties\nbase_model: @base\nmodels:\n  - model: @a\n    parameters:\n"
                                  "      weight:\n        - filter: mpl\n          value: 2\n        - value: 1\n");
  const std::vector<std::string> warnings = WarningTexts(fixture::PlanOf(yaml));
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("mpl"), std::string::npos) << warnings[0];
}

TEST_F(PlanTest, JsonIsDeterministic) {
  const std::string recipe = Ties("density = 0.2");
  const PlanOptions options{.memory = kGiB, .threads = 2};
  const auto text_of = [&] {
    std::string text;
    WritePlanJson(fixture::PlanOf(recipe, options), {{"more", 1}}, [&](std::string_view piece) { text += piece; });
    return text;
  };
  EXPECT_EQ(text_of(), text_of());
  const Json json = Json::parse(text_of());
  EXPECT_EQ(json["more"], 1);
  EXPECT_EQ(json["tensors"].size(), 3u);
  EXPECT_EQ(json["parameters"], 1'000'005u);
  EXPECT_EQ(json["bytes_read"], 2 * kBF16Bytes + kF32Bytes);
}

}  // namespace
}  // namespace braid
