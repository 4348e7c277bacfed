// Stages that each read two before them: there are more ways from the last to the files (2.5 x 10^12 of sixty) than
// anything may walk. The watchdog ends a test that does.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

constexpr int kStages = 60;

// The first two stages merge files, the second by `method`; the others average the two before them.
std::string Recipe(const fixture::TemporaryDirectory& place, const std::string& method) {
  std::string text;
  for (int s = 0; s < kStages; ++s) {
    const bool files = s < 2;
    text += "[[stages]]\n";
    if (s + 1 < kStages) text += fmt::format("name = 's{}'\n", s);
    text += s == 1 ? method : "method = 'linear'\n";
    const std::string first = files ? fmt::format("path = '{}'", place / "a") : fmt::format("stage = 's{}'", s - 1);
    const std::string second = files ? fmt::format("path = '{}'", place / "b") : fmt::format("stage = 's{}'", s - 2);
    text += fmt::format("[[stages.models]]\n{}\nweight = 0.5\n[[stages.models]]\n{}\nweight = 0.5\n", first, second);
  }
  return text;
}

class ManyStages : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"base", "a", "b"})
      fixture::WriteCheckpoint(place_, name, {fixture::Constant("w", DType::kF32, 100, name[0] == 'a' ? 3 : 1),
                                              fixture::Integers("steps", {4, 5})});
  }
  fixture::Watchdog watchdog_;
  fixture::TemporaryDirectory place_;
};

TEST_F(ManyStages, ACopiedTensorIsOfEachFileOnce) {
  const std::string recipe = place_.Write("recipe.toml", Recipe(place_, "method = 'linear'\n"));
  const Plan plan = fixture::PlanOf(recipe, {});
  for (const PlannedTensor& tensor : plan.tensors) EXPECT_EQ(tensor.models.size(), 2) << tensor.name;
  fixture::Merge(recipe, place_ / "out", {}, true);
  const auto merged = fixture::ReadTensors(place_ / "out");
  ASSERT_EQ(merged.size(), 2);
  for (const fixture::StoredTensor& tensor : merged) {
    if (tensor.name == "steps") EXPECT_EQ(tensor, fixture::Integers("steps", {4, 5}));
    else EXPECT_EQ(tensor, fixture::Constant("w", DType::kF32, 100, 2));   // means of 1 and 3, and of 2 and 2
  }
}

TEST_F(ManyStages, BytesOfEachStageAreCountedOnce) {
  const std::string whole = "method = 'ties'\nparameters = { density = 0.5, scope = 'model' }\n" +
                            fmt::format("base = '{}'\n", place_ / "base");
  const Plan plan = fixture::PlanOf(place_.Write("recipe.toml", Recipe(place_, whole)), {});
  const auto chosen = std::find_if(plan.stages.begin(), plan.stages.end(),
                                   [](const auto& stage) { return stage.choice.has_value(); });
  ASSERT_NE(chosen, plan.stages.end());
  EXPECT_EQ(chosen->name, "s1");
  EXPECT_EQ(chosen->choice->why_not, "");
  EXPECT_GT(chosen->choice->spilled, chosen->choice->recomputed);
}

}  // namespace
}  // namespace braid
