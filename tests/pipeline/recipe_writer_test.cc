// A recipe that is written and read again is the same recipe, in either syntax.
#include "pipeline/recipe_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "ops/method.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/recipe_description.h"

namespace braid {
namespace {

using fixture::Describe;

Recipe Read(const std::string& text, Syntax syntax) {
  return syntax == Syntax::kYaml ? ParseYamlRecipe(text, "r.yml") : ParseTomlRecipe(text, "r.toml");
}

Recipe Convert(const Recipe& recipe, Syntax syntax) {
  const std::string text = WriteRecipe(recipe, syntax);
  try {
    Recipe read = Read(text, syntax);
    EXPECT_TRUE(read.warnings.empty()) << text;
    return read;
  } catch (const Error& error) {
    ADD_FAILURE() << error.what() << "\n" << text;
    return recipe;
  }
}

// What every parameter is for some tensors: what is left to compare where a default was written out.
std::string Values(const Recipe& recipe) {
  const MethodInfo& method = *FindMethod(recipe.method);
  std::string out;
  for (const Recipe& stage : recipe.stages) out += Values(stage);
  for (const char* tensor :
       {"model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight", "lm_head.weight", "a*b\\c"})
    for (double t : {0.0, 0.3, 1.0})
      for (const ParameterSpec& spec : method.parameters)
        for (const RecipeModel& model : recipe.models)
          out += fmt::format("{} {} {} {}: {}\n", tensor, t, spec.name, model.reference,
                             ResolveParameter(recipe, &model, spec, tensor, t));
  return out;
}

// Through both syntaxes and back. Of TOML's, a weight that was not given is given afterwards, once and for all.
void ExpectKept(const Recipe& recipe) {
  const Recipe same = Convert(recipe, recipe.syntax);
  EXPECT_EQ(Describe(same), Describe(recipe));
  const Recipe yaml = Convert(recipe, Syntax::kYaml);
  if (recipe.syntax == Syntax::kYaml) {
    EXPECT_EQ(Describe(yaml), Describe(recipe));
  }
  EXPECT_EQ(Values(yaml), Values(recipe));
  const Recipe toml = Convert(yaml, Syntax::kToml);
  EXPECT_EQ(Describe(toml), Describe(yaml));
  EXPECT_EQ(Values(toml), Values(recipe));
  EXPECT_EQ(Describe(Convert(toml, Syntax::kYaml)), Describe(yaml));
}

TEST(RecipeWriter, EveryConfig) {
  const auto configs = std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "configs";
  int read = 0;
  for (const auto& file : std::filesystem::directory_iterator(configs)) {
    const std::string extension = file.path().extension().string();
    if (extension != ".toml" && extension != ".yml") continue;
    SCOPED_TRACE(file.path());
    const Recipe recipe = ReadRecipe(file.path().string());
    // YAML has no form for a delta.
    if (recipe.output.content == RecipeOutput::Content::kDelta)
      EXPECT_EQ(Describe(Convert(recipe, Syntax::kToml)), Describe(recipe));
    else ExpectKept(recipe);
    const std::string comment = recipe.text.substr(0, recipe.text.find('\n') + 1);
    EXPECT_TRUE(WriteRecipe(recipe, Syntax::kToml).starts_with(comment)) << "its first comment is kept";
    ++read;
  }
  EXPECT_GE(read, 10);
}

TEST(RecipeWriter, Outputs) {
  const std::string models = "method = 'ties'\nbase = 'b'\nmodels = [{path = 'x'}]\n";
  for (const char* table : {"compress = 'none'", "compress = 'zstd'", "compress = 'planes'", "content = 'delta'",
                            "content = 'delta'\ndelta_dtype = 'bfloat16'\ncompress = 'zstd'"}) {
    const Recipe recipe = ParseTomlRecipe(models + "[output]\n" + table, "r.toml");
    EXPECT_EQ(Describe(Convert(recipe, Syntax::kToml)), Describe(recipe)) << table;
  }
  const Recipe compressed = ParseTomlRecipe(models + "output = {compress = 'zstd'}", "r.toml");
  std::vector<std::string> notes;
  EXPECT_EQ(WriteRecipe(compressed, Syntax::kYaml, &notes).find("output"), std::string::npos);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("--compress zstd"), std::string::npos) << notes[0];
  const Recipe delta = ParseTomlRecipe("output = 'delta'\n" + models, "r.toml");
  EXPECT_EQ(delta.output.content, RecipeOutput::Content::kDelta);
  EXPECT_FALSE(TryWriteRecipe(delta, Syntax::kYaml));
}

TEST(RecipeWriter, Toml) {
  const Recipe recipe = ParseYamlRecipe(R"(# One.
# Two.

# Three.
merge_method: ties
base_model: models/base
dtype: bfloat16
only: ["*.mlp.*", '*.we"ight']
on_missing: skip
models:
  - model: models/math
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - {filter: attn, value: [0, 1e-5]}
        - value: 1
      density:
        - {filter: attn, value: 0.25}
        - {glob: "q?*", value: 0.5}
  - {model: org/code@v2, parameters: {weight: -2}}
parameters: {normalize: yes, scope: tensor, lambda: {filter: a*b, value: 2}}
)",
                                        "r.yml");
  EXPECT_EQ(WriteRecipe(recipe, Syntax::kToml), R"(# One.
# Two.
method = "ties"
base = "models/base"
dtype = "bfloat16"
on_missing = "skip"
only = ["*.mlp.*", "*.we\"ight"]

[parameters]
normalize = true
scope = "tensor"

[[overrides]]
tensors = "*a\\*b*"
lambda = 2

[[models]]
path = "models/math"
weight = 1

[[models.overrides]]
tensors = "*mlp*"
weight = 0.5

[[models.overrides]]
tensors = "*attn*"
density = 0.25
weight = [0, 1.0e-05]

[[models.overrides]]
tensors = "q?*"
density = 0.5

[[models]]
path = "org/code@v2"
weight = -2
)");
}

TEST(RecipeWriter, Yaml) {
  const Recipe recipe = ParseTomlRecipe(R"(# Comment.
method = "task_arithmetic"
base = "../base"
exclude = "lm_head.*"
[parameters]
lambda = 0.5
[[overrides]]
tensors = ["*.mlp.*", "*self_attn*"]
lambda = [0, 0.5, 1]
[[models]]
path = "x"
[[models]]
path = "a+b"
weight = 3
)",
                                        "r.toml");
  std::vector<std::string> notes;
  EXPECT_EQ(WriteRecipe(recipe, Syntax::kYaml, &notes), R"(# Comment.
merge_method: task_arithmetic
base_model: "../base"
exclude: ["lm_head.*"]
models:
  - model: x
  - model:
      model:
        path: "a+b"
    parameters:
      weight: 3
parameters:
  lambda:
    - filter: ".mlp."
      value: [0, 0.5, 1]
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.5
  weight: 1
)");
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0], "mergekit ignores what is Braid's own: exclude");
}

TEST(RecipeWriter, WhatHasNoFormIsSaid) {
  std::vector<std::string> notes;
  const Recipe filtered = ParseYamlRecipe(
      "merge_method: linear\nmodels:\n  - model: x\n    parameters: {weight: {filter: a, value: 2}}\n", "r.yml");
  WriteRecipe(filtered, Syntax::kToml, &notes);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0], "where no filter gives model 'x' a weight, it is an error in YAML and 1 in TOML");
}

// --- generated recipes --------------------------------------------------------------------------------------------

class Generator {
 public:
  Recipe MakeRecipe() {
    Recipe recipe;
    recipe.syntax = Syntax::kToml;
    const char* methods[] = {"ties", "task_arithmetic", "linear", "average"};
    recipe.method = methods[random_() % 4];
    const MethodInfo& method = *FindMethod(recipe.method);
    if (method.base == BaseUse::kRequired) recipe.base = "base " + Text();
    for (size_t i = 0, n = 1 + random_() % 3; i < n; ++i) {
      recipe.models.push_back({fmt::format("{}/{}", i, Text()), {}, {}});
      recipe.models.back().settings = MakeSettings(method, true);
    }
    recipe.settings = MakeSettings(method, false);
    if (Sometimes()) recipe.dtype = DType::kBF16;
    if (Sometimes()) recipe.out_dtype = DType::kF32;
    recipe.on_missing = Sometimes() ? OnMissing::kSkip : OnMissing::kError;
    for (auto* filters : {&recipe.only, &recipe.exclude})
      for (size_t n = random_() % 3; n > 0; --n) filters->push_back({Filter(), {}});
    return recipe;
  }

 private:
  bool Sometimes() { return random_() % 3 == 0; }

  // Anything that a name can hold, and what the syntaxes take for something else.
  std::string Text() {
    const char* pieces[] = {"a", "null", "true", "0x1", "1e5", "~", ".", "/", " ", "\"", "'", "\\", "#", ": ", "- ",
                            "[", "}", ",", "&x", "*", "?", "@", "+", "\n", "\t", "\r", "=", "%", "|", ">", "!", "<<",
                            "é", "\xc2\x85", "\xe2\x80\xa8", "\xef\xbb\xbf", "\xf0\x9f\x8e\xbc", "\x7f", "\x01"};
    std::string text;
    for (size_t n = 1 + random_() % 4; n > 0; --n) text += pieces[random_() % std::size(pieces)];
    return text;
  }

  std::string Filter() {
    const char* globs[] = {"*mlp*", "*.mlp.*", "*self_attn*", "lm_head.weight", "model.layers.?.*",
                           "*a\\*b*", "*a\\*", "**", "\\"};
    return Sometimes() ? Text() + "x" : globs[random_() % std::size(globs)];
  }

  static Setting Make(std::string filter, std::vector<double> values) {
    Setting setting;
    setting.filter = std::move(filter), setting.values = std::move(values);
    return setting;
  }

  double Value(const ParameterSpec& spec) {
    if (spec.kind == ParameterKind::kFlag) return static_cast<double>(random_() % 2);
    if (spec.kind == ParameterKind::kChoice) return static_cast<double>(random_() % spec.choices.size());
    const double values[] = {0, -0.0, 1, -2.5, 0.1, 1.0 / 3, 1e-5, 1e-300, 123456789, 9007199254740991, -1e20, 3e29};
    return std::clamp(values[random_() % std::size(values)], spec.min, spec.max);
  }

  Settings MakeSettings(const MethodInfo& method, bool of_model) {
    Settings settings;
    for (const ParameterSpec& spec : method.parameters) {
      if (of_model && spec.scope != ParameterScope::kModel) continue;
      if (spec.name == "scope" || Sometimes()) continue;  // with scope = "model" densities are single numbers
      std::vector<Setting> list;
      for (size_t n = spec.scope == ParameterScope::kRecipe ? 0 : random_() % 3; n > 0; --n)
        list.push_back(Make(Filter(), Values(spec)));
      if (spec.scope == ParameterScope::kRecipe) list.push_back(Make("", {Value(spec)}));
      else if (Sometimes() || list.empty()) list.push_back(Make("", Values(spec)));
      settings[std::string(spec.name)] = std::move(list);
    }
    return settings;
  }

  std::vector<double> Values(const ParameterSpec& spec) {
    std::vector<double> values;
    for (size_t n = 1 + (Sometimes() ? random_() % 4 : 0); n > 0; --n) values.push_back(Value(spec));
    return values;
  }

  test::Random random_;
};

TEST(RecipeWriter, GeneratedRecipes) {
  Generator generator;
  for (int i = 0; i < 2'000 && !testing::Test::HasFailure(); ++i) {
    const Recipe recipe = generator.MakeRecipe();
    SCOPED_TRACE(WriteRecipe(recipe, Syntax::kToml));
    ExpectKept(recipe);
  }
}

}  // namespace
}  // namespace braid
