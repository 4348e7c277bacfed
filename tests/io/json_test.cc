#include "io/json.h"

#include <gtest/gtest.h>

#include "io/error.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::ErrorOf;

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(ParseJson, KeepsTheOrderOfKeys) {
  EXPECT_EQ(ParseJson(R"({"b":1,"a":{"d":[1,2.5,-3,"x",null,true],"c":{}}})", "f").dump(),
            R"({"b":1,"a":{"d":[1,2.5,-3,"x",null,true],"c":{}}})");
}

TEST(ParseJson, RejectsDuplicateKeysAtEveryLevel) {
  for (const char* text : {R"({"a":1,"a":2})", R"({"x":{"a":1,"b":2,"a":3}})", R"([[{"a":1,"\u0061":2}]])"}) {
    Error error = ErrorOf([&] { ParseJson(text, "f.json"); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << text;
    EXPECT_NE(error.message().find("'a' occurs twice"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(ParseJson(R"({"a":{"a":{"a":1}},"b":{"a":2}})", "f"));
}

TEST(ParseJson, CapsTheDepth) {
  EXPECT_NO_THROW(ParseJson(Nested(64), "f"));
  EXPECT_EQ(ErrorOf([] { ParseJson(Nested(65), "f"); }).code(), ErrorCode::kBadInput);
  EXPECT_EQ(ErrorOf([] { ParseJson(std::string(5'000'000, '['), "f"); }).code(), ErrorCode::kBadInput);
}

TEST(ParseJson, RejectsWhatIsNotJson) {
  using namespace std::string_literals;
  const std::string cases[] = {"",
                               " ",
                               "{",
                               "{\"a\":1",
                               "{\"a\":1}}",
                               "{\"a\":1,}",
                               "{a:1}",
                               "[1 2]",
                               "nul",
                               "\"a\nb\"",
                               "{}\0"s,
                               "{\"a\":1}\0{}"s,
                               "\"\\ud800\"",
                               "\"\xff\"",
                               "\"\xc0\xaf\"",
                               "\xef\xbb\xbf{}",
                               "01",
                               "+1",
                               "1e999",
                               "// no\n{}",
                               "NaN",
                               "[Infinity]",
                               "{}x"};
  for (const std::string& text : cases)
    EXPECT_EQ(ErrorOf([&] { ParseJson(text, "f"); }).code(), ErrorCode::kBadInput) << text;
}

TEST(ParseJson, SaysWhere) {
  EXPECT_EQ(
      std::string(ErrorOf([] { ParseJson("{\"a\": x}", "f.json"); }).what()).rfind("f.json: at byte 6: ", 0),
      0u);
  EXPECT_EQ(
      std::string(ErrorOf([] { ParseJson("{\"a\":", "f.json"); }).what()).rfind("f.json: at byte 5: ", 0),
      0u);
  // NaN is one byte shorter than the null that it is read as.
  Error error = ErrorOf([] { ParseJson("[NaN, NaN, x]", "f.json", {.python_literals = true}); });
  EXPECT_EQ(std::string(error.what()).rfind("f.json: at byte 11: ", 0), 0u) << error.what();
}

TEST(ParseJson, DoesNotRepeatTheInputInItsMessage) {
  Error error = ErrorOf([] { ParseJson("\"" + std::string(1'000'000, 'a'), "f"); });
  EXPECT_LT(error.message().size(), 200u);
}

TEST(ParseJson, ReadsPythonLiteralsAsNullWhenAsked) {
  Json json = ParseJson(R"({"a":NaN,"b":[Infinity,-Infinity],"c":"NaN \" Infinity","d":"\\"})", "f",
                        {.python_literals = true});
  EXPECT_EQ(json.dump(), R"({"a":null,"b":[null,null],"c":"NaN \" Infinity","d":"\\"})");
  for (const char* text : {"[-NaN]", "[NaNs]", "[1NaN]", "[NaN NaN]", "[+Infinity]"})
    EXPECT_EQ(ErrorOf([&] { ParseJson(text, "f", {.python_literals = true}); }).code(), ErrorCode::kBadInput)
        << text;
}

TEST(ParseJson, IsNotQuadraticInTheNumberOfKeys) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) text += "\"key" + std::to_string(i) + "\":0,";
  text.back() = '}';
  EXPECT_EQ(ParseJson(text, "f").size(), 300'000u);  // 4.5e10 comparisons if it were: the test would time out
}

TEST(AsSize, TakesOnlyIntegersWrittenAsSuch) {
  auto size = [](const char* text) { return AsSize(ParseJson(text, "f")); };
  EXPECT_EQ(size("0"), 0u);
  for (uint64_t value : {uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 53, (uint64_t{1} << 63) - 1})
    EXPECT_EQ(size(std::to_string(value).c_str()), value);
  for (const char* text : {"-1", "-0", "2.0", "1e3", "9223372036854775808", "18446744073709551615",
                           "18446744073709551616", "\"1\"", "null", "true", "[]"})
    EXPECT_EQ(size(text), std::nullopt) << text;
}

struct Edit {
  const char* text;
  const char* expected;
};

TEST(ReplaceTopLevelValue, KeepsEveryOtherByte) {
  const Edit cases[] = {
      {R"({"k":1})", R"({"k":"new"})"},
      {R"({ "a" : {"k":[1,{"k":2}]} , "k" :  null , "b":3})",
       R"({ "a" : {"k":[1,{"k":2}]} , "k" :  "new" , "b":3})"},
      {R"({"a":"\"k\":1","k":[1,"]}\"",{}],"b":-Infinity})", R"({"a":"\"k\":1","k":"new","b":-Infinity})"},
      {R"({"\u006b":NaN})", R"({"\u006b":"new"})"},
      {R"({"a":"\\","k":"x\\\"y"})", R"({"a":"\\","k":"new"})"},
      {"{\r\n\t\"a\": Infinity,\r\n\t\"k\": 1e-05\r\n}\r\n",
       "{\r\n\t\"a\": Infinity,\r\n\t\"k\": \"new\"\r\n}\r\n"},
      {"{}", R"({"k": "new"})"},
      {"{\n}\n", "{\"k\": \"new\"}\n"},
      {"{\n  \"a\": 1,\n  \"b\": {\"k\": 2}\n}\n",
       "{\n  \"a\": 1,\n  \"b\": {\"k\": 2},\n  \"k\": \"new\"\n}\n"},
      {R"({"a":1})", R"({"a":1,"k": "new"})"},
  };
  for (const Edit& edit : cases) EXPECT_EQ(ReplaceTopLevelValue(edit.text, "k", "\"new\""), edit.expected);
}

TEST(RemoveTopLevelKey, KeepsEveryOtherByte) {
  const Edit cases[] = {
      {R"({"k":1})", "{}"},
      {"{\n  \"k\": {\"k\": \"}\"}\n}\n", "{}\n"},
      {"{\n  \"k\": [1, 2],\n  \"a\": 1\n}", "{\n  \"a\": 1\n}"},
      {"{\n  \"a\": 1,\n  \"k\": \"x\",\n  \"b\": NaN\n}", "{\n  \"a\": 1,\n  \"b\": NaN\n}"},
      {"{\n  \"a\": 1,\n  \"k\": \"x\"\n}", "{\n  \"a\": 1\n}"},
      {R"({"a":{"k":1}})", R"({"a":{"k":1}})"},
      {"{}", "{}"},
  };
  for (const Edit& edit : cases) EXPECT_EQ(RemoveTopLevelKey(edit.text, "k"), edit.expected);
}

TEST(TopLevelValue, GivesTheTextAsItStands) {
  EXPECT_EQ(TopLevelValue(R"({"a": {"k":1}, "k": { "x" : -Infinity } })", "k"), R"({ "x" : -Infinity })");
  EXPECT_EQ(TopLevelValue(R"({"a": {"k":1}})", "k"), std::nullopt);
}

TEST(JsonString, IsReadBackAsItWas) {
  EXPECT_EQ(JsonString("model.layers.0.mlp"), R"("model.layers.0.mlp")");
  EXPECT_EQ(JsonString("a\"b\\c\n\x01"), R"("a\"b\\c\n\u0001")");
  for (std::string text : {"", "\"", "\\", "\x7f", "zw\xC3\xB6lf", "\xF0\x9F\xA7\xB6", "{}", "a/b", "\t \x1f~"})
    EXPECT_EQ(ParseJson(JsonString(text), "text").get<std::string>(), text);
}

}  // namespace
}  // namespace braid
