// Merges of models with different vocabularies: rows, tokenizer files and config.json against the rules of mergekit.md
// 2.6, worked out here once more, token by token, from the values that were written.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "io/json.h"
#include "io/tokenizer.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::StoredTensor;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kHeadBias = "lm_head.bias";

struct Model {
  std::string name;
  std::map<std::string, uint32_t> ids = {};
  std::set<std::string> added = {};
  uint64_t rows = 0;
  DType type = DType::kF32;
  std::vector<double> embedding = {}, head = {}, bias = {};   // as they are in the file

  std::vector<float> Row(const std::vector<double>& values, uint64_t row, size_t width) const {
    const auto begin = values.begin() + static_cast<ptrdiff_t>(row * width);
    return {begin, begin + static_cast<ptrdiff_t>(width)};
  }
  std::optional<uint32_t> IdOf(const std::string& token) const {
    const auto found = ids.find(token);
    if (found == ids.end() || found->second >= rows) return std::nullopt;
    return found->second;
  }
};

class Vocabularies : public testing::Test {
 protected:
  // A model whose weights fit its type exactly.
  Model Write(Model model) {
    const auto draw = [&](size_t n) {
      std::vector<double> values(n);
      for (double& value : values) value = static_cast<double>(static_cast<int>(random_.Below(255)) - 127) / 64;
      return values;
    };
    model.embedding = draw(model.rows * width_), model.head = draw(model.rows * width_), model.bias = draw(model.rows);
    fixture::WriteCheckpoint(
        place_, model.name,
        {fixture::Floats(kEmbedding, model.type, {model.rows, width_}, model.embedding),
         fixture::Floats("model.norm.weight", model.type, {width_}, draw(width_)),
         fixture::Floats(kHead, model.type, {model.rows, width_}, model.head),
         fixture::Floats(kHeadBias, model.type, {model.rows}, model.bias)},
        1,
        fmt::format(
            R"({{"model_type": "llama", "torch_dtype": "float32", "tie_word_embeddings": false, "vocab_size": {}}})",
            model.rows));
    Json vocabulary = Json::object(), added = Json::array();
    for (const auto& [token, id] : model.ids) {
      if (model.added.contains(token)) added.push_back({{"id", id}, {"content", token}, {"special", true}});
      else vocabulary[token] = id;
    }
    const Json tokenizer = {{"version", "1.0"}, {"added_tokens", added},
                            {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
    place_.Write(model.name + "/tokenizer.json", tokenizer.dump(1));
    return model;
  }

  // base: t0 t1 ... ; a: the same, permuted, one less, with tokens of its own; b: other tokens.
  void WriteThree(DType type_of_a = DType::kF32) {
    Model base{.name = "base", .rows = 40}, a{.name = "a", .rows = 42, .type = type_of_a}, b{.name = "b", .rows = 39};
    for (uint32_t i = 0; i < 38; ++i) base.ids[fmt::format("t{}", i)] = i;
    for (uint32_t i = 0; i < 37; ++i) a.ids[fmt::format("t{}", i)] = i < 10 ? 9 - i : i;   // lacks t37
    a.ids["<x>"] = 37, a.ids["<y>"] = 38, a.ids["<shared>"] = 39, a.added = {"<x>", "<shared>"};
    a.ids["beyond"] = 50;                                                                  // has no row
    for (uint32_t i = 0; i < 30; ++i) b.ids[fmt::format("t{}", i + 5)] = i;
    b.ids["<z>"] = 30, b.ids["<shared>"] = 31, b.ids["<y>"] = 38, b.added = {"<z>", "<shared>"};
    base_ = Write(std::move(base)), a_ = Write(std::move(a)), b_ = Write(std::move(b));
  }

  std::string Recipe(const std::string& method, const std::string& more, bool with_base = true) {
    std::string text =
        "merge_method: " + method + "\n" + (with_base ? "base_model: " + place_ / "base" + "\n" : "") + more;
    text += "dtype: float32\nparameters: {normalize: false}\nmodels:\n";
    for (const char* model : {"a", "b"}) text += "  - model: " + place_ / model + "\n    parameters: {weight: 1}\n";
    if (method == "linear" && with_base) text += "  - model: " + place_ / "base" + "\n    parameters: {weight: 1}\n";
    return place_.Write("recipe.yml", text);
  }

  // Runs it; the output's tokens.
  Tokenizer Run(const std::string& recipe, PlanOptions options = {}) {
    std::filesystem::remove_all(out_);
    const MergeReport report = fixture::Merge(recipe, out_, options);
    EXPECT_EQ(report.bytes_read, report.totals.bytes_read) << "what the plan foretold";
    warnings_ = report.warnings;
    config_ = ParseJson(fixture::FileText(out_ + "/config.json"), "config.json");
    return *ReadTokenizer(out_);
  }

  // A row of the output, the sum of the three models' rows, by the rules: `models` in the order of means, the base's
  // first choice if it is among them.
  std::vector<float> Expected(const std::string& token, std::vector<double> Model::* values, size_t width,
                              const std::vector<const Model*>& models, bool has_base = true) {
    std::vector<const Model*> present;
    for (const Model* model : models)
      if (model->IdOf(token)) present.push_back(model);
    std::vector<float> fill(width, 0.0f), sum(width, 0.0f);
    const auto row = [&](const Model* model) { return model->Row(model->*values, *model->IdOf(token), width); };
    const bool of_base = has_base && base_.IdOf(token);
    if (present.size() == 1 || of_base) {
      fill = row(present.size() == 1 ? present.front() : &base_);
    } else if (!present.empty()) {
      for (const Model* model : present)
        for (size_t i = 0; i < width; ++i) fill[i] += row(model)[i];
      for (float& value : fill) value /= static_cast<float>(present.size());
    }
    for (const Model* model : models)
      for (size_t i = 0; i < width; ++i) sum[i] += model->IdOf(token) ? row(model)[i] : fill[i];
    return sum;
  }

  // Every token's row in embedding, head and bias.
  void ExpectRows(const Tokenizer& tokenizer, const std::vector<const Model*>& models, bool has_base,
                  const std::set<std::string>& except = {}) {
    const auto tensors = fixture::ReadTensors(out_);
    const std::tuple<const char*, std::vector<double> Model::*, size_t> parts[] = {
        {kEmbedding, &Model::embedding, width_}, {kHead, &Model::head, width_}, {kHeadBias, &Model::bias, 1}};
    for (const auto& [name, values, width] : parts) {
      const auto found =
          std::find_if(tensors.begin(), tensors.end(), [&, n = name](const StoredTensor& t) { return t.name == n; });
      ASSERT_NE(found, tensors.end());
      const std::vector<float> lanes = fixture::LanesOf(*found);
      ASSERT_EQ(found->shape.front(), config_["vocab_size"]) << name;
      for (const Token& token : tokenizer.tokens) {
        if (except.contains(token.text)) continue;
        const auto begin = lanes.begin() + static_cast<ptrdiff_t>(token.id * width);
        EXPECT_EQ(std::vector<float>(begin, begin + static_cast<ptrdiff_t>(width)),
                  Expected(token.text, values, width, models, has_base))
            << name << " " << token.text;
      }
    }
  }

  std::vector<float> Lanes(const char* name) {
    for (const StoredTensor& tensor : fixture::ReadTensors(out_))
      if (tensor.name == name) return fixture::LanesOf(tensor);
    return {};
  }
  std::vector<float> OutputRow(uint64_t row) {
    const std::vector<float> lanes = Lanes(kEmbedding);
    const auto begin = lanes.begin() + static_cast<ptrdiff_t>(row * width_);
    return {begin, begin + static_cast<ptrdiff_t>(width_)};
  }

  Error Fails(const std::string& recipe) {
    std::filesystem::remove_all(out_);
    return fixture::ErrorOf([&] { fixture::Merge(recipe, out_); });
  }

  uint64_t width_ = 6;
  test::Random random_;
  fixture::TemporaryDirectory place_;
  std::string out_ = place_ / "out";
  Model base_, a_, b_;
  Json config_;
  std::vector<std::string> warnings_;
};

TEST_F(Vocabularies, DifferentSizesWithoutAPolicyAreAnErrorThatSaysWhatToDo) {
  WriteThree();
  const Error error = Fails(Recipe("linear", ""));
  EXPECT_EQ(error.code(), ErrorCode::kIncompatible);
  EXPECT_NE(error.hint().find("tokenizer_source"), std::string::npos);
}

TEST_F(Vocabularies, OfTheBase) {
  WriteThree();
  const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer_source: base\n"));
  EXPECT_EQ(tokenizer.Ids(), 38u);
  EXPECT_EQ(config_["vocab_size"], 38);
  ExpectRows(tokenizer, {&a_, &b_, &base_}, true);
  EXPECT_EQ(fixture::FileText(out_ + "/tokenizer.json"), fixture::FileText(place_ / "base/tokenizer.json"));
}

TEST_F(Vocabularies, OfOneModel) {
  WriteThree();
  const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer_source: " + place_ / "a" + "\n"));
  EXPECT_EQ(tokenizer.Ids(), 40u) << "the token without a row is left out";
  EXPECT_FALSE(tokenizer.Find("beyond"));
  ExpectRows(tokenizer, {&a_, &b_, &base_}, true);
}

TEST_F(Vocabularies, United) {
  WriteThree(DType::kBF16);
  for (const bool with_base : {true, false}) {
    const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer: {source: union}\n", with_base));
    std::string order;
    for (const Token& token : tokenizer.tokens)
      if (token.text[0] == '<') order += token.text + (tokenizer.FindAdded(token.id) != nullptr ? "+" : "");
    if (with_base) {
      EXPECT_EQ(order, "<y><x>+<shared>+<z>+");
    }
    EXPECT_EQ(tokenizer.Ids(), with_base ? 42u : 41u);
    ExpectRows(tokenizer, with_base ? std::vector<const Model*>{&a_, &b_, &base_} : std::vector<const Model*>{&a_, &b_},
               with_base);
  }
}

// <shared> is in a and b, not in the base: a task vector of either model is its own row minus their mean.
TEST_F(Vocabularies, TaskVectorsStartFromAlignedRows) {
  WriteThree();
  const Tokenizer tokenizer = Run(Recipe("task_arithmetic", "tokenizer: {source: union}\n"));
  const auto id = tokenizer.tokens[*tokenizer.Find("<shared>")].id;
  const std::vector<float> a = a_.Row(a_.embedding, 39, width_), b = b_.Row(b_.embedding, 31, width_),
                           row = OutputRow(id);
  for (size_t i = 0; i < width_; ++i) {
    const float base = (a[i] + b[i]) / 2;
    EXPECT_EQ(row[i], base + ((a[i] - base) + (b[i] - base)));
  }
}

TEST_F(Vocabularies, PaddingAndGapsAreTheMeanOfAllRows) {
  WriteThree();
  base_.ids["late"] = 39;   // nothing has the id 38
  base_ = Write(base_);
  const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer: {source: base, pad_to_multiple_of: 16}\n", true));
  EXPECT_EQ(tokenizer.Ids(), 40u);
  EXPECT_EQ(config_["vocab_size"], 48);
  ExpectRows(tokenizer, {&a_, &b_, &base_}, true);
  std::vector<double> mean(width_, 0.0);
  for (const Token& token : tokenizer.tokens) {
    const std::vector<float> row = OutputRow(token.id);
    for (size_t i = 0; i < width_; ++i)
      mean[i] += static_cast<double>(row[i]) / static_cast<double>(tokenizer.tokens.size());
  }
  for (const uint64_t row : {38, 40, 47})
    for (size_t i = 0; i < width_; ++i) EXPECT_NEAR(OutputRow(row)[i], mean[i], 1e-5) << row;
}

TEST_F(Vocabularies, TokensWithRulesOfTheirOwn) {
  WriteThree();
  const std::string rules = "tokenizer:\n  source: union\n  tokens:\n"
      "    <shared>: {source: " + place_ / "a" + "}\n"
      "    t1: {source: {kind: zero}, force: true}\n"
      "    t2: {source: {kind: model_token, model: " + place_ / "b" + ", token: t20}, force: true}\n"
      "    t37: {source: {kind: zero}}\n"
      "    <new>: {source: {kind: model_token, model: " + place_ / "base" + ", token_id: 3}}\n";
  const Tokenizer tokenizer = Run(Recipe("linear", rules));
  ExpectRows(tokenizer, {&a_, &b_, &base_}, true, {"<shared>", "t1", "t2", "t37", "<new>"});
  const auto row = [&](const char* token) { return OutputRow(tokenizer.tokens[*tokenizer.Find(token)].id); };
  const auto times = [&](float factor, std::vector<float> values) {
    for (float& value : values) value *= factor;
    return values;
  };
  EXPECT_EQ(row("t1"), std::vector<float>(width_, 0.0f));
  EXPECT_EQ(row("t2"), times(3, b_.Row(b_.embedding, 15, width_)));
  EXPECT_EQ(row("t37"), base_.Row(base_.embedding, 37, width_)) << "zero where a model has no row of its own";
  EXPECT_EQ(row("<new>"), times(3, base_.Row(base_.embedding, 3, width_)));
  const std::vector<float> a = a_.Row(a_.embedding, 39, width_), b = b_.Row(b_.embedding, 31, width_);
  for (size_t i = 0; i < width_; ++i) EXPECT_EQ(row("<shared>")[i], (a[i] + b[i]) + a[i]);
}

TEST_F(Vocabularies, RulesThatCannotBeFollowed) {
  WriteThree();
  const auto fails = [&](const std::string& rule) {
    return std::string(Fails(Recipe("linear", "tokenizer: {tokens: {t1: " + rule + "}}\n")).what());
  };
  EXPECT_NE(fails("{source: {kind: model_token, model: " + place_ / "b" + ", token: nope}, force: true}")
                .find("no token 'nope'"),
            std::string::npos);
  EXPECT_NE(
      fails("{source: {kind: model_token, model: " + place_ / "b" + ", token_id: 39}, force: true}").find("39 rows"),
      std::string::npos);
  EXPECT_NE(fails("{source: " + place_ / "b" + "}").find("no token 't1'"), std::string::npos);
  EXPECT_NE(fails("{source: elsewhere}").find("none of the models"), std::string::npos);
}

// The bytes do not depend on tiles, threads, memory or the way of reading, nor on statistics of an earlier merge.
TEST_F(Vocabularies, TheSameBytesHoweverTheyAreRead) {
  width_ = 4100;   // tiles begin inside rows
  WriteThree(DType::kBF16);
  const std::string recipe =
      place_.Write("r.toml", "method = 'ties'\nbase = '" + place_ / "base" +
                                 "'\nparameters.density = 0.3\n[tokenizer]\nsource = 'union'\npad_to_multiple_of = 64\n"
                                 "[[models]]\npath = '" +
                                 place_ / "a" + "'\n[[models]]\npath = '" + place_ / "b" + "'\n");
  Run(recipe, {.memory = fixture::kGiB, .threads = 1});
  const auto expected = fixture::FilesOf(out_);
  const std::string cache = place_ / "cache";
  const PlanOptions ways[] = {
      {.memory = fixture::kGiB, .threads = 4, .tile_elements = 65'536},
      {.memory = fixture::kGiB, .threads = 2, .read = ReadMode::kDirect},
      {.memory = 24 * fixture::kMiB, .threads = 2},
      {.memory = fixture::kGiB, .threads = 2, .cache = cache},
      {.memory = fixture::kGiB, .threads = 2, .cache = cache},
      {.memory = fixture::kGiB, .threads = 3, .tile_elements = 131'072, .least_sampled = 1, .least_spread_sample = 1}};
  for (const PlanOptions& way : ways) {
    SCOPED_TRACE(&way - ways);
    Run(recipe, way);
    fixture::ExpectSameFiles(expected, fixture::FilesOf(out_));
  }
}

TEST_F(Vocabularies, AlikeInEveryModelChangeNothing) {
  Model base{.name = "base", .rows = 12}, a{.name = "a", .rows = 12}, b{.name = "b", .rows = 12};
  for (uint32_t i = 0; i < 12; ++i) base.ids[fmt::format("t{}", i)] = i;
  a.ids = b.ids = base.ids;
  Write(base), Write(a), Write(b);
  const Plan without = fixture::PlanOf(Recipe("linear", ""));
  const Plan with = fixture::PlanOf(Recipe("linear", "tokenizer_source: union\n"));
  EXPECT_EQ(PlanFingerprint(with), PlanFingerprint(without));
  for (const PlannedTensor& tensor : with.tensors) EXPECT_TRUE(tensor.rows.empty()) << tensor.name;
  a.ids.erase("t3"), a.ids["other"] = 3;
  Write(a);
  EXPECT_NE(PlanFingerprint(fixture::PlanOf(Recipe("linear", "tokenizer_source: base\n"))), PlanFingerprint(without));
}

// The mean that padding needs takes a reading of its own.
TEST_F(Vocabularies, ReadingForPaddingIsCounted) {
  Model base{.name = "base", .rows = 12}, a{.name = "a", .rows = 12}, b{.name = "b", .rows = 12};
  for (uint32_t i = 0; i < 12; ++i) base.ids[fmt::format("t{}", i)] = i;
  a.ids = b.ids = base.ids;
  Write(base), Write(a), Write(b);
  const uint64_t embedding_head_and_bias = 3 * 12 * (width_ + width_ + 1) * sizeof(float);
  for (const char* method : {"linear", "ties"}) {
    const uint64_t without = fixture::PlanOf(Recipe(method, "tokenizer_source: union\n")).totals.bytes_read;
    const std::string padded = Recipe(method, "tokenizer: {source: union, pad_to_multiple_of: 16}\n");
    EXPECT_EQ(fixture::PlanOf(padded).totals.bytes_read, without + embedding_head_and_bias) << method;
    Run(padded);
  }
}

TEST_F(Vocabularies, TiedEmbeddingsStayTied) {
  const std::string config =
      R"({"model_type": "llama", "torch_dtype": "float32", "tie_word_embeddings": true, "vocab_size": 3})";
  for (const char* name : {"base", "a", "b"}) {
    Write({.name = name, .ids = {{"x", 0}, {"y", 1}, {name, 2}}, .rows = 3});
    std::filesystem::remove_all(place_ / std::string(name) + "/model.safetensors");
    place_.Write(std::string(name) + "/model.safetensors",
                 fixture::FileOf({fixture::Floats(kEmbedding, DType::kF32, {3, 1}, {1, 2, 3})}));
    place_.Write(std::string(name) + "/config.json", config);
  }
  const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer_source: union\n"));
  EXPECT_EQ(tokenizer.Ids(), 5u);
  EXPECT_EQ(config_["vocab_size"], 5);
  EXPECT_EQ(config_["tie_word_embeddings"], true);
  EXPECT_EQ(Lanes(kEmbedding), (std::vector<float>{3, 6, 9, 9, 9}));
  EXPECT_TRUE(Lanes(kHead).empty());
}

TEST_F(Vocabularies, AModelWithoutATokenizerIsTakenToHaveTheBases) {
  WriteThree();
  std::filesystem::remove(place_ / "a/tokenizer.json");
  a_.ids = base_.ids;
  const Tokenizer tokenizer = Run(Recipe("linear", "tokenizer_source: union\n"));
  ExpectRows(tokenizer, {&a_, &b_, &base_}, true);
  EXPECT_TRUE(std::any_of(warnings_.begin(), warnings_.end(),
                          [](const std::string& w) { return w.find("has no tokenizer") != std::string::npos; }));
  std::filesystem::remove(place_ / "base/tokenizer.json");
  EXPECT_EQ(Fails(Recipe("linear", "tokenizer_source: union\n")).code(), ErrorCode::kIncompatible);
}

TEST_F(Vocabularies, TokenizerFilesOfTheOutput) {
  WriteThree();
  place_.Write("base/vocab.json", "{}");
  place_.Write("base/generation_config.json", "{}");
  place_.Write("base/tokenizer_config.json", R"({"x": 1, "chat_template": "the base's template {{ x }}"})");
  place_.Write("a/chat_template.jinja", " most {{ common }}\n");
  place_.Write("b/tokenizer_config.json", R"({"chat_template": "most {{ common }}"})");
  Run(Recipe("linear", "tokenizer_source: union\nchat_template: auto\n"));
  EXPECT_FALSE(std::filesystem::exists(out_ + "/vocab.json")) << "a form that does not know the new ids";
  EXPECT_TRUE(std::filesystem::exists(out_ + "/generation_config.json"));
  EXPECT_EQ(fixture::FileText(out_ + "/chat_template.jinja"), "most {{ common }}");
  const Json config = ParseJson(fixture::FileText(out_ + "/tokenizer_config.json"), "c");
  EXPECT_EQ(config["chat_template"], "most {{ common }}");
  EXPECT_EQ(config["x"], 1);
  // Of another model: its tokenizer files, the base's other files.
  place_.Write("a/tokenizer_config.json", R"({"of": "a"})");
  place_.Write("a/generation_config.json", R"({"of": "a"})");
  Run(Recipe("linear", "tokenizer_source: " + place_ / "a" + "\n"));
  EXPECT_EQ(fixture::FileText(out_ + "/tokenizer_config.json"), R"({"of": "a"})");
  EXPECT_EQ(fixture::FileText(out_ + "/generation_config.json"), "{}");
  EXPECT_FALSE(std::filesystem::exists(out_ + "/vocab.json"));
}

TEST_F(Vocabularies, AChatTemplateNeedsNoTokenizerKey) {
  Model base{.name = "base", .ids = {{"x", 0}}, .rows = 1};
  for (const char* name : {"base", "a", "b"}) Write((base.name = name, base));
  Run(Recipe("linear", "chat_template: \"{{ messages[0]['content'] }}\"\n"));
  EXPECT_EQ(fixture::FileText(out_ + "/chat_template.jinja"), "{{ messages[0]['content'] }}");
  EXPECT_TRUE(std::filesystem::exists(out_ + "/tokenizer.json"));
}

}  // namespace
}  // namespace braid
