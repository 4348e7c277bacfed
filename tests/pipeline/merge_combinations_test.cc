// Whole merges by the methods of norms and inner products: the same bytes for any tiles, threads and memory, and errors
// that name the tensor. What the bytes are is tested in tests/ops.
#include <gtest/gtest.h>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::Floats;
using fixture::StoredTensor;

class MergeCombinations : public testing::Test {
 protected:
  StoredTensor RandomTensor(const std::string& name, DType type, const std::vector<uint64_t>& shape) {
    uint64_t n = 1;
    for (uint64_t extent : shape) n *= extent;
    std::vector<double> values(n);
    for (double& value : values) value = random_.Normal() * 0.02;
    return Floats(name, type, shape, values);
  }
  void WriteModels() {
    for (const char* name : {"base", "a", "b", "c"})
      fixture::WriteCheckpoint(
          place_, name,
          {RandomTensor("columns", DType::kBF16, {1100, 1024}), RandomTensor("wide", DType::kF32, {3, 70'001}),
           RandomTensor("cube", DType::kF16, {4, 5, 33}), RandomTensor("vector", DType::kBF16, {777}),
           RandomTensor("none", DType::kF32, {0, 5}), fixture::Integers("ids", {1, 2, 3})});
  }
  std::string Recipe(const std::string& top, bool with_base, const std::vector<std::string>& models) {
    std::string text;
    if (with_base) text += "base = '" + place_ / "base" + "'\n";
    text += top;
    for (const std::string& model : models) {
      const size_t space = model.find(' ');
      text += "[[models]]\npath = '" + place_ / model.substr(0, space) + "'\n";
      if (space != std::string::npos) text += model.substr(space + 1) + "\n";
    }
    return place_.Write("recipe.toml", text);
  }
  std::vector<StoredTensor> Run(const std::string& recipe, PlanOptions options = {}) {
    std::filesystem::remove_all(place_ / "out");
    fixture::Merge(recipe, place_ / "out", options);
    return fixture::ReadTensors(place_ / "out");
  }

  fixture::TemporaryDirectory place_;
  test::Random random_;
};

TEST_F(MergeCombinations, TilesThreadsAndMemoryChangeNothing) {
  WriteModels();
  struct Way {
    const char* top;
    bool base;
    std::vector<std::string> models;
  };
  const Way ways[] = {{"method = 'slerp'\nparameters.t = 0.3\n", true, {"a"}},
                      {"method = 'slerp'\nparameters.weight = 1\n", false, {"a", "b", "c"}},
                      {"method = 'nuslerp'\n", true, {"a weight = 0.3", "b"}},
                      {"method = 'nuslerp'\nparameters.axis = 'last'\n", true, {"a weight = 0.3", "b"}},
                      {"method = 'nuslerp'\nparameters.axis = 'first'\n", true, {"a weight = 0.3", "b"}},
                      {"method = 'nuslerp'\nparameters.axis = 'first'\n", false, {"a weight = 0.3", "b"}},
                      {"method = 'multislerp'\n", true, {"a weight = 0.3", "b", "c"}},
                      {"method = 'karcher'\n", true, {"a", "b", "c"}},
                      {"method = 'model_stock'\n", true, {"a", "b", "c"}},
                      {"method = 'model_stock'\nparameters.filter_wise = true\n", true, {"a", "b", "c"}},
                      {"method = 'nearswap'\nparameters.t = 0.001\n", true, {"a"}},
                      {"method = 'passthrough'\n", false, {"a scale = 0.3"}}};
  const PlanOptions plans[] = {{.memory = fixture::kGiB, .threads = 3},
                               {.memory = fixture::kGiB, .threads = 3, .tile_elements = 65'536},
                               {.memory = 64 * fixture::kMiB, .threads = 2, .tile_elements = 131'072},
                               {.memory = 48 * fixture::kMiB, .threads = 1}};
  std::vector<std::vector<StoredTensor>> results;
  for (const Way& way : ways) {
    SCOPED_TRACE(way.top);
    const std::string recipe = Recipe(way.top, way.base, way.models);
    const std::vector<StoredTensor> first = Run(recipe, plans[0]);
    for (size_t i = 1; i < std::size(plans); ++i) EXPECT_TRUE(Run(recipe, plans[i]) == first) << "plan " << i;
    for (const auto& earlier : results) EXPECT_FALSE(earlier == first);   // each way is another merge
    results.push_back(first);
  }
}

TEST_F(MergeCombinations, TheBaseOfSlerpIsItsFirstModel) {
  WriteModels();
  const std::vector<StoredTensor> base = fixture::ReadTensors(place_ / "base"), a = fixture::ReadTensors(place_ / "a");
  EXPECT_TRUE(Run(Recipe("method = 'slerp'\nparameters.t = 0\n", true, {"a"})) == base);
  EXPECT_TRUE(Run(Recipe("method = 'slerp'\nparameters.t = 0\n", true, {"a", "base"})) == base);
  EXPECT_TRUE(Run(Recipe("method = 'slerp'\nparameters.t = 1\n", true, {"a", "base"})) == a);
  EXPECT_TRUE(Run(Recipe("method = 'slerp'\nparameters.t = 0\n", false, {"a", "base"})) == a);
  EXPECT_TRUE(Run(Recipe("method = 'passthrough'\n", true, {"a"})) == a);
}

TEST_F(MergeCombinations, DirectionsThatCancelAreAnErrorThatNamesTheTensor) {
  for (const auto& [name, value] : {std::pair("a", 1.0), std::pair("b", -0.5), std::pair("c", 0.0)})
    fixture::WriteCheckpoint(place_, name,
                             {Constant("fine", DType::kF32, 3, 2), Constant("cancels", DType::kF32, 3, value)});
  const std::string recipe = Recipe("method = 'multislerp'\n", false, {"a", "b", "c"});
  const Error error = fixture::ErrorOf([&] { Run(recipe); });
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_EQ(error.tensor(), "cancels");
  EXPECT_NE(error.message().find("cancel"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(place_ / "out"));
}

TEST_F(MergeCombinations, ATensorThatOnlyOneHasComesOutAsItIs) {
  fixture::WriteCheckpoint(place_, "a", {Constant("w", DType::kF32, 3, 2)});
  fixture::WriteCheckpoint(place_, "b", {Constant("w", DType::kF32, 3, 4), Constant("x", DType::kF32, 3, 5)});
  for (const char* method : {"method = 'slerp'\nparameters.t = 0\n", "method = 'nuslerp'\n", "method = 'multislerp'\n",
                             "method = 'karcher'\n"}) {
    const std::vector<StoredTensor> merged =
        Run(Recipe(method + std::string("on_missing = 'skip'\n"), false, {"a", "b"}));
    ASSERT_EQ(merged.size(), 2u) << method;
    EXPECT_EQ(merged[1], Constant("x", DType::kF32, 3, 5)) << method;
  }
}

TEST_F(MergeCombinations, SlerpTakesTOfTwoModelsOnly) {
  for (const char* name : {"a", "b", "c"}) fixture::WriteCheckpoint(place_, name, {Constant("w", DType::kF32, 3, 2)});
  const auto fails = [&](const std::string& top, const std::vector<std::string>& models) {
    const Error error = fixture::ErrorOf([&] { Run(Recipe("method = 'slerp'\n" + top, false, models)); });
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    return error.message();
  };
  EXPECT_NE(fails("parameters.t = 0.5\n", {"a", "b", "c"}).find("t is given"), std::string::npos);
  EXPECT_NE(fails("", {"a", "b"}).find("neither t nor a weight"), std::string::npos);
}

TEST_F(MergeCombinations, ARowThatDoesNotFitIsRefused) {
  for (const char* name : {"base", "a", "b"})
    fixture::WriteCheckpoint(place_, name,
                             {Floats("w", DType::kF32, {1, 4'000'000}, std::vector<double>(4'000'000, 1.0))});
  const std::string top = "method = 'model_stock'\nparameters.filter_wise = ";
  const PlanOptions options{.memory = 64 * fixture::kMiB, .threads = 1};
  EXPECT_EQ(fixture::ErrorOf([&] { fixture::PlanOf(Recipe(top + "true\n", true, {"a", "b"}), options); }).code(),
            ErrorCode::kMemory);
  fixture::PlanOf(Recipe(top + "false\n", true, {"a", "b"}), options);
}

}  // namespace
}  // namespace braid
