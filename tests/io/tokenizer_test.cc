// Tokenizers: what is read from which files, hostile files, and files rewritten for another vocabulary.
#include "io/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "io/json.h"
#include "io/tokenizer_writer.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::TemporaryDirectory;

constexpr const char* kBpe = R"({"version": "1.0", "added_tokens": [
  {"id": 3, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false,
   "special": true},
  {"id": 1, "content": "b", "special": false}],
  "post_processor": {"type": "X", "vocab": {"no": "id"}, "content": "vocab", "id": -1},
  "model": {"type": "BPE", "dropout": null, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})";

std::string Described(const Tokenizer& tokenizer) {
  std::string out;
  for (const Token& token : tokenizer.tokens)
    out += fmt::format("{}:{}{} ", token.text, token.id, tokenizer.FindAdded(token.id) != nullptr ? "+" : "");
  return out;
}

std::string Read(const TemporaryDirectory& place) {
  const auto tokenizer = ReadTokenizer(place.path());
  return tokenizer ? tokenizer->model + " " + Described(*tokenizer) : "none";
}

TEST(Tokenizer, ReadsVocabularyAndAddedTokens) {
  TemporaryDirectory place;
  EXPECT_EQ(Read(place), "none");
  place.Write("tokenizer.json", kBpe);
  EXPECT_EQ(Read(place), "BPE a:0 b:1+ ab:2 <s>:3+ ");
  const Tokenizer tokenizer = *ReadTokenizer(place.path());
  EXPECT_TRUE(tokenizer.FindAdded(3)->lstrip);
  EXPECT_TRUE(tokenizer.FindAdded(3)->special);
  EXPECT_FALSE(tokenizer.FindAdded(1)->special);
  EXPECT_EQ(tokenizer.Ids(), 4u);
  EXPECT_EQ(tokenizer.tokens[*tokenizer.Find("ab")].id, 2u);
  EXPECT_FALSE(tokenizer.Find("abc"));
  EXPECT_FALSE(tokenizer.Find(""));
}

TEST(Tokenizer, TheConfigurationAddsWhatIsMissing) {
  TemporaryDirectory place;
  place.Write("tokenizer.json", kBpe);
  place.Write("tokenizer_config.json",
              R"({"pad_token": "<pad>", "bos_token": {"content": "<s>"}, "model_max_length": NaN,
    "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": null, "extra_special_tokens": ["<x>", "b"],
    "added_tokens_decoder": {"3": {"content": "<s>"}, "5": {"content": "<z>"}, "4": {"content": "<y>"},
                             "no": {"content": "<n>"}}})");
  EXPECT_EQ(Read(place), "BPE a:0 b:1+ ab:2 <s>:3+ <y>:4+ <z>:5+ </s>:6+ <pad>:7+ <x>:8+ ");
}

TEST(Tokenizer, ReadsListsOfPieces) {
  TemporaryDirectory place;
  place.Write("tokenizer.json",
              R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["x", -1.5], ["y", -2]]}})");
  EXPECT_EQ(Read(place), "Unigram <unk>:0 x:1 y:2 ");
  const Tokenizer tokenizer = *ReadTokenizer(place.path());
  EXPECT_TRUE(tokenizer.listed);
  EXPECT_EQ(tokenizer.tokens[1].score, -1.5);
}

TEST(Tokenizer, ReadsVocabularyAndMergesFiles) {
  TemporaryDirectory place;
  place.Write("vocab.json", R"({"b": 1, "a": 0})");
  place.Write("merges.txt", "#version\n");
  place.Write("added_tokens.json", R"({"<s>": 2})");
  EXPECT_EQ(Read(place), "BPE a:0 b:1 <s>:2+ ");
  EXPECT_EQ(ReadTokenizer(place.path())->format, Tokenizer::Format::kVocabAndMerges);
}

// Field `number` of a protobuf message.
std::string Field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

TEST(Tokenizer, ReadsSentencePieceModels) {
  TemporaryDirectory place;
  const std::string score = "\x15" + std::string("\0\0\xc0\xbf", 4), type = "\x18\x03";   // -1.5; 3
  const std::string model =
      Field(1, Field(1, "<s>") + type) + Field(2, "trainer") + Field(1, Field(1, "a") + score) + "\x18\x07";
  place.Write("tokenizer.model", model);
  place.Write("tokenizer_config.json", R"({"pad_token": "<pad>"})");
  EXPECT_EQ(Read(place), "SentencePiece <s>:0 a:1 <pad>:2+ ");
  EXPECT_EQ(ReadTokenizer(place.path())->tokens[1].score, -1.5);
  for (const std::string& bad :
       {std::string(), std::string("YWJj 0\nZGVm 1\n"), model.substr(0, model.size() - 1), Field(1, "\x0a\x09"),
        Field(1, Field(1, "a")) + "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", std::string("\x08\x01")}) {
    place.Write("tokenizer.model", bad);
    EXPECT_EQ(fixture::ErrorOf([&] { ReadTokenizer(place.path()); }).code(), ErrorCode::kBadInput);
  }
}

TEST(Tokenizer, SaysWhatToDoAboutOtherForms) {
  TemporaryDirectory place;
  place.Write("spiece.model", "x");
  const Error error = fixture::ErrorOf([&] { ReadTokenizer(place.path()); });
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_NE(error.hint().find("save_pretrained"), std::string::npos);
}

TEST(Tokenizer, RefusesHostileFiles) {
  const std::string cases[][2] = {
      {R"([1])", "not a JSON object"},
      {R"({"model": {"type": "BPE"}})", "no vocabulary"},
      {R"({"model": {"vocab": {"a": 1.5}}})", "whole number"},
      {R"({"model": {"vocab": {"a": -1}}})", "whole number"},
      {R"({"model": {"vocab": {"a": "1"}}})", "must be a number"},
      {R"({"model": {"vocab": {"a": null}}})", "must be a number"},
      {R"({"model": {"vocab": {"a": {"b": 1}}}})", "must be a number"},
      {R"({"model": {"vocab": {"a": 99999999999}}})", "no vocabulary has"},
      {R"({"model": {"vocab": {"a": 18446744073709551616}}})", "whole number"},
      {R"({"model": {"vocab": {"a": 1, "a": 2}}})", "the same text"},
      {R"({"model": {"vocab": {"a": 1, "b": 1}}})", "the same id"},
      {R"({"model": {"vocab": {"a": 1}, "vocab": {"b": 1}}})", "two vocabularies"},
      {R"({"model": {"vocab": [["a"]]}})", "piece and its score"},
      {R"({"model": {"vocab": [["a", 1, 2]]}})", "piece and its score"},
      {R"({"model": {"vocab": [[1, "a"]]}})", "piece and its score"},
      {R"({"model": {"vocab": ["a"]}})", "piece and its score"},
      {R"({"model": {"vocab": [["a", {}]]}})", "piece and its score"},
      {R"({"added_tokens": [{"id": 1}], "model": {"vocab": {}}})", "an id and a content"},
      {R"({"added_tokens": [{"content": "x"}], "model": {"vocab": {}}})", "an id and a content"},
      {R"({"added_tokens": [{"id": 1e3, "content": "x"}], "model": {"vocab": {}}})", "whole number"},
      {R"({"added_tokens": [7], "model": {"vocab": {}}})", ""},
      {R"({"added_tokens": [{"id": 0, "content": "x"}], "model": {"vocab": {"a": 0}}})", "the same id"},
      {R"({"model": {"vocab": {"a": 1})", "not valid JSON"},
  };
  for (const auto& [text, message] : cases) {
    SCOPED_TRACE(text);
    TemporaryDirectory place;
    place.Write("tokenizer.json", text);
    if (message.empty()) {
      EXPECT_EQ(Read(place), " ");   // passed over
      continue;
    }
    const Error error = fixture::ErrorOf([&] { ReadTokenizer(place.path()); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
  }
}

TEST(Tokenizer, RefusesALinkThatLeavesTheModel) {
  TemporaryDirectory outside, place;
  outside.Write("t.json", kBpe);
  place.Link(outside / "t.json", "tokenizer.json");
  EXPECT_EQ(fixture::ErrorOf([&] { ReadTokenizer(place.path()); }).code(), ErrorCode::kBadInput);
}

// --- rewriting --------------------------------------------------------------------------------------------

class RewrittenTokenizer : public testing::Test {
 protected:
  // kBpe's tokenizer without `lost`, with these.
  Json Rewritten(const std::string& lost, std::vector<Token> tokens, std::vector<AddedToken> added) {
    place_.Write("tokenizer.json", kBpe);
    const Tokenizer from = *ReadTokenizer(place_.path());
    for (const Token& token : from.tokens)
      if (token.text != lost) tokens.push_back(token);
    for (const AddedToken& token : from.added)
      if (token.content != lost) added.push_back(token);
    const std::string text = RewriteTokenizer(kBpe, "t", from, MakeTokenizer(std::move(tokens), std::move(added), "t"));
    return ParseJson(text, "t");
  }
  TemporaryDirectory place_;
};

TEST_F(RewrittenTokenizer, LeavesTheVocabularyWhenOnlyAddedTokensComeIn) {
  const Json json = Rewritten("", {{"<new>", 4}}, {{.content = "<new>", .id = 4, .special = true}});
  EXPECT_EQ(json["model"], ParseJson(kBpe, "t")["model"]);
  EXPECT_EQ(json["post_processor"], ParseJson(kBpe, "t")["post_processor"]);
  ASSERT_EQ(json["added_tokens"].size(), 3u);
  EXPECT_EQ(json["added_tokens"][2], ParseJson(R"({"id": 4, "content": "<new>", "single_word": false, "lstrip": false,
      "rstrip": false, "normalized": false, "special": true})", "t"));
}

TEST_F(RewrittenTokenizer, ListsEveryTokenWhenPlainTokensComeIn) {
  const Json json = Rewritten("", {{"c\"\n", 4}}, {});
  EXPECT_EQ(json["model"]["vocab"], ParseJson(R"({"a": 0, "b": 1, "ab": 2, "<s>": 3, "c\"\n": 4})", "t"));
  EXPECT_EQ(json["model"]["merges"].size(), 1u);
  EXPECT_EQ(json["added_tokens"].size(), 2u);
}

TEST_F(RewrittenTokenizer, MergesGoWithTheirTokens) {
  const Json json = Rewritten("ab", {}, {});
  EXPECT_EQ(json["model"]["vocab"], ParseJson(R"({"a": 0, "b": 1, "<s>": 3})", "t"));
  EXPECT_EQ(json["model"]["merges"], Json::array());
}

TEST_F(RewrittenTokenizer, AListOfPiecesCannotHaveGaps) {
  const std::string text = R"({"model": {"type": "Unigram", "vocab": [["x", -1.5]]}})";
  place_.Write("tokenizer.json", text);
  const Tokenizer from = *ReadTokenizer(place_.path());
  EXPECT_EQ(ParseJson(RewriteTokenizer(text, "t", from, MakeTokenizer({{"x", 0, -1.5}, {"y", 1, -2}}, {}, "t")),
                      "t")["model"]["vocab"],
            ParseJson(R"([["x", -1.5], ["y", -2.0]])", "t"));
  EXPECT_EQ(
      fixture::ErrorOf([&] { RewriteTokenizer(text, "t", from, MakeTokenizer({{"x", 0}, {"y", 2}}, {}, "t")); }).code(),
      ErrorCode::kIncompatible);
}

TEST_F(RewrittenTokenizer, ConfigurationsAndTemplates) {
  const Tokenizer tokenizer =
      MakeTokenizer({{"a", 0}, {"<s>", 1}}, {{.content = "<s>", .id = 1, .special = true}}, "t");
  const Json json =
      ParseJson(RewriteTokenizerConfig(R"({"x": 1, "added_tokens_decoder": {"7": {}}, "y": 2})", tokenizer), "t");
  EXPECT_EQ(json["added_tokens_decoder"].size(), 1u);
  EXPECT_EQ(json["added_tokens_decoder"]["1"]["content"], "<s>");
  EXPECT_EQ(json["y"], 2);
  EXPECT_EQ(RewriteTokenizerConfig(R"({"x": 1})", tokenizer), R"({"x": 1})");
  EXPECT_EQ(ParseJson(WithChatTemplate("", "{{ 'a\n' }}"), "t")["chat_template"], "{{ 'a\n' }}");
  EXPECT_EQ(ParseJson(WithChatTemplate(R"({"chat_template": [1], "x": 1})", "b"), "t"),
            ParseJson(R"({"chat_template": "b", "x": 1})", "t"));
}

TEST(ChatTemplates, AreFoundWhereverTheyAre) {
  TemporaryDirectory place;
  EXPECT_FALSE(FindChatTemplate(place.path()));
  place.Write("chat_template.json", R"({"chat_template": "of a processor"})");
  EXPECT_EQ(FindChatTemplate(place.path()), "of a processor");
  place.Write("tokenizer_config.json",
              R"({"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(FindChatTemplate(place.path()), "d");
  place.Write("tokenizer_config.json", R"({"chat_template": "plain"})");
  EXPECT_EQ(FindChatTemplate(place.path()), "plain");
  place.Write("chat_template.jinja", "jinja\n");
  EXPECT_EQ(FindChatTemplate(place.path()), "jinja\n");
}

}  // namespace
}  // namespace braid
