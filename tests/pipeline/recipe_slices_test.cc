// Recipes with slices and modules: what they become. Bad ones are in tests/golden/errors.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "pipeline/module_names.h"
#include "pipeline/recipe.h"

namespace braid {
namespace {

Recipe Yaml(const std::string& text) { return ParseYamlRecipe(text, "recipe.yml"); }
Recipe Toml(const std::string& text) { return ParseTomlRecipe(text, "recipe.toml"); }

std::string Describe(const RecipeModel& model) {
  std::string out = model.reference;
  if (model.layers) out += fmt::format("[{},{})", model.layers->begin, model.layers->end);
  for (const auto& [name, settings] : model.settings)
    out += fmt::format(" {}={}", name, settings.front().values.front());
  return out;
}

// What is left of a recipe's modules when it is complete.
std::string Describe(const Recipe& recipe) {
  std::string out;
  for (const RecipeModule& module : recipe.modules) {
    out += fmt::format("'{}'", module.name);
    for (const auto& [name, settings] : module.settings)
      out += fmt::format(" {}={}", name, settings.front().values.front());
    for (const RecipeSlice& slice : module.slices) {
      out += " (";
      for (const auto& [name, settings] : slice.settings)
        out += fmt::format("{}={} ", name, settings.front().values.front());
      if (slice.base) out += "base " + Describe(*slice.base) + ", ";
      for (const RecipeModel& model : slice.models)
        out += (&model == slice.models.data() ? "" : ", ") + Describe(model);
      out += ")";
    }
    out += "\n";
  }
  return out;
}

TEST(RecipeSlices, BothSyntaxes) {
  const std::string expected = "'' (normalize=0 a[0,4) weight=1, b[2,6) weight=2) (b[6,7) weight=1)\n";
  const Recipe yaml = Yaml(R"(
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 4], parameters: {weight: 1}}
      - model: b
        layer_range:
          - 2
          - 6
        parameters: {weight: 2}
    parameters: {normalize: false}
  - sources: [{model: b, layer_range: [6, 7], parameters: {weight: 1}}]
    parameters:
    base_model:
)");
  EXPECT_EQ(Describe(yaml), expected);
  EXPECT_TRUE(yaml.models.empty());
  EXPECT_TRUE(yaml.warnings.empty());
  EXPECT_EQ(yaml.modules[0].slices[0].models[1].layers->where.line, 8);
  const Recipe toml = Toml(R"(
method = "linear"
[[slices]]
normalize = false
[[slices.sources]]
path = "a"
layer_range = [0, 4]
weight = 1
[[slices.sources]]
path = "b"
layer_range = [2, 6]
weight = 2
[[slices]]
sources = [{path = "b", layer_range = [6, 7], weight = 1}]
)");
  EXPECT_EQ(Describe(toml), expected);
}

TEST(RecipeSlices, TheBaseOfASlice) {
  const std::string ties = "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\nslices:\n";
  EXPECT_EQ(Describe(Yaml(ties + "  - sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]\n")),
            "'' (base b[1,3), x[0,2))\n");
  // A slice may have one of its own.
  const Recipe own = Yaml(
      ties + "  - base_model: x\n    sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]\n");
  EXPECT_EQ(Describe(own), "'' (base x[0,2), b[1,3))\n");
  EXPECT_EQ(own.base, "b");
  const Recipe only = Yaml(
      "merge_method: ties\nparameters: {weight: 1}\nslices:\n"
      "  - base_model: x\n    sources: [{model: x, layer_range: [0, 2]}, {model: y, layer_range: [1, 3]}]\n");
  EXPECT_EQ(only.base, "x") << "lends config and tokenizer";
  // linear knows no base: it is a source where it is listed.
  EXPECT_EQ(Describe(Yaml("merge_method: linear\nbase_model: b\nparameters: {weight: 1}\nslices:\n"
                          "  - sources: [{model: x, layer_range: [0, 2]}]\n")), "'' (x[0,2))\n");
  const Recipe ignored = Yaml(
      ties +
      "  - sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3], parameters: {weight: 2}}]\n");
  ASSERT_EQ(ignored.warnings.size(), 1u);
  EXPECT_NE(ignored.warnings[0].message.find("parameters of the base model"), std::string::npos);
}

TEST(RecipeSlices, Modules) {
  const Recipe yaml = Yaml(R"(
merge_method: ties
base_model: b
modules:
  text_decoder:
    parameters: {weight: 1}
    models:
      - model: x
      - model: y
        parameters: {weight: 2}
  default:
    slices:
      - sources: [{model: b, layer_range: [0, 2]}, {model: y, layer_range: [0, 2]}]
parameters: {weight: 3}
)");
  EXPECT_EQ(Describe(yaml), "'text_decoder' weight=1 (base b, x, y weight=2)\n'default' (base b[0,2), y[0,2))\n");
  const Recipe toml = Toml(R"(
method = "ties"
base = "b"
[parameters]
weight = 3
[modules.text_decoder]
weight = 1
[[modules.text_decoder.models]]
path = "x"
[[modules.text_decoder.models]]
path = "y"
weight = 2
[[modules.default.slices]]
[[modules.default.slices.sources]]
path = "b"
layer_range = [0, 2]
[[modules.default.slices.sources]]
path = "y"
layer_range = [0, 2]
)");
  EXPECT_EQ(Describe(toml), Describe(yaml));
}

TEST(RecipeSlices, ResidualWeightHasNoEffect) {
  const Recipe recipe = Yaml("merge_method: linear\nslices:\n  - residual_weight: 0.5\n"
                             "    sources: [{model: x, layer_range: [0, 2], parameters: {weight: 1}}]\n");
  ASSERT_EQ(recipe.warnings.size(), 1u);
  EXPECT_NE(recipe.warnings[0].message.find("'residual_weight' has no effect"), std::string::npos);
  EXPECT_EQ(recipe.warnings[0].where.line, 3);
}

TEST(ModuleNames, LongestRunOfComponentsWins) {
  const std::vector<std::string_view> vision = {"text_decoder", "multi_modal_projector", "vision_tower"};
  EXPECT_EQ(OwnerOf("model.layers.0.w", vision), 0u);
  EXPECT_EQ(OwnerOf("lm_head.weight", vision), 0u);
  EXPECT_EQ(OwnerOf("visual.merger.mlp.0.weight", vision), 1u);
  EXPECT_EQ(OwnerOf("multi_modal_projector.linear_1.weight", vision), 1u);
  EXPECT_EQ(OwnerOf("visual.blocks.0.w", vision), 2u);
  EXPECT_EQ(OwnerOf("model.vision_tower.encoder.layers.3.w", vision), 2u);
  const std::vector<std::string_view> halves = {"decoder", "encoder"};
  EXPECT_EQ(OwnerOf("encoder.block.0.layer.0.q", halves), 1u);
  EXPECT_EQ(OwnerOf("model.decoder.layers.0.encoder.q", halves), 0u) << "what follows the layer's number says nothing";
  EXPECT_EQ(OwnerOf("shared.weight", halves), 0u);
  EXPECT_EQ(OwnerOf("lm_head.weight", {"decoder", "encoder", "shared"}), 2u) << "as mergekit has it for T5";
  EXPECT_EQ(OwnerOf("decoders.w", {"encoder"}), std::nullopt) << "whole components only";
  EXPECT_EQ(OwnerOf("w", {"encoder", "default"}), 1u);
}

}  // namespace
}  // namespace braid
