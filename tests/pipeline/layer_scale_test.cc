// layer_scale: over the layers, and with an alpha that is found. The formula is plain scalar code here.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "ops/method.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::Floats;
using fixture::StoredTensor;

class LayerScaleTest : public testing::Test {
 protected:
  // Tensors of several blocks, of one, and of a part; names in another order than the file's.
  void WriteFamily(const std::vector<std::string>& models) {
    const std::vector<std::pair<std::string, std::vector<uint64_t>>> tensors = {
        {"model.embed_tokens.weight", {300, 515}}, {"model.layers.1.w", {64, 2000}}, {"model.layers.0.w", {131'072}},
        {"model.layers.2.w", {7, 11}},             {"lm_head.weight", {1}},          {"a.bias", {65'537}}};
    for (const auto& [name, shape] : tensors) {
      uint64_t n = 1;
      for (uint64_t axis : shape) n *= axis;
      std::vector<double> values(n);
      for (double& value : values) value = random_.Normal();
      base_.push_back(Floats(name, DType::kF32, shape, values));
      for (const std::string& model : models) {
        std::vector<double> moved = values;
        for (double& value : moved) value += 0.1 * random_.Normal();
        tuned_[model].push_back(Floats(name, DType::kBF16, shape, moved));
      }
    }
    fixture::WriteCheckpoint(place_, "base", base_, 2);
    for (const std::string& model : models) fixture::WriteCheckpoint(place_, model, tuned_[model], 1);
  }

  std::string Recipe(const std::string& method, const std::string& layer_scale, const std::string& parameters,
                     const std::vector<std::string>& models) const {
    std::string text = "method = '" + method + "'\nbase = '" + place_ / "base" + "'\ndtype = 'float32'\n";
    if (!layer_scale.empty()) text += "layer_scale = { " + layer_scale + " }\n";
    text += "[parameters]\n" + parameters + "\n";
    for (const std::string& model : models)
      text += "[[models]]\npath = '" + place_ / model + "'\n" + (model == "a" ? weight_of_a_ : "");
    return place_.Write("recipe.toml", text);
  }

  MergeReport Merge(const std::string& recipe, const PlanOptions& options = {}) {
    std::filesystem::remove_all(place_ / "out");
    const uint64_t planned = fixture::PlanOf(recipe, options).totals.bytes_read;   // before the cache knows more
    MergeReport report = fixture::Merge(recipe, place_ / "out", options);
    merged_ = fixture::ReadTensors(place_ / "out");
    EXPECT_EQ(report.bytes_read, planned);
    return report;
  }

  static double LayerOf(const std::string& name) {
    return name == "model.layers.1.w" ? 0.5 : name == "model.layers.2.w" ? 1 : 0;
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
  std::vector<StoredTensor> base_;
  std::map<std::string, std::vector<StoredTensor>> tuned_;
  std::vector<StoredTensor> merged_;
  std::string weight_of_a_;
};

TEST_F(LayerScaleTest, GrowsOverTheLayers) {
  std::vector<StoredTensor> base, tuned;
  for (const char* name : {"model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.layers.2.w",
                           "lm_head.weight"}) {
    base.push_back(Constant(name, DType::kF32, 10, 1));
    tuned.push_back(Constant(name, DType::kF32, 10, 3));
  }
  fixture::WriteCheckpoint(place_, "base", base);
  fixture::WriteCheckpoint(place_, "tuned", tuned);
  // Without an alpha, that of a single model is 1 - beta: nothing is to be found out.
  struct Variant {
    const char *scale, *lambda;
    double first, last;   // factors of the task vector
  };
  const Variant variants[] = {{"alpha = 0.25, beta = 0.5", "lambda = 2", 0.5, 1.5},
                              {"beta = 0.5", "lambda = 1", 0.5, 1}};
  for (const char* method : {"task_arithmetic", "ties", "metagpt", "breadcrumbs", "multislerp", "nearswap"}) {
    for (const Variant& variant : variants) {
      SCOPED_TRACE(testing::Message() << method << ", " << variant.scale);
      std::string parameters = variant.lambda;
      if (method == std::string("nearswap")) parameters += "\nt = 5";   // all of it
      const std::string recipe = Recipe(method, variant.scale, parameters, {"tuned"});
      EXPECT_FALSE(fixture::PlanOf(recipe).measured);
      EXPECT_FALSE(Merge(recipe).result.alpha.has_value());
      ASSERT_EQ(merged_.size(), base.size());
      for (const StoredTensor& tensor : merged_) {
        const double factor = variant.first + (variant.last - variant.first) * LayerOf(tensor.name);
        EXPECT_EQ(fixture::LanesOf(tensor), std::vector<float>(10, static_cast<float>(1 + 2 * factor))) << tensor.name;
      }
    }
  }
}

double FoldedNorm(const float* lanes, size_t n) {
  double sums[16] = {};
  for (size_t i = 0; i < n; ++i) sums[i % 16] += std::fabs(static_cast<double>(lanes[i]));
  for (size_t step = 8; step > 0; step /= 2)
    for (size_t i = 0; i < step; ++i) sums[i] += sums[i + step];
  return sums[0];
}

// alpha = (|sum d|_1 / |sum w d|_1) / n, from the formula.
TEST_F(LayerScaleTest, AlphaIsThatOfTheFormula) {
  const std::vector<std::string> models = {"a", "b", "c"};
  WriteFamily(models);
  weight_of_a_ = "weight = 0.25\n";
  double mean = 0, merged = 0;
  std::map<std::string, std::vector<float>> merged_vectors;
  std::map<std::string, size_t> by_name;
  for (size_t t = 0; t < base_.size(); ++t) by_name[base_[t].name] = t;
  for (const auto& [name, t] : by_name) {
    const std::vector<float> base = fixture::LanesOf(base_[t]);
    std::vector<float> sum(base.size(), 0.0f), weighted(base.size(), 0.0f);
    for (const std::string& model : models) {
      const std::vector<float> x = fixture::LanesOf(tuned_[model][t]);
      for (size_t i = 0; i < x.size(); ++i) {
        const float d = x[i] - base[i];
        sum[i] += d;
        weighted[i] += (model == "a" ? 0.25f : 1.0f) * d;
      }
    }
    double tensor_mean = 0, tensor_merged = 0;
    for (size_t at = 0; at < base.size(); at += 65'536) {
      const size_t n = std::min<size_t>(65'536, base.size() - at);
      tensor_mean += FoldedNorm(&sum[at], n) / 3;
      tensor_merged += FoldedNorm(&weighted[at], n);
    }
    mean += tensor_mean, merged += tensor_merged;
    merged_vectors[name] = weighted;
  }
  const double alpha = mean / merged;
  for (const PlanOptions& options :
       {PlanOptions{}, PlanOptions{.memory = 5 << 20, .threads = 1}, PlanOptions{.threads = 3, .tile_elements = 65'536},
        PlanOptions{.memory = 64 << 20, .threads = 2, .tile_elements = 131'072}}) {
    const MergeReport report = Merge(Recipe("task_arithmetic", "beta = 0.75", "lambda = 1.5", models), options);
    ASSERT_TRUE(report.result.alpha.has_value());
    EXPECT_EQ(*report.result.alpha, alpha);
    EXPECT_NE(fixture::FileText(place_ / "out/braid.json").find(fmt::format("\"layer_scale_alpha\": {},", alpha)),
              std::string::npos);
    ASSERT_EQ(merged_.size(), base_.size());
    for (size_t t = 0; t < merged_.size(); ++t) {
      const auto lambda = static_cast<float>(1.5 * (alpha + 0.75 * LayerOf(merged_[t].name)));
      std::vector<float> expected = fixture::LanesOf(base_[t]);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += lambda * merged_vectors.at(base_[t].name)[i];
      EXPECT_EQ(fixture::LanesOf(merged_[t]), expected) << merged_[t].name;
    }
  }
}

// With what is found written into the recipe, the merge is the same; also in the least memory, and with a cache.
TEST_F(LayerScaleTest, EveryMethodFindsItsAlpha) {
  WriteFamily({"a", "b", "c"});
  std::vector<std::pair<std::string, std::string>> variants;
  for (const MethodInfo& method : Methods()) {
    if (method.Find("lambda") == nullptr || method.most_models < 2) continue;
    const std::string density = method.Find("density") != nullptr ? "density = 0.4\n" : "";
    if (method.name == "model_stock") variants.emplace_back(method.name, "filter_wise = true");
    if (method.name == "nuslerp")
      for (const char* axis : {"axis = 'first'", "axis = 'last'"}) variants.emplace_back(method.name, axis);
    variants.emplace_back(method.name, density);
    if (method.name == "ties")
      for (const char* more : {"scope = 'model'", "rescale = true", "zero_sign = 'majority'"})
        variants.emplace_back(method.name, density + more);
  }
  for (const auto& [method, parameters] : variants) {
    SCOPED_TRACE(method + " " + parameters);
    std::vector<std::string> models = {"a", "b", "c"};
    models.resize(std::min(models.size(), FindMethod(method)->most_models));
    const auto recipe = [&](const std::string& scale) { return Recipe(method, scale, parameters, models); };
    const MergeReport report = Merge(recipe("beta = 0.5"));
    ASSERT_TRUE(report.result.alpha.has_value());
    EXPECT_GT(*report.result.alpha, 0);
    const std::vector<StoredTensor> found = std::exchange(merged_, {});
    Merge(recipe(fmt::format("alpha = {:.17g}, beta = 0.5", *report.result.alpha)));
    EXPECT_EQ(merged_, found);

    const uint64_t least = fixture::PlanOf(recipe("beta = 0.5"), {.memory = fixture::kGiB, .threads = 2}).memory.least;
    Merge(recipe("beta = 0.5"), {.memory = least, .threads = 2});
    EXPECT_EQ(merged_, found) << least << " bytes";
    EXPECT_EQ(
        fixture::ErrorOf([&] { fixture::PlanOf(recipe("beta = 0.5"), {.memory = least - 1, .threads = 2}); }).code(),
        ErrorCode::kMemory);
    for (int i = 0; i < 2; ++i)
      Merge(recipe("beta = 0.5"), {.memory = least + (1 << 20), .threads = 2, .cache = place_ / "cache"});
    EXPECT_EQ(merged_, found) << "from the cache";
    if (HasFailure()) return;
  }
}

TEST_F(LayerScaleTest, ThePlanTellsHowOftenItReads) {
  WriteFamily({"a", "b"});
  uint64_t once = 0;
  for (size_t t = 0; t < base_.size(); ++t)
    once += base_[t].bytes.size() + tuned_["a"][t].bytes.size() + tuned_["b"][t].bytes.size();
  const auto reads = [&](const std::string& method, const std::string& parameters, uint64_t memory) {
    const Plan plan =
        fixture::PlanOf(Recipe(method, "beta = 1", parameters, {"a", "b"}), {.memory = memory, .threads = 1});
    EXPECT_TRUE(plan.measured);
    return plan.totals.bytes_read;
  };
  EXPECT_EQ(reads("task_arithmetic", "", fixture::kGiB), 2 * once);
  EXPECT_EQ(reads("ties", "density = 0.2", fixture::kGiB), 2 * once) << "each tensor stays until it is measured";
  EXPECT_EQ(reads("ties", "density = 0.2\nscope = 'model'", fixture::kGiB), 3 * once);
  EXPECT_EQ(reads("pcb", "", fixture::kGiB), 4 * once) << "magnitudes, scores, norms, the merge";
}

TEST_F(LayerScaleTest, CountsTheLayersOfTheOutput) {
  WriteFamily({"a", "b"});
  const auto by_name = [](std::vector<StoredTensor> tensors) {
    std::sort(tensors.begin(), tensors.end(), [](const auto& x, const auto& y) { return x.name < y.name; });
    return tensors;
  };
  std::string slices;
  for (const auto& [begin, end] : {std::pair(0, 1), {1, 3}}) {
    slices += "[[slices]]\n";
    for (const char* model : {"base", "a", "b"})
      slices += fmt::format("[[slices.sources]]\npath = '{}'\nlayer_range = [{}, {}]\n", place_ / model, begin, end);
  }
  for (const char* scale : {"beta = 0.5", "alpha = 0.25, beta = 0.5"}) {
    Merge(Recipe("task_arithmetic", scale, "", {"a", "b"}));
    const std::vector<StoredTensor> plain = by_name(merged_);
    Merge(Recipe("task_arithmetic", scale, slices, {}));
    EXPECT_EQ(by_name(merged_), plain) << scale;
  }
}

// Where a method without a base works on the models themselves.
TEST(LambdaWithoutBase, HasNoEffectAndSaysSo) {
  const std::string models = "[parameters]\nlambda = 0.5\n[[models]]\npath = 'x'\n[[models]]\npath = 'y'\n";
  for (const char* method : {"nuslerp", "multislerp"}) {
    const std::string head = fmt::format("method = '{}'\n", method);
    EXPECT_TRUE(ParseTomlRecipe(head + "base = 'b'\n" + models, "r.toml").warnings.empty());
    const Recipe alone = ParseTomlRecipe(head + models, "r.toml");
    ASSERT_EQ(alone.warnings.size(), 1u);
    EXPECT_EQ(alone.warnings[0].message, fmt::format("'lambda' has no effect in {} without a base", method));
    EXPECT_EQ(alone.warnings[0].where.line, 3);
  }
}

TEST_F(LayerScaleTest, ModelsWithoutWeightDoNotCount) {
  WriteFamily({"a", "b", "c"});
  weight_of_a_ = "weight = 0\n";
  Merge(Recipe("ties", "beta = 0.5", "density = 0.4", {"a", "b", "c"}));
  const std::vector<StoredTensor> with = std::exchange(merged_, {});
  Merge(Recipe("ties", "beta = 0.5", "density = 0.4", {"b", "c"}));
  EXPECT_EQ(merged_, with);
  const Plan plan = fixture::PlanOf(Recipe("ties", "beta = 0.5", "density = 0.4", {"a", "b"}));
  EXPECT_FALSE(plan.measured) << "a single one is left";
}

}  // namespace
}  // namespace braid
