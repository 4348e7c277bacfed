// `only` and `exclude`: what they leave out is copied from the base byte for byte, whatever its type, and takes no part
// in anything.
#include <gtest/gtest.h>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::StoredTensor;

class MergeExclude : public testing::Test {
 protected:
  StoredTensor RandomTensor(const std::string& name, DType type, size_t n = 70'000) {
    std::vector<double> values(n);
    for (double& value : values) value = random_.Normal() * 0.02;
    return Floats(name, type, {n}, values);
  }
  // Two layers with an attention and an mlp each, and integers.
  std::vector<StoredTensor> RandomModel(DType type, int64_t id) {
    std::vector<StoredTensor> tensors;
    for (const char* layer : {"l.0.", "l.1."})
      for (const char* part : {"attn.w", "mlp.w"}) tensors.push_back(RandomTensor(std::string(layer) + part, type));
    tensors.push_back(fixture::Integers("ids", {id, 2}));
    return tensors;
  }
  void WriteFamily(DType type = DType::kF32) {
    for (const char* name : {"base", "one", "two"}) {
      models_[name] = RandomModel(type, 7);
      fixture::WriteCheckpoint(place_, name, models_[name]);
    }
  }
  std::string Recipe(const std::string& method, const std::string& top, bool with_base = true) {
    std::string text = "method = '" + method + "'\n" + (with_base ? "base = '" + place_ / "base" + "'\n" : "") + top;
    for (const char* model : {"one", "two"}) text += "[[models]]\npath = '" + place_ / model + "'\n";
    return place_.Write("recipe.toml", text);
  }
  std::vector<StoredTensor> Run(const std::string& recipe, MergeReport* report = nullptr) {
    std::filesystem::remove_all(place_ / "out");
    const MergeReport got = fixture::Merge(recipe, place_ / "out", {.threads = 2, .tile_elements = 65'536});
    if (report != nullptr) *report = got;
    return fixture::ReadTensors(place_ / "out");
  }

  fixture::TemporaryDirectory place_;
  test::Random random_;
  std::map<std::string, std::vector<StoredTensor>> models_;
};

TEST_F(MergeExclude, WhatIsMergedComesOutAsWithoutFilters) {
  WriteFamily();
  const std::vector<StoredTensor> base = models_["base"];
  for (const char* method : {"ties", "task_arithmetic", "linear"}) {
    SCOPED_TRACE(method);
    const auto all = Run(Recipe(method, ""));
    MergeReport report;
    const auto some = Run(Recipe(method, "only = ['*.mlp.*', 'l.0.*']\nexclude = '*0.mlp*'\n"), &report);
    ASSERT_EQ(some.size(), 5u);
    EXPECT_EQ(some[0], all[0]) << "l.0.attn.w";
    EXPECT_EQ(some[1], base[1]) << "l.0.mlp.w";
    EXPECT_EQ(some[2], base[2]) << "l.1.attn.w";
    EXPECT_EQ(some[3], all[3]) << "l.1.mlp.w";
    EXPECT_EQ(some[4], base[4]) << "ids";
    EXPECT_FALSE(some[0] == base[0]);
    EXPECT_EQ(report.totals.merged, 2u);
    EXPECT_EQ(report.totals.unchanged, 3u);
    const std::string card = fixture::FileText(place_ / "out/README.md");
    EXPECT_NE(card.find("3 of 5 tensors were left out of the merge and are those of the base."), std::string::npos)
        << card;
  }
}

TEST_F(MergeExclude, TheTypeStays) {
  WriteFamily(DType::kF32);
  const auto merged = Run(Recipe("ties", "dtype = 'bfloat16'\nexclude = '*.attn.*'\n"));
  EXPECT_EQ(merged[0], models_["base"][0]);
  EXPECT_EQ(merged[1].type, DType::kBF16);
}

TEST_F(MergeExclude, WithoutABaseTheFirstModelLends) {
  WriteFamily();
  const auto merged = Run(Recipe("linear", "only = '*.attn.*'\n", false));
  EXPECT_EQ(merged[1], models_["one"][1]);
  EXPECT_EQ(merged[3], models_["one"][3]);
  EXPECT_FALSE(merged[0] == models_["one"][0]);
}

TEST_F(MergeExclude, ModelsMayDisagreeOnWhatIsNotMerged) {
  WriteFamily();
  models_["two"][4] = fixture::Integers("ids", {8, 2, 3});  // another value and another shape
  models_["two"].erase(models_["two"].begin());            // not even there
  models_["two"].push_back(RandomTensor("extra", DType::kF32, 10));
  std::filesystem::remove_all(place_ / "two");
  fixture::WriteCheckpoint(place_, "two", models_["two"]);
  EXPECT_EQ(fixture::ErrorOf([&] { Run(Recipe("ties", "")); }).code(), ErrorCode::kIncompatible);
  MergeReport report;
  const auto merged = Run(Recipe("ties", "exclude = ['ids', 'l.0.attn.w', 'extra']\n"), &report);
  ASSERT_EQ(merged.size(), 5u);
  EXPECT_EQ(merged[0], models_["base"][0]);
  EXPECT_EQ(merged[4], models_["base"][4]);
  ASSERT_EQ(report.warnings.size(), 1u);
  EXPECT_NE(report.warnings[0].find("extra is left out: the recipe excludes it, and " + place_ / "base" +
                                    " does not have it"),
            std::string::npos)
      << report.warnings[0];
}

TEST_F(MergeExclude, OneThresholdOverWhatIsMerged) {
  WriteFamily();
  const std::string top = "parameters.scope = 'model'\nparameters.density = 0.3\n";
  const auto some = Run(Recipe("ties", "only = '*.mlp.*'\n" + top));
  // The same models, of which the others' tensors were never there.
  for (auto& [name, tensors] : models_) {
    std::erase_if(tensors, [](const StoredTensor& tensor) { return tensor.name.find("mlp") == std::string::npos; });
    std::filesystem::remove_all(place_ / name);
    fixture::WriteCheckpoint(place_, name, tensors);
  }
  const auto without = Run(Recipe("ties", top));
  ASSERT_EQ(without.size(), 2u);
  EXPECT_EQ(some[1], without[0]);
  EXPECT_EQ(some[3], without[1]);
}

TEST_F(MergeExclude, NothingLeft) {
  WriteFamily();
  const Error error = fixture::ErrorOf([&] { fixture::PlanOf(Recipe("ties", "only = 'ids'\nexclude = 'i*'\n")); });
  EXPECT_EQ(error.code(), ErrorCode::kUsage);
  EXPECT_NE(std::string(error.what()).find("recipe.toml:3:8: only and exclude leave no tensor to merge"),
            std::string::npos)
      << error.what();
}

}  // namespace
}  // namespace braid
