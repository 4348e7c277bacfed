// Recipes with slices and modules: what they become, and bad ones with the place they must be blamed on.
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
  for (const auto& [name, settings] : model.settings) out += fmt::format(" {}={}", name, settings.front().values.front());
  return out;
}

// What is left of a recipe's modules when it is complete.
std::string Describe(const Recipe& recipe) {
  std::string out;
  for (const RecipeModule& module : recipe.modules) {
    out += fmt::format("'{}'", module.name);
    for (const auto& [name, settings] : module.settings) out += fmt::format(" {}={}", name, settings.front().values.front());
    for (const RecipeSlice& slice : module.slices) {
      out += " (";
      for (const auto& [name, settings] : slice.settings) out += fmt::format("{}={} ", name, settings.front().values.front());
      if (slice.base) out += "base " + Describe(*slice.base) + ", ";
      for (const RecipeModel& model : slice.models) out += (&model == slice.models.data() ? "" : ", ") + Describe(model);
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
  const Recipe own = Yaml(ties + "  - base_model: x\n    sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]\n");
  EXPECT_EQ(Describe(own), "'' (base x[0,2), b[1,3))\n");
  EXPECT_EQ(own.base, "b");
  const Recipe only = Yaml("merge_method: ties\nparameters: {weight: 1}\nslices:\n"
                           "  - base_model: x\n    sources: [{model: x, layer_range: [0, 2]}, {model: y, layer_range: [1, 3]}]\n");
  EXPECT_EQ(only.base, "x") << "lends config and tokenizer";
  // linear knows no base: it is a source where it is listed.
  EXPECT_EQ(Describe(Yaml("merge_method: linear\nbase_model: b\nparameters: {weight: 1}\nslices:\n"
                          "  - sources: [{model: x, layer_range: [0, 2]}]\n")), "'' (x[0,2))\n");
  const Recipe ignored = Yaml(ties + "  - sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3], parameters: {weight: 2}}]\n");
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

struct BadRecipe {
  const char* name;
  const char* place;
  const char* fragment;
  const char* text;
};

#define LINEAR "merge_method: linear\nparameters: {weight: 1}\n"
#define SLICES LINEAR "slices:\n"
#define ONE "{model: x, layer_range: [0, 2]}"

const BadRecipe kBadYaml[] = {
    {"models and slices", "5:1", "both 'models' and 'slices' in the recipe; keep one of them",
     LINEAR "models:\n  - model: x\nslices: []\n"},
    {"slices and modules", "4:1", "both 'slices' and 'modules'", LINEAR "slices: []\nmodules: {}\n"},
    {"models and slices in a module", "4:29", "both 'models' and 'slices' in a module",
     LINEAR "modules:\n  m: {models: [{model: x}], slices: []}\n"},
    {"no slices", "3:9", "no slices to stack", LINEAR "slices: []\n"},
    {"slices as a table", "4:3", "'slices' must be a list, not a table", SLICES "  sources: []\n"},
    {"slice as a name", "4:5", "'slices' must be a table of keys and values, not 'x'", SLICES "  - x\n"},
    {"slice without sources", "4:5", "a slice without 'sources'", SLICES "  - parameters: {weight: 1}\n"},
    {"no sources", "4:14", "a slice without sources", SLICES "  - sources: []\n"},
    {"unknown key of a slice", "5:5", "unknown key 'source' in a slice; did you mean 'sources'?",
     SLICES "  - sources: [" ONE "]\n    source: x\n"},
    {"parameter beside the sources", "5:5", "it is a parameter: write it under 'parameters'",
     SLICES "  - sources: [" ONE "]\n    weight: 1\n"},
    {"source as a name", "4:15", "an entry of 'sources' must be a table", SLICES "  - sources: [x]\n"},
    {"source without a model", "4:15", "an entry of 'sources' without a 'model'", SLICES "  - sources: [{layer_range: [0, 2]}]\n"},
    {"source without layers", "4:15", "a source without a 'layer_range': 'x'; say which", SLICES "  - sources: [{model: x}]\n"},
    {"unknown key of a source", "4:26", "did you mean 'layer_range'?", SLICES "  - sources: [{model: x, layer_rnage: [0, 2]}]\n"},
    {"layers of a model of the recipe", "5:5", "unknown key 'layer_range' in a model",
     LINEAR "models:\n  - model: x\n    layer_range: [0, 2]\n"},
    {"one number", "4:39", "'layer_range' must be two whole numbers", SLICES "  - sources: [{model: x, layer_range: [2]}]\n"},
    {"no list", "4:39", "'layer_range' must be two whole numbers", SLICES "  - sources: [{model: x, layer_range: 2}]\n"},
    {"negative layer", "4:39", "'layer_range' must be two whole numbers", SLICES "  - sources: [{model: x, layer_range: [-1, 2]}]\n"},
    {"half a layer", "4:39", "'layer_range' must be two whole numbers", SLICES "  - sources: [{model: x, layer_range: [0, 2.5]}]\n"},
    {"very many layers", "4:39", "'layer_range' must be two whole numbers", SLICES "  - sources: [{model: x, layer_range: [0, 99999999999999999999]}]\n"},
    {"empty range", "4:39", "layer_range [2, 2] holds no layers", SLICES "  - sources: [{model: x, layer_range: [2, 2]}]\n"},
    {"range backwards", "4:39", "layer_range [4, 2] holds no layers; it begins with its first number", SLICES "  - sources: [{model: x, layer_range: [4, 2]}]\n"},
    {"different lengths", "5:39", "3 layers of 'y', but 2 of 'x'", SLICES "  - sources: [" ONE ",\n              {model: y, layer_range: [0, 3]}]\n"},
    {"model twice", "5:23", "the model 'x' is listed twice, first in line 4; a slice takes a model once",
     SLICES "  - sources: [" ONE ",\n              {model: x, layer_range: [2, 4]}]\n"},
    {"no weight", "4:23", "no weight for model 'x'", "merge_method: linear\n# no parameters\nslices:\n  - sources: [" ONE "]\n"},
    {"unknown parameter of a slice", "5:18", "linear has no parameter 'wieght'", SLICES "  - sources: [" ONE "]\n    parameters: {wieght: 1}\n"},
    {"recipe-wide parameter of a slice", "6:18", "'scope' holds for the whole recipe and cannot be set for a slice or module",
     "merge_method: ties\nbase_model: x\nparameters: {weight: 1}\nslices:\n  - sources: [" ONE "]\n    parameters: {scope: model}\n"},
    {"base not listed", "4:5", "ties needs the base 'b' among the sources of each slice",
     "merge_method: ties\nbase_model: b\nslices:\n  - sources: [" ONE "]\nparameters: {weight: 1}\n"},
    {"base alone", "4:5", "ties merges at least 1 model beside the base, not 0",
     "merge_method: ties\nbase_model: x\nslices:\n  - sources: [" ONE "]\nparameters: {weight: 1}\n"},
    {"no base", "1:15", "ties needs a base model", "merge_method: ties\nslices:\n  - sources: [" ONE "]\n"},
    {"modules as a list", "4:3", "'modules' must be a table", LINEAR "modules:\n  - x\n"},
    {"no modules", "3:10", "'modules' names no module", LINEAR "modules: {}\n"},
    {"empty module", "4:3", "the module 'm' has neither models nor slices", LINEAR "modules:\n  m: {parameters: {weight: 1}}\n"},
    {"module without models", "4:15", "no models to merge", LINEAR "modules:\n  m: {models: []}\n"},
    {"unknown key of a module", "4:7", "unknown key 'slice' in a module; did you mean 'slices'?", LINEAR "modules:\n  m: {slice: []}\n"},
};

const BadRecipe kBadToml[] = {
    {"models and slices", "4:3", "both 'models' and 'slices'", "method = 'linear'\n[[models]]\npath = 'x'\n[[slices]]\n"},
    {"slices as a table", "2:1", "begin each entry with [[slices]]", "method = 'linear'\n[slices]\n"},
    {"sources as a table", "3:1", "begin each entry with [[slices.sources]]", "method = 'linear'\n[[slices]]\n[slices.sources]\npath = 'x'\n"},
    {"source without layers", "3:1", "as in layer_range = [0, 16]", "method = 'linear'\n[[slices]]\n[[slices.sources]]\npath = 'x'\n"},
    {"layers as text", "2:48", "'layer_range' must be two whole numbers", "method = 'linear'\nslices = [{sources = [{path='x', layer_range = 'all'}]}]\n"},
    {"unknown key of a slice", "3:1", "unknown key 'source' in a slice; did you mean 'sources'?", "method = 'linear'\n[[slices]]\nsource = 1\nsources = []\n"},
    {"unknown key of a source", "6:1", "did you mean 'weight'?", "method = 'linear'\n[[slices]]\n[[slices.sources]]\npath = 'x'\nlayer_range = [0, 1]\nweigth = 1\n"},
};

template <size_t n>
void ExpectErrors(const BadRecipe (&recipes)[n], const std::string& path, Recipe (*parse)(const std::string&)) {
  for (const BadRecipe& bad : recipes) {
    std::string what = "no error";
    try {
      parse(bad.text);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage) << bad.name;
      what = error.what();
    }
    EXPECT_TRUE(what.starts_with(path + ":" + bad.place + ": ")) << bad.name << ": " << what;
    EXPECT_NE(what.find(bad.fragment), std::string::npos) << bad.name << ": " << what;
  }
}

TEST(RecipeSlices, BadYaml) { ExpectErrors(kBadYaml, "recipe.yml", Yaml); }
TEST(RecipeSlices, BadToml) { ExpectErrors(kBadToml, "recipe.toml", Toml); }

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
  EXPECT_EQ(OwnerOf("decoders.w", {"encoder"}), std::nullopt) << "whole components only";
  EXPECT_EQ(OwnerOf("w", {"encoder", "default"}), 1u);
}

}  // namespace
}  // namespace braid
