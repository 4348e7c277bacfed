// Merges that write a delta, and the checkpoint that it makes with its base: file by file that of the merge.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "ops/method.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_scenario.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::StoredTensor;

void Apply(const std::string& base, const std::string& delta, const std::string& out, const PlanOptions& plan = {}) {
  fixture::Watchdog watchdog;
  const std::atomic<int> interrupt{0};
  Progress progress;
  RunMerge(ApplyRecipe(base, delta), {.out = out, .plan = plan, .quiet = true}, interrupt, &progress);
}

// The same headers, other weights.
std::vector<StoredTensor> Moved(std::vector<StoredTensor> tensors) {
  for (StoredTensor& tensor : tensors)
    for (std::byte& byte : tensor.bytes) byte ^= std::byte{1};
  return tensors;
}

// What a client loads: weights, index, config and tokenizer.
std::map<std::string, std::string> LoadedFiles(const std::string& out) {
  std::map<std::string, std::string> files = fixture::FilesOf(out);
  std::erase_if(files, [](const auto& file) {
    return file.first == "README.md" || file.first == "braid.json" || file.first == "braid_recipe.toml" ||
           file.first == "mergekit_config.yml";
  });
  return files;
}

class DeltaTest : public testing::Test {
 protected:
  // The same merge once as it is, once as a delta that is applied; each step in a budget and with tiles of its own.
  void ExpectTheSame(const std::string& recipe_path, const std::string& base, const PlanOptions& layout = {}) {
    const std::string text = fixture::FileText(recipe_path);
    const std::string delta_recipe = place_.Write("delta.toml", "output = 'delta'\n" + text);
    for (const char* out : {"out", "delta", "applied"}) std::filesystem::remove_all(place_ / out);
    fixture::Merge(recipe_path, place_ / "out", Options(recipe_path, layout));
    if (fixture::PlanOf(recipe_path, layout).totals.merged == 0) return ExpectNoDelta(delta_recipe);
    fixture::Merge(delta_recipe, place_ / "delta", Options(delta_recipe, layout));
    Apply(base, place_ / "delta", place_ / "applied",
          {.memory = 8 << 20, .threads = 2, .shard_bytes = layout.shard_bytes});
    fixture::ExpectSameFiles(LoadedFiles(place_ / "out"), LoadedFiles(place_ / "applied"));
    EXPECT_FALSE(std::filesystem::exists(place_ / "delta/config.json")) << "nothing shall take it for a model";
  }

  // Of a merge that changes nothing.
  void ExpectNoDelta(const std::string& delta_recipe) {
    const Error error = fixture::ErrorOf([&] { fixture::PlanOf(delta_recipe, {}); });
    EXPECT_NE(error.message().find("the delta is empty"), std::string::npos) << error.message();
  }

  PlanOptions Options(const std::string& recipe, PlanOptions options) {
    options.threads = 1 + static_cast<int>(random_.Below(3));
    options.memory = fixture::kGiB;
    if (random_.Chance(0.5)) {
      options.tile_elements = random_.OneOf<uint64_t>({0, 65'536, 131'072});
      return options;
    }
    options.memory = fixture::PlanOf(recipe, options).memory.least;
    return options;
  }

  // Two fine-tunes in types of their own, with tensors that no model changes, of whole numbers, and -0.0 in the base.
  void WriteFamily(DType base_type, DType model_type, size_t shards = 2) {
    const std::vector<std::pair<std::string, std::vector<uint64_t>>> tensors = {
        {"model.embed_tokens.weight", {300, 515}}, {"model.layers.0.w", {131'072}}, {"model.layers.1.w", {64, 2000}},
        {"model.layers.2.same", {7, 11}},          {"lm_head.weight", {70'001}}};
    std::vector<StoredTensor> base, a, b;
    for (const auto& [name, shape] : tensors) {
      uint64_t n = 1;
      for (uint64_t axis : shape) n *= axis;
      std::vector<double> values(n);
      for (double& value : values) value = random_.Chance(0.05) ? -0.0 : 0.1 * random_.Normal();
      const bool same = name.ends_with("same");
      const StoredTensor& kept = base.emplace_back(Floats(name, base_type, shape, values));
      for (auto* model : {&a, &b}) {
        std::vector<double> moved = values;
        for (double& value : moved)
          if (!same && random_.Chance(0.7)) value += 0.01 * random_.Normal();
        model->push_back(same ? kept : Floats(name, model_type, shape, moved));
      }
    }
    for (auto* model : {&base, &a, &b}) model->push_back(fixture::Integers("model.positions", {1, 2, 3}));
    fixture::WriteCheckpoint(place_, "base", base, shards);
    fixture::WriteCheckpoint(place_, "a", a, 1);
    fixture::WriteCheckpoint(place_, "b", b, 1);
  }

  std::string Recipe(std::string_view method, const std::string& head, const std::string& parameters,
                     size_t models = 2) {
    std::string text = fmt::format("method = '{}'\nbase = '{}'\n{}\n[parameters]\n{}\n", method, place_ / "base", head,
                                   parameters);
    for (size_t m = 0; m < models; ++m) text += fmt::format("[[models]]\npath = '{}'\n", place_ / (m == 0 ? "a" : "b"));
    return place_.Write("recipe.toml", text);
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
};

TEST_F(DeltaTest, AnyMergeComesBack) {
  for (int i = 0; i < 24 && !HasFailure(); ++i) {
    SCOPED_TRACE(i);
    fixture::TemporaryDirectory scenario_place;
    const fixture::Scenario scenario =
        fixture::RandomScenario(random_, i % 2 == 0 ? "ties" : "task_arithmetic", Syntax::kToml);
    const std::string recipe = fixture::WriteScenario(scenario_place, scenario, random_);
    ExpectTheSame(recipe, scenario_place / scenario.base.name);
  }
}

TEST_F(DeltaTest, OfEveryMethodAndType) {
  const DType types[] = {DType::kBF16, DType::kF16, DType::kF32, DType::kF64};
  int i = 0;
  for (const MethodInfo& method : Methods()) {
    if (!method.HasDelta()) continue;
    SCOPED_TRACE(method.name);
    std::string parameters = "lambda = 0.7\n";
    if (method.Find("density") != nullptr) parameters += "density = 0.4\n";
    if (method.name == "sce") parameters += "select_topk = 0.3\n";
    const std::string head = i % 3 == 0 ? "" : fmt::format("{} = '{}'", i % 3 == 1 ? "dtype" : "out_dtype",
                                                           TorchName(types[i % 4]));
    WriteFamily(types[(i / 2) % 4], types[(i + 1) % 4]);
    ExpectTheSame(Recipe(method.name, head, parameters, std::min<size_t>(2, method.most_models)), place_ / "base",
                  {.shard_bytes = 400'000});
    if (HasFailure()) return;
    ++i;
  }
}

TEST_F(DeltaTest, WholeModelsLayersAndParts) {
  WriteFamily(DType::kBF16, DType::kF32);
  const std::pair<const char*, const char*> variants[] = {
      {"", "density = 0.3\nscope = 'model'"},
      {"layer_scale = { beta = 0.5 }", "density = 0.3"},
      {"layer_scale = { alpha = 0.3, beta = 0.5 }\ndtype = 'float16'", "density = 0.3"},
      {"exclude = 'lm_head.weight'\ndtype = 'float32'", "density = 0.3\nrescale = true"},
      {"only = '*embed*'\ndtype = 'float16'", ""}};
  for (const auto& [head, parameters] : variants) {
    SCOPED_TRACE(fmt::format("{} {}", head, parameters));
    ExpectTheSame(Recipe("ties", head, parameters), place_ / "base");
  }
}

TEST_F(DeltaTest, HasWhatIsMerged) {
  WriteFamily(DType::kBF16, DType::kBF16);
  const std::string recipe = Recipe("task_arithmetic", "output = { content = 'delta', delta_dtype = 'bfloat16' }", "");
  fixture::Merge(recipe, place_ / "delta");
  const std::vector<StoredTensor> tensors = fixture::ReadTensors(place_ / "delta");
  ASSERT_EQ(tensors.size(), 5u) << "without what is copied";
  for (const StoredTensor& tensor : tensors) EXPECT_EQ(tensor.type, DType::kBF16);
  Apply(place_ / "base", place_ / "delta", place_ / "applied");
  const std::vector<StoredTensor> base = fixture::ReadTensors(place_ / "base"),
                                  applied = fixture::ReadTensors(place_ / "applied");
  ASSERT_EQ(applied.size(), base.size());
  for (size_t t = 0; t < base.size(); ++t)
    EXPECT_EQ(applied[t] == base[t], base[t].name == "model.positions" || base[t].name.ends_with("same"))
        << base[t].name;
  EXPECT_NE(fixture::FileText(place_ / "delta/braid.json").find("\"content\": \"delta\""), std::string::npos);
  const std::string kept = fixture::FileText(place_ / "applied/braid_recipe.toml");
  EXPECT_EQ(kept.find("delta"), kept.find("/delta")) << "the recipe is that of the checkpoint:\n" << kept;
  EXPECT_TRUE(std::filesystem::exists(place_ / "applied/mergekit_config.yml"));
}

TEST_F(DeltaTest, OneFileEach) {
  WriteFamily(DType::kF16, DType::kBF16);
  const std::string recipe = Recipe("ties", "", "density = 0.5");
  fixture::Merge(recipe, place_ / "out.safetensors");
  fixture::Merge(place_.Write("delta.toml", "output = 'delta'\n" + fixture::FileText(recipe)),
                 place_ / "delta.safetensors");
  Apply(place_ / "base", place_ / "delta.safetensors", place_ / "applied.safetensors");
  EXPECT_EQ(fixture::ReadTensors(place_ / "applied.safetensors"), fixture::ReadTensors(place_ / "out.safetensors"));
}

TEST_F(DeltaTest, IsNoModelAndFitsItsBase) {
  WriteFamily(DType::kBF16, DType::kBF16);
  fixture::Merge(Recipe("ties", "output = 'delta'", "density = 0.5"), place_ / "delta");
  const auto error_of = [](const auto& run) {
    const Error error = fixture::ErrorOf(run);
    EXPECT_EQ(error.code(), ErrorCode::kIncompatible) << error.what();
    return std::string(error.what());
  };
  const std::string linear = place_.Write(
      "linear.toml", fmt::format("method = 'linear'\n[[models]]\npath = '{}'\n[[models]]\npath = '{}'\n", place_ / "a",
                                 place_ / "delta"));
  EXPECT_NE(error_of([&] { fixture::PlanOf(linear); }).find("braid apply BASE DELTA OUT"), std::string::npos);
  const auto apply = [&](const char* base, const char* delta) {
    return error_of([&] { Apply(place_ / base, place_ / delta, place_ / "applied"); });
  };
  EXPECT_NE(apply("a", "delta").find("another base"), std::string::npos);
  fixture::WriteCheckpoint(place_, "tuned", Moved(fixture::ReadTensors(place_ / "base")), 2);
  EXPECT_NE(apply("tuned", "delta").find("a fine-tune of that base"), std::string::npos);
  EXPECT_NE(apply("base", "a").find("no delta"), std::string::npos);
  EXPECT_NE(apply("delta", "delta").find("is a delta"), std::string::npos);
  // The same tensors in other shards.
  std::filesystem::create_directory(place_ / "moved");
  std::vector<StoredTensor> base = fixture::ReadTensors(place_ / "base");
  fixture::WriteCheckpoint(place_, "moved", base, 1);
  EXPECT_NE(apply("moved", "delta").find("another base"), std::string::npos);
}

TEST_F(DeltaTest, MarksThatAreDamagedAreFound) {
  WriteFamily(DType::kBF16, DType::kBF16, 1);
  fixture::Merge(Recipe("ties", "output = 'delta'", "density = 0.5"), place_ / "delta");
  const std::string file = fixture::FileText(place_ / "delta/model.safetensors");
  for (const auto& [from, to] : {std::pair("BF16*5", "BF16*6"), {"BF16*5", "BF1\\u0036"}, {"BF16*5", "  I8*5"},
                                 {"BF16*5", "BF16*-"}, {"braid.base\"", "braid.bose\""}}) {
    std::string damaged = file;
    const size_t at = damaged.find(from);
    ASSERT_NE(at, std::string::npos);
    if (std::string(from).size() != std::string(to).size()) continue;
    damaged.replace(at, std::string(from).size(), to);
    place_.Write("delta/model.safetensors", damaged);
    const Error error = fixture::ErrorOf([&] { Apply(place_ / "base", place_ / "delta", place_ / "applied"); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << to << ": " << error.what();
  }
}

}  // namespace
}  // namespace braid
