#include "pipeline/method_table.h"

#include <gtest/gtest.h>

namespace braid {
namespace {

TEST(MethodTable, EveryMethodIsDocumented) {
  for (const MethodInfo& method : Methods()) {
    SCOPED_TRACE(method.name);
    const Json json = MethodToJson(method);
    EXPECT_EQ(json["name"], std::string(method.name));
    for (const char* text : {"summary", "source", "base"}) EXPECT_FALSE(json[text].get<std::string>().empty()) << text;
    EXPECT_GE(json["least_models"], 1);
    EXPECT_GE(json["most_rounds"], json["rounds"]);
    EXPECT_GE(json["rounds"], 1);
    ASSERT_EQ(json["parameters"].size(), method.parameters.size());
    for (const Json& parameter : json["parameters"]) {
      EXPECT_FALSE(parameter["help"].get<std::string>().empty()) << parameter["name"];
      EXPECT_TRUE(parameter.contains(parameter["type"] == "choice" ? "choices" : "default"));
    }
  }
}

TEST(MethodTable, Ties) {
  const MethodInfo& ties = *FindMethod("ties");
  EXPECT_EQ(ModelCountText(ties), "1 or more");
  EXPECT_EQ(BaseUseName(ties.base), "required");
  EXPECT_EQ(CountRounds(ties).by_default, 1u) << "density 1 keeps all";
  EXPECT_GT(CountRounds(ties).most, 1u);
  const ParameterSpec& density = *ties.Find("density");
  EXPECT_EQ(RangeText(density), "0 to 1");
  EXPECT_EQ(DefaultText(density), "1");
  EXPECT_EQ(ScopeName(density.scope), "model");
  EXPECT_EQ(DefaultText(*ties.Find("normalize")), "true");
  EXPECT_EQ(RangeText(*ties.Find("weight")), "any number");
  EXPECT_EQ(RangeText(*ties.Find("scope")), "tensor, model");
  EXPECT_EQ(DefaultText(*ties.Find("scope")), "tensor");
  EXPECT_EQ(CountRounds(*FindMethod("linear")).most, 1u);
}

}  // namespace
}  // namespace braid
