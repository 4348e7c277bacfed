// Rules for all methods: missing tensors, integers, shapes, tied output heads.
#include <gtest/gtest.h>

#include "io/json.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::StoredTensor;

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

StoredTensor F32(const char* name, double value, uint64_t n = 4) { return Constant(name, DType::kF32, n, value); }

class MergeRules : public testing::Test {
 protected:
  void Write(const std::string& name, const std::vector<StoredTensor>& tensors,
             const std::string& config = fixture::kPlainConfig) {
    fixture::WriteCheckpoint(place_, name, tensors, 1, config);
  }

  // The models under a method's base (if any), `top` above the models.
  std::string Recipe(const std::string& method, const std::string& top, const std::vector<std::string>& models) {
    std::string text = "method = '" + method + "'\n" + top;
    if (method == "ties" || method == "task_arithmetic") text += "base = '" + place_ / "base" + "'\n";
    for (const std::string& model : models) text += "[[models]]\npath = '" + place_ / model + "'\n";
    return place_.Write("recipe.toml", text);
  }

  // Merges and gives the first lane of every tensor by name, in `order_` their names in file order.
  std::map<std::string, float> Run(const std::string& recipe) {
    std::filesystem::remove_all(place_ / "out");
    warnings_ = fixture::Merge(recipe, place_ / "out").warnings;
    std::map<std::string, float> first;
    order_.clear();
    for (const StoredTensor& tensor : fixture::ReadTensors(place_ / "out")) {
      order_.push_back(tensor.name);
      if (IsLaneType(tensor.type)) first[tensor.name] = fixture::LanesOf(tensor).at(0);
    }
    return first;
  }
  Error Fails(const std::string& recipe) {
    std::filesystem::remove_all(place_ / "out");
    const Error error = fixture::ErrorOf([&] { fixture::Merge(recipe, place_ / "out"); });
    EXPECT_FALSE(std::filesystem::exists(place_ / "out"));
    EXPECT_FALSE(std::filesystem::exists(place_ / "out.partial"));
    return error;
  }
  Json Config() { return ParseJson(fixture::FileText(place_ / "out/config.json"), "config.json"); }

  fixture::TemporaryDirectory place_;
  std::vector<std::string> order_, warnings_;
};

using Lanes = std::map<std::string, float>;

TEST_F(MergeRules, OnMissingWithTaskVectors) {
  Write("base", {F32("w", 1), F32("x", 10)});
  Write("a", {F32("w", 3), F32("x", 20)});
  Write("b", {F32("w", 5)});
  const Error error = Fails(Recipe("task_arithmetic", "", {"a", "b"}));
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_EQ(error.tensor(), "x");
  // normalize divides by all weights with "base", by those of the models that have the tensor with "skip".
  const std::string normalize = "parameters.normalize = true\n";
  EXPECT_EQ(Run(Recipe("task_arithmetic", "on_missing = 'base'\n" + normalize, {"a", "b"})),
            (Lanes{{"w", 4}, {"x", 15}}));
  EXPECT_EQ(Run(Recipe("task_arithmetic", "on_missing = 'skip'\n" + normalize, {"a", "b"})),
            (Lanes{{"w", 4}, {"x", 20}}));
}

TEST_F(MergeRules, OnMissingWithAverages) {
  Write("a", {F32("w", 2), F32("x", 10)});
  Write("b", {F32("w", 4)});
  Write("base", {F32("w", 6), F32("x", 30)});
  const std::string base = "base = '" + place_ / "base" + "'\n";
  for (const char* method : {"linear", "average"}) {
    SCOPED_TRACE(method);
    EXPECT_EQ(Fails(Recipe(method, "", {"a", "b"})).tensor(), "x");
    EXPECT_EQ(Fails(Recipe(method, "on_missing = 'base'\n", {"a", "b"})).code(), ErrorCode::kUsage) << "no base";
    EXPECT_EQ(Fails(Recipe(method, "on_missing = 'base'\nbase = '" + place_ / "b" + "'\n", {"a"})).tensor(), "x");
    EXPECT_EQ(Run(Recipe(method, "on_missing = 'skip'\n", {"a", "b"})), (Lanes{{"w", 3}, {"x", 10}}));
    EXPECT_EQ(Run(Recipe(method, "on_missing = 'skip'\n" + base, {"a", "b"})), (Lanes{{"w", 4}, {"x", 20}}));
    const Lanes with_base = Run(Recipe(method, "on_missing = 'base'\n" + base, {"a", "b"}));
    EXPECT_EQ(with_base, (Lanes{{"w", 4}, {"x", 70.0f / 3}}));
  }
}

TEST_F(MergeRules, TensorsThatOnlyAModelHas) {
  Write("base", {F32("w", 1)});
  Write("a", {F32("extra", 7), F32("w", 3)});
  const Error error = Fails(Recipe("ties", "", {"a"}));
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_EQ(error.tensor(), "extra");
  EXPECT_EQ(Run(Recipe("ties", "on_missing = 'base'\n", {"a"})), (Lanes{{"w", 3}}));
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("extra"), std::string::npos);
  Write("b", {F32("w", 5)});
  EXPECT_EQ(Run(Recipe("linear", "on_missing = 'skip'\n", {"b", "a"})), (Lanes{{"w", 4}, {"extra", 7}}));
  EXPECT_EQ(order_, (std::vector<std::string>{"w", "extra"}));
}

TEST_F(MergeRules, OutputHasTheOrderOfTheBase) {
  Write("base", {F32("z", 1), F32("a", 1), F32("m", 1)});
  Write("tuned", {F32("a", 2), F32("m", 2), F32("z", 2)});
  for (const char* top : {"", "parameters.scope = 'model'\nparameters.density = 0.5\n"}) {
    Run(Recipe("ties", top, {"tuned"}));
    EXPECT_EQ(order_, (std::vector<std::string>{"z", "a", "m"}));
  }
}

TEST_F(MergeRules, IntegersAreCopiedWhenEqual) {
  const StoredTensor ids = fixture::Integers("position_ids", std::vector<int64_t>(100'000, -7));
  Write("base", {F32("w", 1), ids});
  Write("a", {ids, F32("w", 3)});
  Write("b", {F32("w", 5), ids});
  const std::string recipe = Recipe("ties", "parameters.scope = 'model'\nparameters.density = 0.5\n", {"a", "b"});
  Run(recipe);
  EXPECT_EQ(fixture::ReadTensors(place_ / "out").at(1), ids);
  std::filesystem::remove_all(place_ / "out");

  StoredTensor other = ids;
  other.bytes.back() = std::byte{1};
  Write("b", {F32("w", 5), other});
  const Error error = Fails(recipe);
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_EQ(error.tensor(), "position_ids");

  Write("b", {F32("w", 5), Constant("position_ids", DType::kF32, 100'000, -7)});
  EXPECT_EQ(Fails(recipe).tensor(), "position_ids") << "an integer and a float are never the same";
}

TEST_F(MergeRules, ShapesMustAgree) {
  Write("base", {F32("w", 1), fixture::Floats("x", DType::kF32, {2, 3}, std::vector<double>(6))});
  Write("a", {F32("w", 3), fixture::Floats("x", DType::kF32, {3, 2}, std::vector<double>(6))});
  const Error error = Fails(Recipe("ties", "", {"a"}));
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_EQ(error.tensor(), "x");
  EXPECT_NE(error.message().find("[2, 3]"), std::string::npos) << error.message();
  EXPECT_NE(error.message().find("[3, 2]"), std::string::npos) << error.message();
}

// --- tied output heads ------------------------------------------------------------------------------------

constexpr const char* kTied =
    "{\"model_type\": \"llama\", \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\"}";
constexpr const char* kUntied =
    "{\"model_type\": \"llama\", \"tie_word_embeddings\": false, \"torch_dtype\": \"float32\"}";

TEST_F(MergeRules, HeadsTiedEverywhereStayTied) {
  Write("base", {F32(kEmbedding, 1)}, kTied);
  Write("a", {F32(kEmbedding, 3)}, kTied);
  EXPECT_EQ(Run(Recipe("task_arithmetic", "", {"a"})), (Lanes{{kEmbedding, 3}}));
  EXPECT_EQ(Config()["tie_word_embeddings"], true);
}

TEST_F(MergeRules, AHeadStoredThoughTiedIsNotWritten) {
  Write("base", {F32(kEmbedding, 1), F32(kHead, 1)}, kTied);
  Write("a", {F32(kEmbedding, 3), F32(kHead, 99)}, kTied);  // a client would load 3 for it
  EXPECT_EQ(Run(Recipe("task_arithmetic", "", {"a"})), (Lanes{{kEmbedding, 3}}));
  EXPECT_EQ(Config()["tie_word_embeddings"], true);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find(kHead), std::string::npos);
}

TEST_F(MergeRules, OneUntiedSourceUntiesTheMerge) {
  Write("base", {F32(kEmbedding, 1)}, kTied);
  Write("a", {F32(kEmbedding, 3)}, kTied);
  Write("b", {F32(kEmbedding, 5), F32(kHead, 11)}, kUntied);
  EXPECT_EQ(Run(Recipe("task_arithmetic", "", {"a", "b"})), (Lanes{{kEmbedding, 7}, {kHead, 13}}));
  EXPECT_EQ(Config()["tie_word_embeddings"], false);
}

TEST_F(MergeRules, AStoredHeadThatIsTiedCountsAsTheEmbedding) {
  Write("base", {F32(kEmbedding, 1), F32(kHead, 50)}, kTied);
  Write("a", {F32(kEmbedding, 3), F32(kHead, 11)}, kUntied);
  EXPECT_EQ(Run(Recipe("task_arithmetic", "", {"a"})), (Lanes{{kEmbedding, 3}, {kHead, 11}}));
  EXPECT_EQ(Config()["tie_word_embeddings"], false);
}

TEST_F(MergeRules, UntiedEverywhereKeepsItsConfig) {
  Write("base", {F32(kEmbedding, 1), F32(kHead, 2)}, kUntied);
  Write("a", {F32(kEmbedding, 3), F32(kHead, 5)}, kUntied);
  EXPECT_EQ(Run(Recipe("task_arithmetic", "", {"a"})), (Lanes{{kEmbedding, 3}, {kHead, 5}}));
  EXPECT_EQ(Config()["tie_word_embeddings"], false);
}

}  // namespace
}  // namespace braid
