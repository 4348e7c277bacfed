// What the pipeline adds to the methods that take entries out of task vectors: draws that do not depend on other
// tensors, rows that have to fit the budget.
#include <gtest/gtest.h>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::Floats;
using fixture::StoredTensor;

std::vector<double> Normals(test::Random& random, size_t n) {
  std::vector<double> values(n);
  for (double& value : values) value = random.Normal();
  return values;
}

std::string Recipe(const fixture::TemporaryDirectory& place, const std::string& method, const std::string& more,
                   const std::vector<std::string>& models) {
  std::string text = "method = '" + method + "'\nbase = '" + place / "base" + "'\n" + more;
  for (const std::string& model : models) text += "\n[[models]]\npath = '" + place / model + "'\n";
  return place.Write("recipe.toml", text);
}

TEST(RandomMerges, DrawTheSameForSomeTensorsAsForAll) {
  test::Random random;
  const fixture::TemporaryDirectory place;
  std::vector<StoredTensor> base, tuned;
  for (const char* name : {"model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w"}) {
    base.push_back(Floats(name, DType::kF32, {300, 257}, Normals(random, 77'100)));
    tuned.push_back(Floats(name, DType::kBF16, {300, 257}, Normals(random, 77'100)));
  }
  fixture::WriteCheckpoint(place, "base", base);
  fixture::WriteCheckpoint(place, "tuned", tuned, 2);
  for (const char* method : {"dare_linear", "dare_ties", "della", "della_linear"}) {
    SCOPED_TRACE(method);
    fixture::Merge(Recipe(place, method, "[parameters]\ndensity = 0.5\nseed = 4", {"tuned"}), place / "all");
    const std::vector<StoredTensor> all = fixture::ReadTensors(place / "all");
    for (size_t t = 0; t < base.size(); ++t) {
      const fixture::TemporaryDirectory part;
      fixture::WriteCheckpoint(part, "base", {base[t]});
      fixture::WriteCheckpoint(part, "tuned", {tuned[t]});
      fixture::Merge(Recipe(part, method, "[parameters]\ndensity = 0.5\nseed = 4", {"tuned"}), part / "out",
                     {.threads = 2, .tile_elements = 65'536});
      const auto alone = fixture::ReadTensors(part / "out");
      ASSERT_EQ(alone.size(), 1u);
      EXPECT_TRUE(std::find(all.begin(), all.end(), alone.front()) != all.end()) << base[t].name;
      fixture::Merge(Recipe(part, method, "[parameters]\ndensity = 0.5\nseed = 5", {"tuned"}), part / "other");
      EXPECT_NE(fixture::ReadTensors(part / "other"), alone) << "another seed";
    }
    std::filesystem::remove_all(place / "all");
  }
}

TEST(Rows, HaveToFitTheBudget) {
  test::Random random;
  const fixture::TemporaryDirectory place;
  constexpr size_t kRow = 1'000'000;
  fixture::WriteCheckpoint(place, "base", {Floats("w", DType::kF32, {kRow}, Normals(random, kRow))});
  fixture::WriteCheckpoint(place, "tuned", {Floats("w", DType::kF32, {kRow}, Normals(random, kRow))});
  const std::string recipe = Recipe(place, "della", "[parameters]\ndensity = 0.5", {"tuned"});
  for (int threads : {1, 3}) {
    PlanOptions options{.memory = fixture::kGiB, .threads = threads};
    fixture::Merge(recipe, place / "plenty", options);
    options.memory = fixture::PlanOf(recipe, options).memory.least;
    EXPECT_GT(options.memory, static_cast<uint64_t>(threads) * kRow * 20);   // pairs twice, and ranks
    fixture::Merge(recipe, place / "least", options);
    EXPECT_EQ(fixture::ReadTensors(place / "least"), fixture::ReadTensors(place / "plenty"));
    --options.memory;
    EXPECT_EQ(fixture::ErrorOf([&] { fixture::PlanOf(recipe, options); }).code(), ErrorCode::kMemory);
    std::filesystem::remove_all(place / "plenty");
    std::filesystem::remove_all(place / "least");
  }
}

// What the norms' round decided is kept for the merge: of a tensor that stays in memory and of one that does not, but
// not at the price of a larger budget. The result is the same.
TEST(Decisions, AreKeptWhereThereIsRoom) {
  test::Random random;
  const fixture::TemporaryDirectory place;
  for (const char* name : {"base", "tuned", "other"})
    fixture::WriteCheckpoint(place, name, {Floats("w", DType::kF32, {512, 1024}, Normals(random, 524'288))});
  for (const char* method : {"dare_ties", "della", "breadcrumbs_ties"}) {
    SCOPED_TRACE(method);
    std::string parameters = "[parameters]\ndensity = 0.5\nrescale = true";
    if (std::string_view(method) == "breadcrumbs_ties") parameters += "\nscope = 'row'";
    const std::string recipe = Recipe(place, method, parameters, {"tuned", "other"});
    const auto merge = [&](uint64_t memory, bool resident, bool keeps) {
      const PlanOptions options{.memory = memory, .threads = 2};
      const PlannedScope scope = fixture::PlanOf(recipe, options).scopes.front();
      EXPECT_EQ(scope.resident, resident);
      EXPECT_EQ(scope.keeps_decisions, keeps);
      EXPECT_EQ(scope.kept_bytes, keeps ? 2 * 524'288 / 8 : 0);
      fixture::Merge(recipe, place / "out", options);
      std::vector<StoredTensor> tensors = fixture::ReadTensors(place / "out");
      std::filesystem::remove_all(place / "out");
      return tensors;
    };
    const std::vector<StoredTensor> merged = merge(fixture::kGiB, true, true);
    const uint64_t least = fixture::PlanOf(recipe, {.memory = fixture::kGiB, .threads = 2}).memory.least;
    EXPECT_EQ(merge(least, false, false), merged);
    EXPECT_EQ(merge(least + (1 << 20), false, true), merged);
  }
}

}  // namespace
}  // namespace braid
