#include "pipeline/glob.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/ops/test_support.h"

namespace braid {
namespace {

TEST(Globs, Match) {
  EXPECT_TRUE(GlobMatches("*.mlp.*", "model.layers.3.mlp.up_proj.weight"));
  EXPECT_FALSE(GlobMatches("*.mlp.*", "mlp.up_proj"));
  EXPECT_FALSE(GlobMatches("mlp", "model.mlp.weight")) << "a glob is over the whole name";
  EXPECT_TRUE(GlobMatches("lm_head.weight", "lm_head.weight"));
  EXPECT_TRUE(GlobMatches("model.layers.?.w", "model.layers.3.w"));
  EXPECT_FALSE(GlobMatches("model.layers.?.w", "model.layers.13.w"));
  EXPECT_TRUE(GlobMatches("*", ""));
  EXPECT_TRUE(GlobMatches("a*b*c", "axxbxbxc"));
  EXPECT_FALSE(GlobMatches("a*b*c", "axxbxbx"));
  EXPECT_TRUE(GlobMatches("**a**", "bab"));
  EXPECT_FALSE(GlobMatches("?", ""));
  EXPECT_FALSE(GlobMatches("a[bc]", "ab")) << "brackets are plain text";
  // Quadratic at most, where naive backtracking would not come back.
  std::string many_stars;
  for (int i = 0; i < 200; ++i) many_stars += "*a";
  EXPECT_FALSE(GlobMatches(many_stars + "b", std::string(5000, 'a')));
}

TEST(Globs, ABackslashTakesTheMeaningAway) {
  EXPECT_TRUE(GlobMatches("a\\*b", "a*b"));
  EXPECT_FALSE(GlobMatches("a\\*b", "axb"));
  EXPECT_TRUE(GlobMatches("a\\?b", "a?b"));
  EXPECT_FALSE(GlobMatches("a\\?b", "axb"));
  EXPECT_TRUE(GlobMatches("a\\\\b", "a\\b"));
  EXPECT_TRUE(GlobMatches("a\\b", "a\\b")) << "before another character it is plain text";
  EXPECT_TRUE(GlobMatches("a\\", "a\\"));
  EXPECT_TRUE(GlobMatches("*\\**", "x*y"));
  EXPECT_FALSE(GlobMatches("*\\**", "xy"));
}

TEST(Globs, SubstringsAreGlobs) {
  EXPECT_EQ(GlobOfSubstring("mlp"), "*mlp*");
  EXPECT_EQ(GlobOfSubstring("*.mlp.?\\"), "*\\*.mlp.\\?\\\\*");
  EXPECT_EQ(SubstringOf("*mlp*"), "mlp");
  for (const char* other : {"", "*", "**", "mlp", "*mlp", "mlp*", "*m*p*", "*m?p*", "*a\\*", "*a\\b*", "***"})
    EXPECT_EQ(SubstringOf(other), std::nullopt) << other;
}

TEST(Globs, ASubstringMatchesWhatContainsIt) {
  test::Random random;
  const auto text = [&](size_t longest) {
    std::string out;
    for (size_t n = random() % (longest + 1); n > 0; --n) out += "ab*?\\"[random() % 5];
    return out;
  };
  for (int i = 0; i < 20'000; ++i) {
    const std::string part = text(3) + "a", name = text(8);
    const std::string glob = GlobOfSubstring(part);
    EXPECT_EQ(GlobMatches(glob, name), name.find(part) != std::string::npos) << part << " in " << name;
    EXPECT_EQ(SubstringOf(glob), part);
  }
}

}  // namespace
}  // namespace braid
