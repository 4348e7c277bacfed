// Recipes that stack layers: which tensors come out, from where, in which order, with which parameters, and what
// config.json says of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "io/json.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::StoredTensor;

constexpr const char* kLinear = "merge_method: linear\n";

class SlicesTest : public testing::Test {
 protected:
  // A llama of `layers` layers whose tensors are all `value`, plus the layer's number in layers.
  void WriteLlama(const std::string& name, size_t layers, double value, const std::string& more_config = "") {
    std::vector<StoredTensor> tensors = {Constant("model.embed_tokens.weight", DType::kF32, 6, value)};
    for (size_t i = 0; i < layers; ++i)
      for (const char* part : {"self_attn.q_proj", "mlp.up_proj"})
        tensors.push_back(Constant(fmt::format("model.layers.{}.{}.weight", i, part), DType::kF32, 4,
                                   value + static_cast<double>(i)));
    tensors.push_back(Constant("model.norm.weight", DType::kF32, 2, value));
    tensors.push_back(Constant("lm_head.weight", DType::kF32, 6, value));
    fixture::WriteCheckpoint(
        place_, name, tensors, 2,
        fmt::format(R"({{"model_type": "llama", "num_hidden_layers": {}{}}})", layers, more_config));
  }

  std::string Recipe(const std::string& text) {
    std::string filled;
    for (const char c : text) filled += c == '@' ? place_ / "" : std::string(1, c);
    return place_.Write(text.starts_with("merge_method") ? "recipe.yml" : "recipe.toml", filled);
  }

  // Name -> first element, after a merge into out/.
  std::map<std::string, float> Merged(const std::string& recipe, const PlanOptions& options = {}) {
    std::filesystem::remove_all(place_ / "out");
    report_ = fixture::Merge(Recipe(recipe), place_ / "out", options);
    std::map<std::string, float> values;
    order_.clear();
    for (const StoredTensor& tensor : fixture::ReadTensors(place_ / "out")) {
      const std::vector<float> lanes = fixture::LanesOf(tensor);
      EXPECT_TRUE(std::all_of(lanes.begin(), lanes.end(), [&](float x) { return x == lanes.front(); })) << tensor.name;
      values[tensor.name] = lanes.front();
      order_.push_back(tensor.name);
    }
    return values;
  }

  Json Config() const { return Json::parse(fixture::FileText(place_ / "out/config.json")); }

  fixture::TemporaryDirectory place_;
  MergeReport report_;
  std::vector<std::string> order_;
};

std::string Source(const std::string& model, size_t begin, size_t end, const std::string& parameters = "weight: 1") {
  return fmt::format("      - model: '@{}'\n        layer_range: [{}, {}]\n        parameters: {{{}}}\n", model, begin,
                     end, parameters);
}

std::string Slice(const std::string& sources, const std::string& more = "") {
  return "  - sources:\n" + sources + more;
}

TEST_F(SlicesTest, LayersAreStackedAndNumberedAnew) {
  WriteLlama("a", 6, 100,
             R"(, "layer_types": ["a0", "a1", "a2", "a3", "a4", "a5"], "eos_token_id": [1, 2, 3, 4, 5, 6])");
  WriteLlama("b", 6, 200, R"(, "layer_types": ["b0", "b1", "b2", "b3", "b4", "b5"])");
  const auto values = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 4)) + Slice(Source("b", 2, 6)));
  ASSERT_EQ(values.size(), 3u + 8 * 2);
  for (size_t i = 0; i < 8; ++i) {
    const float expected = i < 4 ? 100.0f + static_cast<float>(i) : 202.0f + static_cast<float>(i - 4);
    EXPECT_EQ(values.at(fmt::format("model.layers.{}.self_attn.q_proj.weight", i)), expected);
    EXPECT_EQ(values.at(fmt::format("model.layers.{}.mlp.up_proj.weight", i)), expected);
  }
  EXPECT_EQ(values.at("model.embed_tokens.weight"), 100) << "of the first slice";
  EXPECT_EQ(values.at("model.norm.weight"), 200) << "of the last slice";
  EXPECT_EQ(values.at("lm_head.weight"), 200) << "of the last slice";
  EXPECT_EQ(order_.front(), "model.embed_tokens.weight");
  EXPECT_EQ(order_[1], "model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(order_[16], "model.layers.7.mlp.up_proj.weight");
  EXPECT_EQ(order_.back(), "lm_head.weight");
  const Json config = Config();
  EXPECT_EQ(config["num_hidden_layers"], 8);
  EXPECT_EQ(config["layer_types"].dump(), R"(["a0","a1","a2","a3","b2","b3","b4","b5"])");
  EXPECT_EQ(config["eos_token_id"].size(), 6u) << "as long by chance";
  EXPECT_TRUE(report_.warnings.empty()) << report_.warnings.front();
}

TEST_F(SlicesTest, BothSyntaxesMeanTheSame) {
  WriteLlama("a", 4, 1), WriteLlama("b", 4, 10);
  const auto yaml = Merged(std::string(kLinear) + "parameters: {normalize: [true, false]}\nslices:\n" +
                           Slice(Source("a", 0, 3, "weight: [1, 2]") + Source("b", 1, 4, "weight: 3"),
                                 "    parameters: {normalize: false}\n") +
                           Slice(Source("b", 0, 2, "weight: [{filter: mlp, value: 5}, {value: 7}]")));
  const std::string recipe = place_ / "recipe.yml";
  const auto toml = Merged(R"(
method = "linear"
[parameters]
normalize = [true, false]
[[slices]]
normalize = false
[[slices.sources]]
path = "@a"
layer_range = [0, 3]
weight = [1, 2]
[[slices.sources]]
path = "@b"
layer_range = [1, 4]
weight = 3
[[slices]]
sources = [{path = "@b", layer_range = [0, 2], weight = 7, overrides = [{tensors = "*mlp*", weight = 5}]}]
)");
  EXPECT_EQ(yaml, toml);
  EXPECT_EQ(yaml.at("model.layers.0.mlp.up_proj.weight"), 1 * 1 + 3 * 11) << "the slice's normalize";
  EXPECT_EQ(yaml.at("model.layers.1.mlp.up_proj.weight"), 1.5f * 2 + 3 * 12);
  EXPECT_EQ(yaml.at("model.layers.3.mlp.up_proj.weight"), 10) << "the recipe's normalize, first layer";
  EXPECT_EQ(yaml.at("model.layers.4.mlp.up_proj.weight"), 5 * 11) << "its last layer";
  EXPECT_EQ(yaml.at("model.layers.4.self_attn.q_proj.weight"), 7 * 11);
}

// mergekit 0.1.5 on the same recipes: mergekit.md, 2.4. A linear of one model that is not normalised is a scale.
TEST_F(SlicesTest, GradientsStartAnewInEachSlice) {
  WriteLlama("a", 4, 0);
  std::vector<StoredTensor> ones = fixture::ReadTensors(place_ / "a");
  for (StoredTensor& tensor : ones)
    tensor = fixture::Floats(tensor.name, DType::kF32, tensor.shape,
                             std::vector<double>(fixture::LanesOf(tensor).size(), 1));
  fixture::WriteCheckpoint(place_, "ones", ones, 1, R"({"num_hidden_layers": 4})");
  const std::string linear = std::string(kLinear) + "parameters: {normalize: false}\nslices:\n";
  const auto layer = [](const std::map<std::string, float>& values, int i) {
    return values.at(fmt::format("model.layers.{}.mlp.up_proj.weight", i));
  };

  const auto one = Merged(linear + Slice(Source("ones", 0, 4, "weight: [1, 2, 4]")));
  EXPECT_EQ(layer(one, 0), 1);
  EXPECT_FLOAT_EQ(layer(one, 1), 5.0f / 3);
  EXPECT_FLOAT_EQ(layer(one, 2), 8.0f / 3);
  EXPECT_EQ(layer(one, 3), 4);
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"})
    EXPECT_EQ(one.at(name), 1) << name;

  const auto two =
      Merged(linear + Slice(Source("ones", 0, 1, "weight: [10, 20]")) + Slice(Source("ones", 1, 4, "weight: [1, 2]")));
  EXPECT_EQ(two.at("model.embed_tokens.weight"), 10);
  EXPECT_EQ(layer(two, 0), 20) << "the only layer of its slice";
  EXPECT_EQ(layer(two, 1), 1);
  EXPECT_EQ(layer(two, 2), 1.5f);
  EXPECT_EQ(layer(two, 3), 2);
  EXPECT_EQ(two.at("model.norm.weight"), 1);
  EXPECT_EQ(two.at("lm_head.weight"), 1);
}

TEST_F(SlicesTest, FiltersSeeTheNameInTheModelOrInTheOutput) {
  WriteLlama("a", 4, 1);
  const auto values =
      Merged(std::string(kLinear) + "slices:\n" +
             Slice(Source("a", 2, 4, "weight: [{filter: layers.3., value: 5}, {value: 7}]"),
                   "    parameters: {normalize: [{filter: layers.1., value: false}, {value: true}]}\n"));
  EXPECT_EQ(values.at("model.layers.0.mlp.up_proj.weight"), 3) << "normalised";
  EXPECT_EQ(values.at("model.layers.1.mlp.up_proj.weight"), 4 * 5) << "layer 3 of a is layer 1 of the output";
}

TEST_F(SlicesTest, PrecedenceOfParameters) {
  WriteLlama("a", 2, 1);
  const auto first_layer = [&](const std::string& top, const std::string& slice, const std::string& source) {
    return Merged(std::string(kLinear) + "parameters: {normalize: false" + top + "}\nslices:\n" +
                  Slice(fmt::format("      - {{model: '@a', layer_range: [0, 2]{}}}\n", source), slice))
        .at("model.layers.0.mlp.up_proj.weight");
  };
  EXPECT_EQ(first_layer(", weight: 2", "", ""), 2);
  EXPECT_EQ(first_layer(", weight: 2", "    parameters: {weight: 3}\n", ""), 3);
  EXPECT_EQ(first_layer(", weight: 2", "    parameters: {weight: 3}\n", ", parameters: {weight: 5}"), 5);
  EXPECT_EQ(first_layer(", weight: 2", "    parameters: {weight: {filter: self_attn, value: 3}}\n", ""), 2)
      << "the slice's filter does not match";
}

TEST_F(SlicesTest, AllSourcesOfTheLastSliceMakeNormAndHead) {
  WriteLlama("a", 2, 1), WriteLlama("b", 2, 3), WriteLlama("c", 2, 8);
  const auto values = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 1)) +
                             Slice(Source("a", 1, 2) + Source("b", 1, 2) + Source("c", 0, 1)));
  EXPECT_EQ(values.at("lm_head.weight"), 4) << "the average of all three";
  EXPECT_EQ(values.at("model.layers.1.mlp.up_proj.weight"), (2.0f + 4 + 8) / 3);
  ASSERT_EQ(report_.warnings.size(), 1u);
  EXPECT_NE(report_.warnings[0].find("mergekit passes over 2 of the 3 sources of the last slice"), std::string::npos)
      << report_.warnings[0];
}

TEST_F(SlicesTest, TensorsThatOnlySomeSourcesHave) {
  WriteLlama("a", 2, 1), WriteLlama("b", 2, 3), WriteLlama("c", 2, 8);
  const auto with = [&](const std::string& model, const std::string& tensor) {
    std::vector<StoredTensor> tensors = fixture::ReadTensors(place_ / model);
    tensors.push_back(Constant(tensor, DType::kF32, 3, 42));
    const std::string config = fixture::FileText(place_ / (model + "/config.json"));
    std::filesystem::remove_all(place_ / model);
    fixture::WriteCheckpoint(place_, model, tensors, 1, config);
  };
  with("a", "score.weight");                      // behind the layers, where only the first slice has it
  with("b", "middle.weight");
  with("c", "model.embed_positions.weight");      // before them, where only the last has it
  with("c", "model.layers.1.extra.weight");
  const auto values = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 1)) + Slice(Source("b", 0, 2)) +
                             Slice(Source("c", 1, 2)));
  EXPECT_EQ(values.at("score.weight"), 42);
  EXPECT_EQ(values.at("model.embed_positions.weight"), 42);
  EXPECT_EQ(values.at("model.layers.3.extra.weight"), 42);
  EXPECT_FALSE(values.contains("middle.weight"));
  ASSERT_EQ(report_.warnings.size(), 1u);
  EXPECT_NE(report_.warnings[0].find("middle.weight is left out"), std::string::npos) << report_.warnings[0];
}

// --- names ------------------------------------------------------------------------------------------------

TEST_F(SlicesTest, NamesOfGpt2) {
  const auto write = [&](const std::string& name, double value) {
    std::vector<StoredTensor> tensors;   // sorted by name, as the library writes them: embeddings behind the layers
    for (const char* i : {"0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"})
      tensors.push_back(Constant(fmt::format("h.{}.attn.c_attn.weight", i), DType::kF16, 3, value + std::stod(i)));
    for (const char* loose : {"ln_f.bias", "wpe.weight", "wte.weight"})
      tensors.push_back(Constant(loose, DType::kF16, 2, value));
    fixture::WriteCheckpoint(place_, name, tensors, 1, R"({"model_type": "gpt2", "n_layer": 12})");
  };
  write("a", 100), write("b", 200);
  const auto values = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 9)) + Slice(Source("b", 3, 12)));
  ASSERT_EQ(values.size(), 3u + 18);
  EXPECT_EQ(values.at("h.8.attn.c_attn.weight"), 108);
  EXPECT_EQ(values.at("h.9.attn.c_attn.weight"), 203);
  EXPECT_EQ(values.at("h.17.attn.c_attn.weight"), 211);
  EXPECT_EQ(values.at("wte.weight"), 100);
  EXPECT_EQ(values.at("wpe.weight"), 100);
  EXPECT_EQ(values.at("ln_f.bias"), 200);
  EXPECT_EQ(order_[2], "h.2.attn.c_attn.weight") << "layers in their order";
  EXPECT_EQ(order_.back(), "wte.weight");
  EXPECT_EQ(Config()["n_layer"], 18);
}

class T5Test : public SlicesTest {
 protected:
  void WriteT5(const std::string& name, size_t encoder, size_t decoder, double value) {
    std::vector<StoredTensor> tensors = {Constant("shared.weight", DType::kF32, 4, value)};
    const auto add = [&](const char* stack, size_t layers, double offset) {
      for (size_t i = 0; i < layers; ++i)
        tensors.push_back(Constant(fmt::format("{}.block.{}.layer.0.SelfAttention.q.weight", stack, i), DType::kF32, 2,
                                   value + offset + static_cast<double>(i)));
      tensors.push_back(Constant(fmt::format("{}.final_layer_norm.weight", stack), DType::kF32, 2, value + offset));
    };
    add("encoder", encoder, 0), add("decoder", decoder, 50);
    tensors.push_back(Constant("lm_head.weight", DType::kF32, 4, value));
    fixture::WriteCheckpoint(
        place_, name, tensors, 1,
        fmt::format(R"({{"num_layers": {}, "num_decoder_layers": {}, "tie_word_embeddings": false}})", encoder,
                    decoder));
  }
};

TEST_F(T5Test, EncoderAndDecoderApart) {
  WriteT5("a", 4, 4, 100), WriteT5("b", 4, 4, 200);
  const auto values = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 3)) + Slice(Source("b", 1, 4)));
  ASSERT_EQ(values.size(), 4u + 12);
  for (size_t i = 0; i < 6; ++i) {
    const float layer = i < 3 ? 100.0f + static_cast<float>(i) : 201.0f + static_cast<float>(i - 3);
    EXPECT_EQ(values.at(fmt::format("encoder.block.{}.layer.0.SelfAttention.q.weight", i)), layer);
    EXPECT_EQ(values.at(fmt::format("decoder.block.{}.layer.0.SelfAttention.q.weight", i)), layer + 50);
  }
  EXPECT_EQ(values.at("shared.weight"), 100);
  EXPECT_EQ(values.at("encoder.final_layer_norm.weight"), 200);
  EXPECT_EQ(values.at("decoder.final_layer_norm.weight"), 250);
  EXPECT_EQ(Config()["num_layers"], 6);
  EXPECT_EQ(Config()["num_decoder_layers"], 6);
}

TEST_F(T5Test, StacksOfDifferentHeightNeedModules) {
  WriteT5("a", 4, 2, 100), WriteT5("b", 4, 2, 200);
  const auto values = Merged(R"(merge_method: linear
parameters: {weight: 1}
modules:
  encoder:
    slices:
      - sources: [{model: '@a', layer_range: [0, 4]}]
      - sources: [{model: '@b', layer_range: [2, 4]}]
  decoder:
    models: [{model: '@a', parameters: {weight: 3}}, {model: '@b'}]
)");
  ASSERT_EQ(values.size(), 4u + 6 + 2);
  EXPECT_EQ(values.at("encoder.block.5.layer.0.SelfAttention.q.weight"), 203);
  EXPECT_EQ(values.at("encoder.final_layer_norm.weight"), 200);
  EXPECT_EQ(values.at("decoder.block.1.layer.0.SelfAttention.q.weight"), 151 + 25);
  EXPECT_EQ(values.at("lm_head.weight"), 125);
  EXPECT_EQ(values.at("shared.weight"), 125) << "the decoder's, which takes what no other module does";
  EXPECT_EQ(Config()["num_layers"], 6);
  EXPECT_EQ(Config()["num_decoder_layers"], 2);
}

TEST_F(SlicesTest, ModulesOfAVisionLanguageModel) {
  const auto write = [&](const std::string& name, double value) {
    std::vector<StoredTensor> tensors;
    for (int i = 0; i < 3; ++i)
      tensors.push_back(Constant(fmt::format("visual.blocks.{}.w", i), DType::kF32, 2, value + i));
    tensors.push_back(Constant("visual.patch_embed.w", DType::kF32, 2, value));
    tensors.push_back(Constant("visual.merger.mlp.0.weight", DType::kF32, 2, value));
    tensors.push_back(Constant("model.embed_tokens.weight", DType::kF32, 2, value));
    for (int i = 0; i < 4; ++i)
      tensors.push_back(Constant(fmt::format("model.layers.{}.w", i), DType::kF32, 2, value + 10 * i));
    tensors.push_back(Constant("model.norm.weight", DType::kF32, 2, value));
    fixture::WriteCheckpoint(
        place_, name, tensors, 1,
        R"({"num_hidden_layers": 4, "vision_config": {"depth": 3, "hidden_size": 3, "layer_kinds": [7, 8, 9]}})");
  };
  write("a", 100), write("b", 200);
  const auto values = Merged(R"(merge_method: linear
parameters: {weight: 1}
modules:
  text_decoder:
    slices:
      - sources: [{model: '@a', layer_range: [0, 4]}]
      - sources: [{model: '@b', layer_range: [3, 4]}]
  vision_tower: {slices: [{sources: [{model: '@b', layer_range: [1, 3]}]}], parameters: {normalize: false, weight: 2}}
  multi_modal_projector: {models: [{model: '@a'}, {model: '@b'}]}
)");
  ASSERT_EQ(values.size(), 2u + 1 + 1 + 1 + 5 + 1);
  EXPECT_EQ(values.at("visual.blocks.0.w"), 402);
  EXPECT_EQ(values.at("visual.patch_embed.w"), 400);
  EXPECT_EQ(values.at("visual.merger.mlp.0.weight"), 150);
  EXPECT_EQ(values.at("model.embed_tokens.weight"), 100);
  EXPECT_EQ(values.at("model.layers.4.w"), 230);
  EXPECT_EQ(values.at("model.norm.weight"), 200);
  const Json config = Config();
  EXPECT_EQ(config["num_hidden_layers"], 5);
  EXPECT_EQ(config["vision_config"]["depth"], 2);
  EXPECT_EQ(config["vision_config"]["hidden_size"], 3);
  EXPECT_EQ(config["vision_config"]["layer_kinds"].dump(), "[8,9]");

  // Without modules, config.json says which of the stacks the layers are; the vision tower stays whole, from one end.
  const auto sliced = Merged(std::string(kLinear) + "slices:\n" + Slice(Source("a", 0, 4)) + Slice(Source("b", 2, 4)));
  EXPECT_EQ(sliced.at("visual.blocks.2.w"), 102);
  EXPECT_EQ(sliced.at("model.layers.5.w"), 230);
  EXPECT_EQ(Config()["vision_config"]["depth"], 3);
}

// --- the same as a merge of models whose layers lie that way already ------------------------------------------

class ArrangedTest : public SlicesTest {
 protected:
  // Layers are large enough for statistics, drafts and samples.
  void WriteRandom(const std::string& name, size_t layers, uint64_t seed) {
    test::Random random(seed);
    const auto values = [&](size_t n) {
      std::vector<double> out(n);
      for (double& value : out) value = random.Normal() * 0.02;
      return out;
    };
    std::vector<StoredTensor> tensors = {
        fixture::Floats("model.embed_tokens.weight", DType::kBF16, {50, 40}, values(2000))};
    for (size_t i = 0; i < layers; ++i)
      tensors.push_back(
          fixture::Floats(fmt::format("model.layers.{}.w", i), DType::kBF16, {300, 500}, values(150'000)));
    tensors.push_back(fixture::Floats("model.norm.weight", DType::kBF16, {40}, values(40)));
    fixture::WriteCheckpoint(place_, name, tensors, 2,
                             fmt::format(R"({{"num_hidden_layers": {}, "torch_dtype": "bfloat16"}})", layers));
  }

  // `name` with these layers, and embedding and norm as it has them.
  void Arrange(const std::string& name, const std::string& as, const std::vector<size_t>& layers) {
    std::map<std::string, StoredTensor> by_name;
    for (StoredTensor& tensor : fixture::ReadTensors(place_ / name)) by_name[tensor.name] = std::move(tensor);
    std::vector<StoredTensor> tensors = {by_name.at("model.embed_tokens.weight")};
    for (size_t i = 0; i < layers.size(); ++i) {
      tensors.push_back(by_name.at(fmt::format("model.layers.{}.w", layers[i])));
      tensors.back().name = fmt::format("model.layers.{}.w", i);
    }
    tensors.push_back(by_name.at("model.norm.weight"));
    fixture::WriteCheckpoint(place_, as, tensors, 1,
                             fmt::format(R"({{"num_hidden_layers": {}, "torch_dtype": "bfloat16"}})", layers.size()));
  }

  std::vector<StoredTensor> Bytes(const std::string& recipe, const PlanOptions& options) {
    std::filesystem::remove_all(place_ / "out");
    fixture::Merge(Recipe(recipe), place_ / "out", options);
    return fixture::ReadTensors(place_ / "out");
  }
};

TEST_F(ArrangedTest, TiesOfSlices) {
  WriteRandom("base", 4, 1), WriteRandom("a", 4, 2), WriteRandom("b", 3, 3);
  // The same layers twice, of several models, then of one; numbers differ between the sources.
  Arrange("base", "base2", {0, 1, 1, 2, 3, 3}), Arrange("a", "a2", {0, 1, 0, 1, 2, 3}),
      Arrange("b", "b2", {1, 2, 0, 1, 0, 0});
  const std::string parameters = "parameters: {density: 0.3, lambda: 0.7, rescale: true}\n";
  const std::string slices = "merge_method: ties\nbase_model: '@base'\n" + parameters + "slices:\n" +
                             Slice(Source("a", 0, 2) + Source("base", 0, 2, "") + Source("b", 1, 3, "weight: 0.5")) +
                             Slice(Source("base", 1, 3, "") + Source("a", 0, 2) + Source("b", 0, 2, "weight: 0.5")) +
                             Slice(Source("base", 3, 4, "") + Source("a", 2, 3)) +
                             Slice(Source("base", 3, 4, "") + Source("a", 3, 4));
  const std::string weight =
      "[{filter: layers.4, value: 0}, {filter: layers.5, value: 0}, {filter: norm, value: 0}, {value: 0.5}]";
  const std::string models = "merge_method: ties\nbase_model: '@base2'\n" + parameters +
                             "models:\n  - {model: '@a2', parameters: {weight: 1}}\n" +
                             "  - {model: '@b2', parameters: {weight: " + weight + "}}\n";
  const std::vector<StoredTensor> expected = Bytes(models, {.memory = fixture::kGiB, .threads = 2});
  for (uint64_t memory : {16 * fixture::kMiB, fixture::kGiB})
    for (ReadMode read : {ReadMode::kMapped, ReadMode::kDirect})
      for (uint64_t least_sampled : {uint64_t{1} << 17, uint64_t{1} << 40}) {
        SCOPED_TRACE(fmt::format("{} {} {}", memory, static_cast<int>(read), least_sampled));
        const std::vector<StoredTensor> actual = Bytes(
            slices,
            {.memory = memory, .threads = 3, .read = read, .least_sampled = least_sampled, .least_spread_sample = 1});
        ASSERT_EQ(actual.size(), expected.size());
        for (size_t t = 0; t < expected.size(); ++t)
          EXPECT_TRUE(actual[t] == expected[t]) << expected[t].name << " " << actual[t].name;
      }
}

// A file whose layers are used by hundreds of slices is given back to the page cache once, after the last of them.
TEST_F(ArrangedTest, HundredsOfLayersFromFew) {
  WriteRandom("a", 3, 7);
  std::string recipe = std::string(kLinear) + "parameters: {weight: 1}\nslices:\n";
  std::vector<size_t> layers;
  for (size_t i = 0; i < 300; ++i) {
    layers.push_back(i * 7 % 3);
    recipe += fmt::format("  - sources: [{{model: '@a', layer_range: [{}, {}]}}]\n", layers.back(), layers.back() + 1);
  }
  Arrange("a", "expected", layers);
  const std::vector<StoredTensor> expected = fixture::ReadTensors(place_ / "expected");
  for (ReadMode read : {ReadMode::kMapped, ReadMode::kDirect}) {
    const std::vector<StoredTensor> actual = Bytes(recipe, {.memory = 64 * fixture::kMiB, .threads = 2, .read = read});
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t t = 0; t < expected.size(); ++t) ASSERT_TRUE(actual[t] == expected[t]) << expected[t].name;
    EXPECT_EQ(Config()["num_hidden_layers"], 300);
  }
}

}  // namespace
}  // namespace braid
