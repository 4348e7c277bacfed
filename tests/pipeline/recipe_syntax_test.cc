// Good recipes: what they become, in both syntaxes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "ops/method.h"
#include "pipeline/recipe.h"
#include "tests/pipeline/recipe_description.h"

namespace braid {
namespace {

using fixture::Describe;

Recipe Toml(const std::string& text) { return ParseTomlRecipe(text, "recipe.toml"); }
Recipe Yaml(const std::string& text) { return ParseYamlRecipe(text, "recipe.yml"); }

std::filesystem::path Configs() {
  return std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "configs";
}

TEST(RecipeSyntax, BothSyntaxesBecomeTheSameRecipe) {
  const Recipe toml = Toml(R"(
method = "ties"
base = "models/base"
dtype = "bfloat16"
out_dtype = "torch.float16"
on_missing = "skip"
only = ["*.mlp.*", "*.weight"]
exclude = "lm_head.*"
layer_scale = { alpha = 0.25, beta = 0.5 }
tokenizer = "base"
[parameters]
lambda = [1, 0.5]
normalize = false
int8_mask = true
scope = "tensor"
zero_sign = "majority"
[[overrides]]
tensors = "*"
density = 0.25
[[models]]
path = "models/math"
weight = 1e-5
density = [1, 0.5, 0]
[[models]]
path = "org/code@v2"
weight = -2
[[models.overrides]]
tensors = "*a\\*b*"
density = 0.75
[[models.overrides]]
tensors = "*.q?_proj.*"
density = 0.5
)");
  const Recipe yaml = Yaml(R"(
merge_method: ties
base_model: "models/base"
dtype: bfloat16
out_dtype: torch.float16
on_missing: skip
layer_scale: {alpha: 0.25, beta: 0.5}
tokenizer_source: base
only: ["*.mlp.*", "*.weight"]
exclude: lm_head.*
parameters:
  lambda: [1, 0.5]
  normalize: no
  int8_mask: 1
  scope: tensor
  zero_sign: majority
  density: [{filter: "*", value: 0.25}]
models:
  - model: models/math
    parameters: {weight: 1e-5, density: [1, "0.5", 0]}
  - model: models/base
  - model: org/code@v2
    parameters:
      weight: -2
      density: [{filter: a*b, value: 0.75}, {glob: "*.q?_proj.*", value: 0.5}]
)");
  EXPECT_EQ(Describe(toml), Describe(yaml));
  EXPECT_EQ(toml.out_dtype, DType::kF16);
  EXPECT_EQ(toml.on_missing, OnMissing::kSkip);
  EXPECT_TRUE(toml.warnings.empty());
  EXPECT_TRUE(yaml.warnings.empty());
}

TEST(RecipeSyntax, TokenizersInBothSyntaxes) {
  const std::string models = "method = 'ties'\nbase = 'b'\nmodels = [{path = 'x'}]\n";
  const Recipe toml = Toml(models + R"(
chat_template = "{{ messages[0]['content'] }}"
[tokenizer]
source = "x"
pad_to_multiple_of = 64
[tokenizer.tokens]
"<a>" = {source = "b"}
"<b>" = {source = {kind = "zero"}, force = true}
"<c>" = {source = {kind = "model_token", model = "x", token = "y"}}
"<d>" = {source = {kind = "model_token", model = "x", token_id = 7}, force = false}
)");
  const Recipe yaml = Yaml(R"(
merge_method: ties
base_model: b
models:
  - model: x
    parameters: {weight: 1}
chat_template: "{{ messages[0]['content'] }}"
tokenizer:
  source: x
  pad_to_multiple_of: 64
  tokens:
    <a>: {source: b}
    <b>: {source: {kind: zero}, force: true}
    <c>: {source: {kind: model_token, model: x, token: y}}
    <d>: {source: {kind: model_token, model: x, token_id: 7}, force: no}
)");
  EXPECT_EQ(Describe(toml.tokenizer),
            "2 x 64 [<a> 0 b - 0 false] [<b> 1  - 0 true] [<c> 2 x y 0 false] [<d> 2 x - 7 false]");
  EXPECT_EQ(Describe(yaml.tokenizer), Describe(toml.tokenizer));
  EXPECT_EQ(yaml.chat_template->text, toml.chat_template->text);
  EXPECT_EQ(yaml.chat_template->where.line, 7);
  EXPECT_EQ(Describe(Toml("tokenizer = 'union'\n" + models).tokenizer), "1  1");
  EXPECT_EQ(
      Describe(Yaml("merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\ntokenizer: {}\n").tokenizer),
      "1  1");
  const Recipe no_base =
      Yaml("merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\ntokenizer_source: base\n");
  EXPECT_EQ(Describe(no_base.tokenizer), "0  1");
  EXPECT_EQ(no_base.warnings.size(), 1u);
  EXPECT_EQ(Toml("chat_template = 'auto'\n" + models).chat_template->text, "");
}

TEST(RecipeSyntax, EveryValueKnowsItsPlace) {
  const Recipe toml = Toml(
      "method = 'ties'\nbase = 'b'\n[[models]]\npath = 'x'\n[[models.overrides]]\n"
      "tensors = ['a', 'c']\ndensity = 0.5\n");
  EXPECT_EQ(toml.base_where.line, 2);
  EXPECT_EQ(toml.base_where.column, 8);
  ASSERT_EQ(toml.models.size(), 1u);
  EXPECT_EQ(toml.models[0].where.line, 4);
  const std::vector<Setting>& density = toml.models[0].settings.at("density");
  ASSERT_EQ(density.size(), 2u);
  EXPECT_EQ(density[1].filter, "c");
  EXPECT_EQ(density[1].where.line, 7);
  EXPECT_EQ(density[1].filter_where.line, 6);
  EXPECT_EQ(density[1].filter_where.column, 17);
  EXPECT_EQ(toml.text.substr(0, 6), "method");
}

TEST(RecipeSyntax, FlagsAndNumbersAsYamlUsersWriteThem) {
  for (const char* yes : {"true", "True", "yes", "on", "1", "'yes'"})
    EXPECT_EQ(
        Yaml(fmt::format(
                 "merge_method: linear\nmodels: [{{model: x}}]\nparameters: {{weight: 1, normalize: {}}}",
                 yes))
            .settings.at("normalize")[0]
            .values[0],
        1)
        << yes;
  for (const char* no : {"false", "FALSE", "no", "off", "0"})
    EXPECT_EQ(
        Yaml(
            fmt::format(
                "merge_method: linear\nmodels: [{{model: x}}]\nparameters: {{weight: 1, normalize: {}}}", no))
            .settings.at("normalize")[0]
            .values[0],
        0)
        << no;
  const std::pair<const char*, double> numbers[] = {
      {"1e-5", 1e-5}, {"'0.25'", 0.25}, {"+3", 3}, {"-.5", -.5}, {"2.", 2}, {"-1E+2", -100}, {"0.1", 0.1}};
  for (const auto& [text, value] : numbers)
    EXPECT_EQ(
        Yaml(fmt::format("merge_method: linear\nmodels: [{{model: x}}]\nparameters: {{weight: {}}}", text))
            .settings.at("weight")[0]
            .values[0],
        value)
        << text;
}

TEST(RecipeSyntax, ModelReferences) {
  const auto reference = [](const std::string& yaml) {
    return Yaml("merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: " + yaml + "\n");
  };
  const std::pair<const char*, const char*> forms[] = {
      {"org/name", "org/name"},
      {"org/name@v2", "org/name@v2"},
      {"'/abs/path'", "/abs/path"},
      {"{model: org/name@v2}", "org/name@v2"},
      {"{model: {path: org/name}}", "org/name"},
      {"{model: {path: org/name, revision: v2}}", "org/name@v2"},
      {"{model: {path: org/name, revision: null}, lora: null, override_architecture: ~}", "org/name"},
      {"{model: {path: a+b@c@d}}", "a+b@c@d"},
  };
  for (const auto& [yaml, expected] : forms) {
    const Recipe recipe = reference(yaml);
    EXPECT_EQ(recipe.models.at(0).reference, expected) << yaml;
    EXPECT_TRUE(recipe.warnings.empty()) << yaml;
  }
  const Recipe based = Yaml(
      "merge_method: ties\nbase_model: {model: {path: b, revision: r}}\nmodels: [{model: x}]\nparameters: {weight: "
      "1}\n");
  EXPECT_EQ(based.base, "b@r");
  const Recipe overridden = reference("{model: x, override_architecture: LlamaForCausalLM}");
  EXPECT_EQ(overridden.models.at(0).reference, "x");
  ASSERT_EQ(overridden.warnings.size(), 1u);
  EXPECT_EQ(overridden.warnings[0].message, "'override_architecture' has no effect: tensors are found by their names");
  EXPECT_EQ(overridden.warnings[0].where.line, 4);
}

TEST(RecipeSyntax, WhatIsNeverAskedForIsAWarning) {
  const Recipe yaml = Yaml(
      "merge_method: linear\nmodels: [{model: x}]\nparameters:\n  weight:\n    - value: 1\n    - {filter: mlp, value: "
      "2}\n");
  ASSERT_EQ(yaml.settings.at("weight").size(), 1u);
  ASSERT_EQ(yaml.warnings.size(), 1u);
  EXPECT_EQ(yaml.warnings[0].message, "this value of 'weight' is never used: the one in line 5 is for all tensors");
  EXPECT_EQ(yaml.warnings[0].where.line, 6);
  const Recipe toml = Toml(
      "method = 'linear'\n[[models]]\npath = 'x'\nweight = 2\n[[models.overrides]]\ntensors = '*'\nweight = 1\n");
  EXPECT_EQ(toml.models[0].settings.at("weight").front().values.front(), 1);
  ASSERT_EQ(toml.warnings.size(), 1u);
  EXPECT_EQ(toml.warnings[0].where.line, 4);
}

TEST(RecipeSyntax, AliasesAreRead) {
  const Recipe recipe = Yaml(
      "merge_method: linear\nmodels:\n  - {model: x, parameters: &p {weight: 0.5}}\n"
      "  - {model: y, parameters: *p}\n");
  EXPECT_EQ(recipe.models[1].settings.at("weight")[0].values[0], 0.5);
}

TEST(RecipeSyntax, TheBaseIsASourceOfLinearAndNoneOfTies) {
  const Recipe appended = Toml("method = 'linear'\nbase = 'b'\n[[models]]\npath = 'x'\n");
  ASSERT_EQ(appended.models.size(), 2u);
  EXPECT_EQ(appended.models[1].reference, "b");
  EXPECT_EQ(appended.models[1].where.line, 2);

  const Recipe listed =
      Toml("method = 'average'\nbase = 'b'\n[[models]]\npath = 'b'\n[[models]]\npath = 'x'\n");
  ASSERT_EQ(listed.models.size(), 2u);
  EXPECT_EQ(listed.models[0].reference, "b");

  const Recipe from_above =
      Yaml("merge_method: linear\nbase_model: b\nmodels: [{model: x}]\nparameters: {weight: 1}\n");
  ASSERT_EQ(from_above.models.size(), 2u);
  EXPECT_EQ(from_above.models[1].reference, "b");

  const Recipe dropped =
      Toml("method = 'ties'\nbase = 'b'\n[[models]]\npath = 'b'\n[[models]]\npath = 'x'\n");
  ASSERT_EQ(dropped.models.size(), 1u);
  EXPECT_EQ(dropped.models[0].reference, "x");
}

TEST(RecipeSyntax, WhatHasNoEffectIsAWarning) {
  struct Case {
    Recipe recipe;
    int line;
    const char* fragment;
  };
  const std::string toml = "method = 'task_arithmetic'\nbase = 'b'\n";
  const std::string yaml = "merge_method: task_arithmetic\nbase_model: b\n";
  const Case cases[] = {
      {Toml(toml + "[parameters]\ndensity = 9\n[[models]]\npath = 'x'\n"), 4, "'density' has no effect"},
      {Toml(toml + "[[models]]\npath = 'x'\ngamma = 0.1\n"), 5, "'gamma' has no effect"},
      {Toml(toml + "[[models]]\npath = 'x'\nlambda = 0.1\n"), 5, "'lambda' is one value for all models"},
      {Toml(toml + "[[models]]\npath = 'x'\n[[models.overrides]]\ntensors = '*'\nnormalize = true\n"), 7,
       "'normalize' is one value for all models"},
      {Toml(toml + "[[models]]\npath = 'x'\n[[models]]\npath = 'b'\nweight = 2\n"), 6,
       "parameters of the base"},
      {Yaml(yaml + "models: [{model: x, parameters: {weight: 1}}]\nparameters:\n  t: 0.5\n"), 5,
       "'t' has no effect"},
      {Yaml(yaml + "models:\n  - model: x\n    parameters:\n      weight: 1\n      lambda: 2\n"), 7,
       "'lambda' is one value for all models"},
      {Yaml(yaml + "models:\n  - model: x\n    residual_weight: 1\n    parameters: {weight: 1}\n"), 5,
       "'residual_weight' has no effect"},
      {Yaml(yaml + "models: [{model: x, parameters: {weight: 1}}]\nparameters:\n  residual_weight: 1\n"), 5,
       "'residual_weight' has no effect"},
  };
  for (const Case& c : cases) {
    ASSERT_EQ(c.recipe.warnings.size(), 1u) << c.fragment;
    EXPECT_EQ(c.recipe.warnings[0].where.line, c.line) << c.fragment;
    EXPECT_NE(c.recipe.warnings[0].message.find(c.fragment), std::string::npos)
        << c.recipe.warnings[0].message;
    ASSERT_EQ(c.recipe.models.size(), 1u);
    EXPECT_FALSE(c.recipe.models[0].settings.contains("lambda"));
    EXPECT_FALSE(c.recipe.settings.contains("density"));
  }
}

TEST(RecipeSyntax, KeysLeftEmptyInYamlAreNotGiven) {
  const Recipe recipe = Yaml(
      "merge_method: linear\nbase_model:\ndtype: null\nout_dtype: ~\nparameters:\n"
      "models:\n  - model: x\n    parameters: {weight: 1}\n");
  EXPECT_FALSE(recipe.base);
  EXPECT_FALSE(recipe.dtype);
  EXPECT_FALSE(recipe.out_dtype);
}

TEST(RecipeSyntax, TheHomeDirectoryIsExpanded) {
  ASSERT_NE(std::getenv("HOME"), nullptr);
  const std::string home = std::getenv("HOME");
  const Recipe recipe = Toml("method = 'average'\n[[models]]\npath = '~/x'\n[[models]]\npath = '~y'\n");
  EXPECT_EQ(recipe.models[0].reference, home + "/x");
  EXPECT_EQ(recipe.models[1].reference, "~y");
}

TEST(RecipeSyntax, ModelScopeTakesOneDensityPerModel) {
  const Recipe recipe = Toml(
      "method = 'ties'\nbase = 'b'\n[parameters]\nscope = 'model'\ndensity = [0.5]\n"
      "[[models]]\npath = 'x'\ndensity = 0.1\nweight = [0, 1]\n");
  EXPECT_EQ(recipe.settings.at("scope")[0].values[0], 1);
}

TEST(RecipeSyntax, TheExtensionChoosesTheSyntax) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("braid_recipe_test_{}", getpid());
  std::filesystem::create_directories(folder);
  const std::string yaml = "merge_method: linear\nmodels:\n  - {model: x, parameters: {weight: 1}}\n";
  for (const char* name : {"a.yml", "a.yaml"}) {
    std::ofstream(folder / name) << yaml;
    EXPECT_EQ(ReadRecipe((folder / name).string()).syntax, Syntax::kYaml);
  }
  std::ofstream(folder / "a.recipe") << "method = 'average'\n[[models]]\npath = 'x'\n";
  EXPECT_EQ(ReadRecipe((folder / "a.recipe").string()).syntax, Syntax::kToml);
  EXPECT_THROW(ReadRecipe((folder / "missing.toml").string()), Error);
  std::filesystem::remove_all(folder);
}

TEST(RecipeConfigs, EveryOneIsRead) {
  int read = 0;
  for (const auto& file : std::filesystem::directory_iterator(Configs())) {
    const std::string extension = file.path().extension().string();
    if (extension != ".toml" && extension != ".yml") continue;
    const Recipe recipe = ReadRecipe(file.path().string());
    EXPECT_TRUE(recipe.text.starts_with("# ")) << file.path() << " says nothing about what it is for";
    EXPECT_FALSE(recipe.models.empty() && recipe.modules.empty());
    EXPECT_TRUE(recipe.warnings.empty()) << file.path();
    ++read;
  }
  EXPECT_GE(read, 10);
}

TEST(RecipeConfigs, PairsAskForTheSame) {
  for (const char* name : {"ties", "task_arithmetic", "linear"}) {
    const Recipe toml = ReadRecipe(Configs() / (std::string(name) + ".toml"));
    const Recipe yaml = ReadRecipe(Configs() / (std::string(name) + ".yml"));
    EXPECT_EQ(Describe(toml), Describe(yaml)) << name;
  }
}

}  // namespace
}  // namespace braid
