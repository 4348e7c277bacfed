// What a parameter is for one tensor: layers, gradients, filters, precedence.
#include <gtest/gtest.h>

#include <string>

#include "ops/method.h"
#include "pipeline/recipe.h"

namespace braid {
namespace {

const ParameterSpec& Spec(const Recipe& recipe, std::string_view parameter) {
  return *FindMethod(recipe.method)->Find(parameter);
}

double Resolve(const Recipe& recipe, size_t model, std::string_view parameter, std::string_view tensor,
               double t = 0) {
  return ResolveParameter(recipe, &recipe.models.at(model), Spec(recipe, parameter), tensor, t);
}

TEST(LayerPositions, EachStackCountsItsOwnLayers) {
  const LayerPositions positions({"encoder.layers.0.w", "encoder.layers.1.w", "encoder.layers.2.w",
                                  "decoder.layers.0.w", "decoder.layers.4.w", "head.0.weight", "embed.weight",
                                  "model.layers.1.experts.63.w"});
  EXPECT_EQ(positions.Of("encoder.layers.0.w"), 0);
  EXPECT_EQ(positions.Of("encoder.layers.1.w"), 0.5);
  EXPECT_EQ(positions.Of("encoder.layers.2.other"), 1);
  EXPECT_EQ(positions.Of("decoder.layers.1.w"), 0.25);
  EXPECT_EQ(positions.Of("head.0.weight"), 1) << "a stack of one";
  EXPECT_EQ(positions.Of("embed.weight"), 0);
  EXPECT_EQ(positions.Of("model.layers.1.experts.0.w"), 1) << "experts are no layers";
  EXPECT_EQ(positions.Of("unknown.layers.3.w"), 0);
}

TEST(LayerPositions, OddNames) {
  const LayerPositions positions({"0", "1.w", "", ".", "a..3.b", "h.18446744073709551616.w", "layers.1a.w",
                                  "layers.-1.w", "x.999999999.w"});
  EXPECT_EQ(positions.Of("0"), 0);
  EXPECT_EQ(positions.Of("1.w"), 1);
  EXPECT_EQ(positions.Of(""), 0);
  EXPECT_EQ(positions.Of("a..3.b"), 1);
  EXPECT_EQ(positions.Of("h.18446744073709551616.w"), 0) << "no layer number";
  EXPECT_EQ(positions.Of("layers.1a.w"), 0);
  EXPECT_EQ(positions.Of("layers.-1.w"), 0);
  EXPECT_EQ(positions.Of("x.999999999.w"), 1);
}

// mergekit 0.1.5 with the gradient [1, 2, 4] over four layers: 1, 1.6667, 2.6667, 4, and 1 outside the
// layers.
TEST(Gradients, WorkedNumbers) {
  const Recipe recipe =
      ParseTomlRecipe("method = 'linear'\n[[models]]\npath = 'x'\nweight = [1, 2, 4]\n", "r.toml");
  const LayerPositions positions({"model.layers.0.w", "model.layers.1.w", "model.layers.2.w",
                                  "model.layers.3.w", "model.embed_tokens.weight", "lm_head.weight"});
  auto weight = [&](std::string_view tensor) {
    return Resolve(recipe, 0, "weight", tensor, positions.Of(tensor));
  };
  EXPECT_EQ(weight("model.layers.0.w"), 1);
  EXPECT_DOUBLE_EQ(weight("model.layers.1.w"), 5.0 / 3);
  EXPECT_DOUBLE_EQ(weight("model.layers.2.w"), 8.0 / 3);
  EXPECT_EQ(weight("model.layers.3.w"), 4);
  EXPECT_EQ(weight("model.embed_tokens.weight"), 1);
  EXPECT_EQ(weight("lm_head.weight"), 1);
}

TEST(Gradients, OnePointIsAConstantAndTwoAreALine) {
  const Recipe recipe = ParseTomlRecipe(
      "method = 'linear'\n[[models]]\npath = 'x'\nweight = [7]\n[[models]]\npath = 'y'\nweight = [1, 0]\n",
      "r.toml");
  for (double t : {0.0, 0.3, 1.0}) {
    EXPECT_EQ(Resolve(recipe, 0, "weight", "a", t), 7);
    EXPECT_EQ(Resolve(recipe, 1, "weight", "a", t), 1 - t);
  }
}

TEST(Gradients, FlagsStep) {
  const Recipe recipe = ParseTomlRecipe(
      "method = 'linear'\n[parameters]\nnormalize = [true, false, true]\n[[models]]\npath = 'x'\n", "r.toml");
  const std::pair<double, double> steps[] = {{0, 1}, {0.49, 1}, {0.5, 0}, {0.99, 0}, {1, 1}};
  for (const auto& [t, expected] : steps) EXPECT_EQ(Resolve(recipe, 0, "normalize", "a", t), expected) << t;
}

TEST(Filters, OnlyAndExclude) {
  const Recipe all = ParseTomlRecipe("method = 'average'\n[[models]]\npath = 'x'\n", "r.toml");
  EXPECT_TRUE(IsMerged(all, "anything"));
  const Recipe some = ParseTomlRecipe(
      "method = 'average'\nonly = ['*.mlp.*', 'norm']\nexclude = '*.bias'\n[[models]]\npath = 'x'\n", "r.toml");
  EXPECT_TRUE(IsMerged(some, "l.0.mlp.up.weight"));
  EXPECT_TRUE(IsMerged(some, "norm"));
  EXPECT_FALSE(IsMerged(some, "l.0.mlp.up.bias"));
  EXPECT_FALSE(IsMerged(some, "l.0.attn.weight"));
  const Recipe less = ParseYamlRecipe(
      "merge_method: average\nexclude: ['*.bias']\nmodels: [{model: x}]\n", "r.yml");
  EXPECT_TRUE(IsMerged(less, "l.0.attn.weight"));
  EXPECT_FALSE(IsMerged(less, "l.0.mlp.up.bias"));
}

TEST(Precedence, Toml) {
  const Recipe recipe = ParseTomlRecipe(R"(
method = "ties"
base = "b"
[parameters]
density = 0.5
lambda = 3
[[models]]
path = "x"
density = 0.4
[[models.overrides]]
tensors = "*.mlp.*"
density = 0.3
[[models.overrides]]
tensors = ["*.up.*", "*.down.*"]
density = 0.2
[[models]]
path = "y"
[[overrides]]
tensors = "*.attn.*"
density = 0.1
lambda = 2
)",
                                        "r.toml");
  EXPECT_EQ(Resolve(recipe, 0, "density", "l.mlp.up.w"), 0.3) << "the first override that matches";
  EXPECT_EQ(Resolve(recipe, 0, "density", "l.moe.up.w"), 0.2);
  EXPECT_EQ(Resolve(recipe, 0, "density", "l.moe.down.w"), 0.2);
  EXPECT_EQ(Resolve(recipe, 0, "density", "l.attn.w"), 0.4) << "a model's value beats the recipe's overrides";
  EXPECT_EQ(Resolve(recipe, 1, "density", "l.attn.w"), 0.1);
  EXPECT_EQ(Resolve(recipe, 1, "density", "l.mlp.w"), 0.5);
  EXPECT_EQ(Resolve(recipe, 1, "lambda", "l.attn.w"), 2);
  EXPECT_EQ(Resolve(recipe, 1, "lambda", "l.mlp.w"), 3);
  EXPECT_EQ(Resolve(recipe, 1, "weight", "l.mlp.w"), 1) << "the default";
  EXPECT_EQ(ResolveParameter(recipe, nullptr, Spec(recipe, "lambda"), "l.attn.w", 0), 2);
}

TEST(Precedence, Yaml) {
  const Recipe recipe = ParseYamlRecipe(R"(
merge_method: ties
base_model: b
models:
  - model: x
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - filter: attn
          value: 3
  - model: y
    parameters:
      weight:
        - {filter: mlp, value: 5}
        - value: 6
        - {filter: attn, value: 7}
parameters:
  weight: {filter: embed, value: 4}
)",
                                        "r.yml");
  EXPECT_EQ(Resolve(recipe, 0, "weight", "l.mlp.w", 0.25), 0.25);
  EXPECT_EQ(Resolve(recipe, 0, "weight", "l.attn.w"), 3);
  EXPECT_EQ(Resolve(recipe, 0, "weight", "embed.w"), 4)
      << "no filter of the model matches: on to the recipe's";
  EXPECT_EQ(Resolve(recipe, 1, "weight", "embed.w"), 6);
  EXPECT_EQ(Resolve(recipe, 1, "weight", "l.attn.w"), 6) << "a value without a filter ends the list";
  EXPECT_EQ(Resolve(recipe, 0, "density", "l.mlp.w"), 1) << "the default";
  try {
    Resolve(recipe, 0, "weight", "norm.w");
    FAIL() << "a weight that is required and not there";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("r.yml:5:12: tensor 'norm.w': no weight for model 'x'"),
              std::string::npos)
        << error.what();
  }
}

TEST(CheckFilters, TomlThrowsAndYamlWarns) {
  const std::vector<std::string_view> tensors = {"model.layers.0.mlp.up_proj.weight", "lm_head.weight"};
  std::vector<RecipeWarning> warnings;
  const std::string toml = "method = 'ties'\nbase = 'b'\n[[models]]\npath = 'x'\n[[models.overrides]]\n";
  CheckFilters(ParseTomlRecipe(toml + "tensors = ['*.mlp.*', 'lm_head.*']\ndensity = 0.5\n", "r.toml"),
               tensors, &warnings);
  try {
    CheckFilters(ParseTomlRecipe(toml + "tensors = ['*.mlp.*', '*.mpl.*']\ndensity = 0.5\n", "r.toml"),
                 tensors, &warnings);
    FAIL() << "a filter that matches nothing";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "r.toml:6:23: the filter '*.mpl.*' matches no tensor; did you mean 'mlp' instead of "
                 "'mpl'?");
  }
  EXPECT_TRUE(warnings.empty());

  const Recipe yaml = ParseYamlRecipe(
      "merge_method: linear\nmodels: [{model: x}]\nparameters:\n  weight:\n"
      "  - {filter: mpl, value: 1}\n  - {filter: mlp, value: 1}\n  - value: 0\n",
      "r.yml");
  CheckFilters(yaml, tensors, &warnings);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0].message, "the filter 'mpl' matches no tensor");
  EXPECT_EQ(warnings[0].where.line, 5);
  EXPECT_EQ(warnings[0].where.column, 14);
}

TEST(CheckFilters, OnlyAndExcludeMustMatch) {
  const std::vector<std::string_view> tensors = {"model.layers.0.mlp.up_proj.weight", "lm_head.weight"};
  std::vector<RecipeWarning> warnings;
  try {
    CheckFilters(
        ParseTomlRecipe("method = 'average'\nonly = ['*.mlp.*', '*.mpl.*']\n[[models]]\npath = 'x'\n", "r.toml"),
        tensors, &warnings);
    FAIL() << "a filter that matches nothing";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "r.toml:2:20: the filter '*.mpl.*' matches no tensor; did you mean 'mlp' instead of 'mpl'?");
  }
  EXPECT_TRUE(warnings.empty());
  CheckFilters(ParseYamlRecipe("merge_method: average\nexclude: lm_haed\nmodels: [{model: x}]\n", "r.yml"), tensors,
               &warnings);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0].message, "the filter 'lm_haed' matches no tensor");
  EXPECT_EQ(warnings[0].where.line, 2);
}

}  // namespace
}  // namespace braid
