// Recipes written to do harm: they must end in an error, soon, and in bounded memory.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <string>

#include "pipeline/recipe.h"

namespace braid {
namespace {

std::string Repeat(std::string_view text, size_t times) {
  std::string out;
  out.reserve(text.size() * times);
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

void ExpectRefused(Syntax syntax, const std::string& text, const std::string& fragment, const char* name) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    if (syntax == Syntax::kToml)
      ParseTomlRecipe(text, "r");
    else
      ParseYamlRecipe(text, "r");
    ADD_FAILURE() << name << ": no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage) << name;
    EXPECT_TRUE(std::string(error.what()).starts_with("r:")) << name << ": " << error.what();
    EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << name << ": " << error.what();
    EXPECT_LT(std::string(error.what()).size(), 1000u) << name;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << name;
}

TEST(RecipeHostile, Encodings) {
  for (Syntax syntax : {Syntax::kToml, Syntax::kYaml}) {
    const char* bad[] = {"a\xff",    "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                         "\xe2\x82", "\x80",     "\xe0\x80\x80", "\xf0\x80\x80\x80"};
    for (const char* text : bad) ExpectRefused(syntax, std::string("# \n# ") + text, "r:2:", "not UTF-8");
    ExpectRefused(syntax, std::string("# \n#\0", 5), "r:2:2: a NUL byte", "NUL");
    ExpectRefused(syntax, std::string((1 << 20) + 1, ' '), "too large for a recipe", "large file");
  }
  // Well-formed text outside ASCII is fine.
  EXPECT_EQ(
      ParseTomlRecipe("method = 'average'\n[[models]]\npath = 'modèles/日本/🎼'\n", "r").models[0].reference,
      "modèles/日本/🎼");
}

TEST(RecipeHostile, YamlBombs) {
  std::string laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i)
    laughs += fmt::format("a{0}: &a{0} [{1}]\n", i,
                          Repeat(fmt::format("*a{}, ", i - 1), 9) + fmt::format("*a{}", i - 1));
  ExpectRefused(Syntax::kYaml, laughs, "more than 100000 values", "billion laughs");
  ExpectRefused(Syntax::kYaml, "a: &a [*a]\n", "an alias (*) inside", "a list within itself");
  ExpectRefused(Syntax::kYaml, "a: &a\n  b: *a\n", "an alias (*) inside", "a table within itself");
  ExpectRefused(Syntax::kYaml, "a: " + Repeat("[", 65) + Repeat("]", 65), "nested more than 64 levels",
                "65 lists");
  ExpectRefused(Syntax::kYaml, Repeat("[", 1 << 20), "", "a million brackets");
  ExpectRefused(Syntax::kYaml, Repeat("- ", 1 << 19), "nested more than 64 levels", "half a million dashes");
  ExpectRefused(Syntax::kYaml, Repeat("? ", 1 << 19), "a key must be plain text",
                "half a million keys of keys");
  std::string towers = "a: ";
  for (int i = 0; i < 60; ++i) towers += fmt::format("&a{} [", i);
  ExpectRefused(Syntax::kYaml, towers + Repeat("0,", 10000) + "0" + Repeat("]", 60),
                "more than 100000 values", "anchors around anchors");
  // One on which YAML::LoadAll of yaml-cpp 0.7 never ends.
  ExpectRefused(Syntax::kYaml, "a: 1\n}\n", "r:2:1: ", "a bracket too many");
  ExpectRefused(Syntax::kYaml, "]", "r:1:1: ", "a bracket alone");
  ExpectRefused(Syntax::kYaml, "a: [" + Repeat("0,", 200000) + "0]\n", "more than 100000 values",
                "a long list");
  ExpectRefused(Syntax::kYaml, Repeat("a: 1\n", 100000), "there twice", "one key many times");
  ExpectRefused(Syntax::kYaml, "merge_method: " + Repeat("x", 1000000), "unknown method", "a long word");
  ExpectRefused(Syntax::kYaml, "merge_method: ties\n" + Repeat("é", 400000) + ": 1\n", "", "a long key");
}

TEST(RecipeHostile, TomlBombs) {
  const std::string chain = "a" + Repeat(".a", 300000);
  ExpectRefused(Syntax::kToml, chain + " = 1\n", "nested too deeply", "a long dotted key");
  ExpectRefused(Syntax::kToml, "[" + chain + "]\n", "nested too deeply", "a long table name");
  ExpectRefused(Syntax::kToml, "[[" + chain + "]]\n", "nested too deeply", "a long array name");
  ExpectRefused(Syntax::kToml, Repeat("\"=\" . ", 100000) + "a = 1\n", "nested too deeply",
                "quoted components");
  ExpectRefused(Syntax::kToml, "x = '''\n' \" ''''\n" + chain + " = 1\n", "r:3:34: nested too deeply",
                "behind a multi-line string");
  ExpectRefused(Syntax::kToml, "x = \"\"\"\n\\\n\\\"\"\" \"\"\"\"\"\n" + chain + " = 1\n",
                "r:4:34: nested too deeply", "behind escapes");
  ExpectRefused(Syntax::kToml, "x = \"#\" # \"\n" + chain + " = 1\n", "r:2:34: nested too deeply",
                "behind a comment");
  ExpectRefused(Syntax::kToml, "a = " + Repeat("[", 1 << 19), "nested too deeply", "many brackets");
  ExpectRefused(Syntax::kToml, "a = " + Repeat("{a=", 1 << 18), "nested too deeply", "many tables");
  ExpectRefused(Syntax::kToml, "a = [" + Repeat("0,", 200000) + "0]\n", "more than 100000 values",
                "a long list");
  ExpectRefused(Syntax::kToml, "method = '" + Repeat("x", 1000000) + "'\n", "unknown method", "a long word");
  ExpectRefused(Syntax::kToml, Repeat("x", 1 << 20), "", "a key without an end");
}

// A text with dots, brackets and quotes everywhere is still a good recipe.
TEST(RecipeHostile, TheDepthCheckLeavesStringsAndNumbersAlone) {
  const std::string name = "layers" + Repeat(".0[", 100);
  const Recipe recipe = ParseTomlRecipe(
      "method = 'ties' # " + name + "\nbase = \"\"\"" + name + "\\\"\"\"\"\"\n[[models]]\npath = '''" + name +
          "'''\nweight = [" + Repeat("0.5, ", 1000) + "]\n[[models.overrides]]\ntensors = '" + name +
          "'\ndensity = 0.5\n",
      "r");
  EXPECT_EQ(recipe.models[0].reference, name);
  EXPECT_EQ(*recipe.base, name + "\"\"");
}

// Whatever is done to a good recipe, it is read or refused, and nothing else.
TEST(RecipeHostile, MutatedRecipes) {
  const std::string toml =
      "method = \"ties\"\nbase = 'b'\ndtype = 'bfloat16'\n[parameters]\ndensity = [0.5, 1]\nscope = "
      "'tensor'\n"
      "[[models]]\npath = 'x'\nweight = 1.5\n[[models.overrides]]\ntensors = ['*.a', 'b.?']\ndensity = 0.25\n"
      "[[overrides]]\ntensors = '*'\nlambda = 2\n";
  const std::string yaml =
      "merge_method: ties\nbase_model: b\nmodels:\n  - model: x\n    parameters:\n      weight: &w [0.5, "
      "1e-5]\n"
      "      density:\n      - {filter: mlp, value: *w}\n      - value: 0.5\nparameters: {normalize: yes}\n"
      "dtype: bfloat16\n";
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const std::string_view alphabet = "[]{}:,.-=\"'\\\n &*?!|>%@`#~<0123456789eanx_+\t";
  int read = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    const bool is_toml = round % 2 == 0;
    std::string text = is_toml ? toml : yaml;
    for (unsigned edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % text.size();
      const char c = alphabet[random() % alphabet.size()];
      switch (random() % 4) {
        case 0:
          text[at] = c;
          break;
        case 1:
          text.insert(at, 1, c);
          break;
        case 2:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
          break;
      }
      if (text.empty()) text = "x";
    }
    try {
      const Recipe recipe = is_toml ? ParseTomlRecipe(text, "r") : ParseYamlRecipe(text, "r");
      EXPECT_FALSE(recipe.models.empty()) << text;
      ++read;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage) << error.what() << "\n" << text;
      EXPECT_TRUE(std::string(error.what()).starts_with("r:")) << error.what() << "\n" << text;
      ++refused;
    }
  }
  EXPECT_GT(read, 0);
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace braid
