// Slices and modules where statistics are of whole models, and with a statistics cache: the same as the plain recipe
// that says the same.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using fixture::Floats;
using fixture::StoredTensor;

constexpr size_t kLayers = 4;

class WholeModelSlicesTest : public testing::Test {
 protected:
  WholeModelSlicesTest() {
    base_ = Tensors({});
    fixture::WriteCheckpoint(place_, "base", base_, 2, kConfig);
    for (const char* name : {"a", "b"}) {
      tuned_[name] = Tensors(base_);
      fixture::WriteCheckpoint(place_, name, tuned_[name], 1, kConfig);
    }
    for (const char* name : {"base", "a", "b"}) Age(name);
  }

  // Multiples of 1/64 on top of others: many entries are equal, so that quotas are handed out.
  std::vector<StoredTensor> Tensors(const std::vector<StoredTensor>& onto) {
    std::vector<StoredTensor> tensors;
    const auto add = [&](const std::string& name, uint64_t n) {
      std::vector<double> values(n);
      for (double& value : values) value = (static_cast<double>(random_.Below(65)) - 32) / 64;
      if (!onto.empty()) {
        const std::vector<float> lanes = fixture::LanesOf(onto[tensors.size()]);
        for (size_t i = 0; i < n; ++i) values[i] += lanes[i];
      }
      tensors.push_back(Floats(name, DType::kF32, {n}, values));
    };
    add("model.embed_tokens.weight", 70'001);
    for (size_t i = 0; i < kLayers; ++i) add(fmt::format("model.layers.{}.w", i), 300 + 66'000 * (i % 2));
    add("model.norm.weight", 77);
    add("lm_head.weight", 1000);
    return tensors;
  }
  // Files of this very moment are not trusted by the cache.
  void Age(const std::string& name) const {
    for (const auto& entry : fs::recursive_directory_iterator(place_ / name))
      fs::last_write_time(entry, fs::file_time_type::clock::now() - std::chrono::hours(1));
  }

  std::string Recipe(const std::string& head, const std::string& sources, const std::string& parameters) const {
    return place_.Write("recipe.toml",
                        head + "base = '" + place_ / "base" + "'\n[parameters]\n" + parameters + "\n" + sources);
  }
  std::string Model(const std::string& name, const std::string& more = "") const {
    return "[[models]]\npath = '" + place_ / name + "'\n" + more;
  }
  // The base and these, over a range of layers.
  std::string Slice(size_t begin, size_t end, const std::vector<std::string>& names,
                    const std::string& more = "") const {
    std::string text = "[[slices]]\n";
    for (const std::string& name : names)
      text += fmt::format("[[slices.sources]]\npath = '{}'\nlayer_range = [{}, {}]\n{}", place_ / name, begin, end,
                          name == "base" ? "" : more);
    return text;
  }
  std::string Module(const std::string& name) const {
    return fmt::format(
        "[modules.{}]\n[[modules.{}.models]]\npath = '{}'\n[[modules.{}.models]]\npath = '{}'\nweight = 0.5\n", name,
        name, place_ / "a", name, place_ / "b");
  }

  struct Outcome {
    std::vector<StoredTensor> tensors;
    MergeReport report;
  };
  Outcome Merge(const std::string& recipe, PlanOptions options = {}) const {
    fs::remove_all(place_ / "out");
    Outcome outcome;
    const uint64_t planned = fixture::PlanOf(recipe, options).totals.bytes_read;   // before the cache knows more
    outcome.report = fixture::Merge(recipe, place_ / "out", options);
    outcome.tensors = fixture::ReadTensors(place_ / "out");
    EXPECT_GE(outcome.report.bytes_read, planned) << "or more, where a sample misleads";
    return outcome;
  }

  static constexpr const char* kConfig =
      R"({"model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": false})";
  test::Random random_;
  fixture::TemporaryDirectory place_;
  std::vector<StoredTensor> base_;
  std::map<std::string, std::vector<StoredTensor>> tuned_;
};

const std::pair<const char*, const char*> kMethods[] = {
    {"ties", "density = 0.3\nscope = 'model'"},
    {"ties", "density = 0.3\nscope = 'model'\nrescale = true"},
    {"ties", "density = 0.3\nscope = 'model'\nties_at_threshold = 'keep'\nzero_sign = 'majority'"},
    {"pcb", ""},
    {"metagpt", ""}};

TEST_F(WholeModelSlicesTest, TheSameAsWithoutWhenTheyChangeNothing) {
  const std::string plain = Model("a") + Model("b", "weight = 0.5\n");
  const auto weighted = [](std::string text) { return text + "weight = 0.5\n"; };   // of b, the last source
  const std::vector<std::pair<std::string, std::string>> forms = {
      {"one slice", weighted(Slice(0, 4, {"base", "a", "b"}))},
      {"two slices", weighted(Slice(0, 1, {"base", "a", "b"})) + weighted(Slice(1, 4, {"a", "base", "b"}))},
      {"modules", Module("layers") + Module("default")}};
  for (const auto& [method, parameters] : kMethods) {
    const std::string head = fmt::format("method = '{}'\n", method);
    const bool takes_weights = FindMethod(method)->Find("weight") != nullptr;
    const auto recipe = [&](std::string sources) {
      for (size_t at; !takes_weights && (at = sources.find("weight = 0.5\n")) != std::string::npos;)
        sources.erase(at, 13);
      return Recipe(head, sources, parameters);
    };
    const Outcome expected = Merge(recipe(plain));
    for (const auto& [form, sources] : forms) {
      SCOPED_TRACE(testing::Message() << method << " " << parameters << ", " << form);
      fs::remove_all(place_ / "cache");
      for (const PlanOptions& options : {PlanOptions{}, PlanOptions{.memory = 5 << 20, .threads = 2},
                                         PlanOptions{.threads = 2, .cache = place_ / "cache"},
                                         PlanOptions{.threads = 1, .cache = place_ / "cache"}}) {
        const Outcome outcome = Merge(recipe(sources), options);
        EXPECT_EQ(outcome.tensors, expected.tensors);
        EXPECT_EQ(outcome.report.result.kept, expected.report.result.kept);
        EXPECT_EQ(outcome.report.result.entries, expected.report.result.entries);
      }
    }
  }
}

// What one form has found out, the other knows.
TEST_F(WholeModelSlicesTest, SharesItsCacheWithThePlainRecipe) {
  const std::string plain = Model("a") + Model("b"), sliced = Slice(0, 4, {"base", "a", "b"});
  for (const char* scope : {"scope = 'model'", "scope = 'tensor'"}) {
    SCOPED_TRACE(scope);
    const std::string parameters = fmt::format("density = 0.3\n{}", scope);
    for (const auto& [first, second] : {std::pair(plain, sliced), std::pair(sliced, plain)}) {
      fs::remove_all(place_ / "cache");
      const PlanOptions cached{.memory = 4 << 20, .threads = 1, .cache = place_ / "cache"};
      const Outcome unknown = Merge(Recipe("method = 'ties'\n", first, parameters), cached);
      const Outcome known = Merge(Recipe("method = 'ties'\n", second, parameters), cached);
      EXPECT_EQ(known.tensors, unknown.tensors);
      EXPECT_LT(known.report.bytes_read, unknown.report.bytes_read);
    }
  }
}

// A slice that lacks a model merges as if the model lacked those tensors.
TEST_F(WholeModelSlicesTest, AModelThatASliceDoesNotHaveLacksItsTensors) {
  const auto write_part = [&](const std::string& of, const std::string& name,
                              const std::function<bool(const std::string&)>& has) {
    std::vector<StoredTensor> part;
    for (const StoredTensor& tensor : tuned_[of])
      if (has(tensor.name)) part.push_back(tensor);
    fixture::WriteCheckpoint(place_, name, part, 1, kConfig);
  };
  const auto in_first = [](const std::string& name) {
    return name == "model.embed_tokens.weight" || name == "model.layers.0.w" || name == "model.layers.1.w";
  };
  write_part("a", "part_of_a", in_first);
  write_part("b", "part_of_b", [&](const std::string& name) { return !in_first(name); });
  for (const auto& [method, parameters] : kMethods) {
    SCOPED_TRACE(testing::Message() << method << " " << parameters);
    const std::string head = fmt::format("method = '{}'\n", method);
    const Outcome plain =
        Merge(Recipe(head + "on_missing = 'skip'\n", Model("part_of_a") + Model("part_of_b"), parameters));
    const std::string sliced = Slice(0, 2, {"base", "a"}) + Slice(2, 4, {"base", "b"});
    fs::remove_all(place_ / "cache");
    for (const PlanOptions& options :
         {PlanOptions{}, PlanOptions{.memory = 5 << 20, .threads = 2, .cache = place_ / "cache"},
          PlanOptions{.cache = place_ / "cache"}})
      EXPECT_EQ(Merge(Recipe(head, sliced, parameters), options).tensors, plain.tensors);
  }
}

// Slices that put layers where they were not, twice and from others: with a cache as without.
TEST_F(WholeModelSlicesTest, StackedLayersWithACache) {
  const std::string sliced = Slice(0, 3, {"base", "a"}) + Slice(1, 4, {"base", "b", "a"}) + Slice(1, 2, {"base", "a"});
  for (const char* parameters : {"density = 0.3\nscope = 'model'", "density = 0.3", "density = 0.3\nrescale = true"}) {
    SCOPED_TRACE(parameters);
    fs::remove_all(place_ / "cache");
    const std::string recipe = Recipe("method = 'ties'\n", sliced, parameters);
    const Outcome plain = Merge(recipe, {.memory = 4 << 20, .threads = 1});
    const PlanOptions cached{.memory = 4 << 20, .threads = 1, .cache = place_ / "cache"};
    EXPECT_EQ(Merge(recipe, cached).tensors, plain.tensors);
    const Outcome known = Merge(recipe, cached);
    EXPECT_EQ(known.tensors, plain.tensors);
    EXPECT_LT(known.report.bytes_read, plain.report.bytes_read);
  }
}

TEST_F(WholeModelSlicesTest, ADensityIsOneNumberPerModel) {
  const auto error = [&](const std::string& sources, const std::string& parameters = "scope = 'model'") {
    return fixture::ErrorOf([&] { fixture::PlanOf(Recipe("method = 'ties'\n", sources, parameters)); });
  };
  const std::string other =
      Slice(0, 2, {"base", "a"}, "density = 0.5\n") + Slice(2, 4, {"base", "a"}, "density = 0.25\n");
  EXPECT_NE(error(other).message().find("a density is one number per model: here"), std::string::npos);
  EXPECT_NE(error(Slice(0, 4, {"base", "a"}, "density = [0, 1]\n")).message().find("not a gradient"),
            std::string::npos);
  EXPECT_NE(error(Slice(0, 4, {"base", "a"}) + "density = [0, 1]\n").message().find("not a gradient"),
            std::string::npos);
  // Two models may have different ones, and one may say the same thing twice.
  fixture::PlanOf(Recipe("method = 'ties'\n",
                         Slice(0, 2, {"base", "a"}, "density = 0.5\n") +
                             Slice(2, 4, {"base", "b"}, "density = 0.25\n") +
                             Slice(2, 4, {"base", "a"}, "density = 0.5\n"),
                         "scope = 'model'"));
}

}  // namespace
}  // namespace braid
