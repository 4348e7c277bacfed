// The declarations of methods and their parameters.
#include "ops/method.h"

#include <gtest/gtest.h>

#include <set>

namespace braid {
namespace {

TEST(Methods, AreFoundByTheirNames) {
  std::set<std::string_view> names;
  for (const MethodInfo& method : Methods()) {
    EXPECT_TRUE(names.insert(method.name).second) << method.name << " twice";
    EXPECT_EQ(FindMethod(method.name), &method);
    EXPECT_FALSE(method.summary.empty()) << method.name;
    EXPECT_FALSE(method.source.empty()) << method.name;
  }
  for (const char* name : {"ties", "task_arithmetic", "linear", "average", "dare_linear", "dare_ties", "breadcrumbs",
                           "breadcrumbs_ties", "della", "della_linear", "metagpt", "slerp", "nuslerp", "multislerp",
                           "karcher", "model_stock", "nearswap", "passthrough", "ram", "ramplus_tl", "consensus_ta",
                           "magmax", "sce", "arcee_fusion", "pcb"})
    EXPECT_TRUE(names.contains(name)) << name;
  for (const char* name : {"", "Ties", "ties ", "no_such_method"})
    EXPECT_EQ(FindMethod(name), nullptr) << name;
}

TEST(Methods, ParametersAreWellFormed) {
  for (const MethodInfo& method : Methods()) {
    std::set<std::string_view> names;
    for (size_t i = 0; i < method.parameters.size(); ++i) {
      const ParameterSpec& parameter = method.parameters[i];
      SCOPED_TRACE(std::string(method.name) + "." + std::string(parameter.name));
      EXPECT_FALSE(parameter.name.empty());
      EXPECT_FALSE(parameter.help.empty());
      EXPECT_TRUE(names.insert(parameter.name).second);
      EXPECT_EQ(method.IndexOf(parameter.name), static_cast<int>(i));
      EXPECT_EQ(method.Find(parameter.name), &parameter);
      EXPECT_TRUE(IsParameterOfAnotherMethod(parameter.name));
      EXPECT_EQ(parameter.kind == ParameterKind::kChoice, !parameter.choices.empty());
      const double value = parameter.default_value;
      if (value == kNoDefault) {
        EXPECT_EQ(parameter.kind, ParameterKind::kNumber);
      } else if (parameter.kind == ParameterKind::kNumber) {
        EXPECT_LE(parameter.min, value);
        EXPECT_LE(value, parameter.max);
      } else if (parameter.kind == ParameterKind::kFlag) {
        EXPECT_TRUE(value == 0 || value == 1);
      } else {
        EXPECT_GE(value, 0);
        EXPECT_LT(value, static_cast<double>(parameter.choices.size()));
        EXPECT_EQ(std::set(parameter.choices.begin(), parameter.choices.end()).size(),
                  parameter.choices.size());
      }
    }
    EXPECT_EQ(method.IndexOf("no_such_parameter"), -1);
    EXPECT_EQ(method.Find("no_such_parameter"), nullptr);
  }
}

TEST(Methods, DefaultsAreThoseOfTheTable) {
  const auto value = [](const char* method, const char* parameter) {
    const ParameterSpec* spec = FindMethod(method)->Find(parameter);
    return spec == nullptr ? -1.0 : spec->default_value;
  };
  EXPECT_EQ(value("ties", "density"), 1);
  EXPECT_EQ(value("ties", "normalize"), 1);
  EXPECT_EQ(value("ties", "rescale"), 0);
  EXPECT_EQ(value("ties", "lambda"), 1);
  EXPECT_EQ(value("ties", "elect_weighted"), 1);
  EXPECT_EQ(value("ties", "weight"), 1);
  EXPECT_EQ(value("task_arithmetic", "normalize"), 0);
  EXPECT_EQ(value("task_arithmetic", "density"), -1);  // it has none
  EXPECT_EQ(value("linear", "normalize"), 1);
  EXPECT_EQ(value("slerp", "t"), kNoDefault);
  EXPECT_EQ(value("slerp", "weight"), kNoDefault);
  EXPECT_EQ(value("nuslerp", "nuslerp_flatten"), 1);
  EXPECT_EQ(value("nuslerp", "nuslerp_row_wise"), 0);
  EXPECT_EQ(value("multislerp", "normalize_weights"), 1);
  EXPECT_EQ(value("multislerp", "eps"), 1e-8);
  EXPECT_EQ(value("karcher", "max_iter"), 10);
  EXPECT_EQ(value("karcher", "tol"), 1e-5);
  EXPECT_EQ(value("model_stock", "filter_wise"), 0);
  EXPECT_EQ(value("nearswap", "t"), kNoDefault);
  EXPECT_EQ(value("passthrough", "scale"), 1);
  for (const char* method : {"dare_linear", "dare_ties", "della", "della_linear"})
    EXPECT_EQ(value(method, "rescale"), 1) << method;
  for (const char* method : {"dare_linear", "dare_ties", "della_linear", "breadcrumbs", "breadcrumbs_ties"})
    EXPECT_EQ(value(method, "normalize"), 0) << method;
  EXPECT_EQ(value("della", "normalize"), 1);
  EXPECT_EQ(value("breadcrumbs", "rescale"), 0);
  EXPECT_EQ(value("breadcrumbs_ties", "gamma"), 0.01);
  EXPECT_EQ(value("della", "epsilon"), 0.15);
  EXPECT_EQ(value("dare_ties", "density"), 1);
  EXPECT_EQ(value("dare_ties", "seed"), 0);
  const MethodInfo& ties = *FindMethod("ties");
  const std::pair<const char*, std::pair<const char*, const char*>> choices[] = {
      {"scope", {"tensor", "model"}},
      {"ties_at_threshold", {"index", "keep"}},
      {"zero_sign", {"plus", "majority"}},
      {"elect", {"mass", "count"}}};
  for (const auto& [name, both] : choices) {
    const ParameterSpec* spec = ties.Find(name);
    ASSERT_NE(spec, nullptr) << name;
    EXPECT_EQ(spec->choices, (std::vector<std::string_view>{both.first, both.second})) << name;
    EXPECT_EQ(spec->default_value, 0) << name;
    EXPECT_EQ(spec->scope, ParameterScope::kRecipe) << name;
  }
  EXPECT_TRUE(FindMethod("average")->parameters.empty());
  EXPECT_EQ(FindMethod("linear")->base, BaseUse::kIsASource);
  EXPECT_EQ(ties.base, BaseUse::kRequired);
}

// So that layer_scale works over all of them.
TEST(Methods, WhatAddsToABaseHasALambda) {
  for (const MethodInfo& method : Methods()) {
    const bool adds = method.base == BaseUse::kRequired || method.base == BaseUse::kOptional;
    ASSERT_EQ(method.Find("lambda") != nullptr, adds) << method.name;
    if (adds) {
      EXPECT_EQ(method.Find("lambda")->default_value, 1) << method.name;
    }
  }
}

TEST(Methods, ParametersOfOthersAreKnown) {
  EXPECT_TRUE(IsParameterOfAnotherMethod("gamma"));
  EXPECT_TRUE(IsParameterOfAnotherMethod("density"));
  EXPECT_FALSE(IsParameterOfAnotherMethod("densty"));
  EXPECT_FALSE(IsParameterOfAnotherMethod(""));
}

}  // namespace
}  // namespace braid
