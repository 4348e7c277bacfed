// Tensors that are known to come out as the base has them are copied from it: the same bytes as by merging, without
// reading the models.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::StoredTensor;

constexpr size_t kElements = 150'000;  // three reduction blocks

class MergeUnchanged : public testing::Test {
 protected:
  StoredTensor RandomTensor(const std::string& name, DType type, double scale, size_t n = kElements) {
    std::normal_distribution<double> normal(0, scale);
    std::vector<double> values(n);
    for (double& value : values) value = normal(random_);
    return Floats(name, type, {n}, values);
  }
  std::vector<StoredTensor> RandomModel(DType type) {
    return {RandomTensor("a", type, 0.02), RandomTensor("b", type, 0.03), RandomTensor("c", type, 0.01, 777)};
  }

  // base/, and two fine-tunes, each tensor in a shard of its own. The first shards of both tunes and the last one of
  // the first are the base's very files, or (`hard_links` false) copies of them.
  void WriteFamily(const std::string& prefix, const std::vector<std::vector<StoredTensor>>& models, bool hard_links) {
    const std::vector<std::string> names = {prefix + "base", prefix + "one", prefix + "two"};
    std::filesystem::remove_all(place_ / prefix);
    for (size_t i = 0; i < names.size(); ++i) fixture::WriteCheckpoint(place_, names[i], models[i], 3);
    const auto share = [&](const std::string& name, const std::string& shard) {
      const std::string from = place_ / names[0] + "/" + shard, to = place_ / name + "/" + shard;
      std::filesystem::remove(to);
      if (hard_links) std::filesystem::create_hard_link(from, to);
      else std::filesystem::copy_file(from, to);
    };
    share(names[1], "model-00001-of-00003.safetensors");
    share(names[2], "model-00001-of-00003.safetensors");
    share(names[1], "model-00003-of-00003.safetensors");
  }

  std::string Recipe(const std::string& method, const std::string& top, const std::vector<std::string>& models,
                     const std::string& base = "base") {
    std::string text = "method = '" + method + "'\nbase = '" + place_ / base + "'\n" + top;
    for (const std::string& model : models) text += "[[models]]\npath = '" + place_ / model + "'\n";
    return place_.Write("recipe.toml", text);
  }

  std::vector<StoredTensor> Run(const std::string& recipe, MergeReport* report = nullptr, PlanOptions options = {}) {
    std::filesystem::remove_all(place_ / "out");
    const MergeReport got = fixture::Merge(recipe, place_ / "out", options);
    if (report != nullptr) *report = got;
    return fixture::ReadTensors(place_ / "out");
  }

  fixture::TemporaryDirectory place_;
  test::Random random_;
};

TEST_F(MergeUnchanged, SameFilesGiveTheSameBytesAsCopies) {
  for (DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::vector<std::vector<StoredTensor>> models = {RandomModel(type), RandomModel(type), RandomModel(type)};
    WriteFamily("linked/", models, true);
    WriteFamily("copied/", models, false);
    const std::vector<std::pair<const char*, std::string>> recipes = {
        {"ties", "parameters.density = 0.3\n"},
        {"ties", "parameters.density = 0.3\nparameters.scope = 'model'\n"},
        {"ties", "parameters.density = 0.9\nparameters.scope = 'model'\nparameters.zero_sign = 'majority'\n"},
        {"ties", "parameters.density = 0.4\nparameters.scope = 'model'\nparameters.ties_at_threshold = 'keep'\n"},
        {"ties", "parameters.density = 0.3\nparameters.scope = 'model'\nparameters.rescale = true\n"},
        {"task_arithmetic", "parameters.lambda = 0.7\n"}};
    for (const auto& [method, top] : recipes) {
      SCOPED_TRACE(std::string(method) + " " + top);
      for (uint64_t memory : {64 * fixture::kMiB, fixture::kGiB}) {
        const PlanOptions options{.memory = memory, .threads = 2, .tile_elements = 65'536};
        MergeReport linked, copied;
        const auto from_links = Run(Recipe(method, top, {"linked/one", "linked/two"}, "linked/base"), &linked, options);
        const auto from_copies =
            Run(Recipe(method, top, {"copied/one", "copied/two"}, "copied/base"), &copied, options);
        EXPECT_TRUE(from_links == from_copies);
        EXPECT_TRUE(from_links[0] == models[0][0]);
        EXPECT_EQ(linked.totals.unchanged, 1u);
        EXPECT_EQ(linked.totals.merged, 2u);
        EXPECT_EQ(copied.totals.unchanged, 0u);
        EXPECT_EQ(linked.totals.parameters, copied.totals.parameters);
        EXPECT_LT(linked.totals.bytes_read, copied.totals.bytes_read);
        EXPECT_EQ(linked.bytes_written, copied.bytes_written);
        EXPECT_EQ(linked.result.counts.conflicts, copied.result.counts.conflicts);
        if (top.find("model") == std::string::npos) continue;
        EXPECT_EQ(linked.result.entries, copied.result.entries);
        EXPECT_EQ(linked.result.kept, copied.result.kept);
      }
    }
  }
}

TEST_F(MergeUnchanged, TheBaseByAnotherName) {
  const std::vector<StoredTensor> base = RandomModel(DType::kF32);
  fixture::WriteCheckpoint(place_, "base", base);
  place_.Link(place_ / "base", "alias");
  for (const char* top : {"", "parameters.scope = 'model'\nparameters.density = 0.5\n"}) {
    MergeReport report;
    EXPECT_TRUE(Run(Recipe("ties", top, {"alias"}), &report) == base);
    EXPECT_EQ(report.totals.unchanged, 3u);
    EXPECT_EQ(report.totals.merged, 0u);
  }
}

TEST_F(MergeUnchanged, WithoutAWeight) {
  const std::vector<StoredTensor> base = RandomModel(DType::kF32), tuned = RandomModel(DType::kF32);
  fixture::WriteCheckpoint(place_, "base", base);
  fixture::WriteCheckpoint(place_, "tuned", tuned);
  const std::string filter = "[[models.overrides]]\ntensors = 'b'\nweight = 0\n";
  for (const char* method : {"ties", "task_arithmetic"}) {
    MergeReport report;
    const std::string recipe = Recipe(method, "", {"tuned"});
    const std::string text = fixture::FileText(recipe);
    const auto merged = Run(place_.Write("recipe.toml", text + filter), &report);
    EXPECT_TRUE(merged[1] == base[1]);
    EXPECT_FALSE(merged[0] == base[0]);
    EXPECT_EQ(report.totals.unchanged, 1u);
    EXPECT_EQ(report.totals.bytes_read, 4 * (3 * kElements + 2 * 777));
  }
  // Over the whole model, the entries of a tensor count for the threshold of the others even without a weight.
  const std::string top = "parameters.scope = 'model'\nparameters.density = 0.5\n";
  const std::string text = fixture::FileText(Recipe("ties", top, {"tuned"}));
  EXPECT_EQ(fixture::PlanOf(place_.Write("recipe.toml", text + filter)).totals.unchanged, 0u);
  EXPECT_EQ(fixture::PlanOf(place_.Write("recipe.toml", text + "weight = 0\n")).totals.unchanged, 3u);
}

TEST_F(MergeUnchanged, MissingTensors) {
  const std::vector<StoredTensor> base = RandomModel(DType::kBF16);
  fixture::WriteCheckpoint(place_, "base", base);
  fixture::WriteCheckpoint(place_, "tuned", {RandomTensor("b", DType::kBF16, 0.03)});
  for (const char* policy : {"base", "skip"}) {
    MergeReport report;
    const auto merged = Run(Recipe("ties", "on_missing = '" + std::string(policy) + "'\n", {"tuned"}), &report);
    EXPECT_EQ(report.totals.unchanged, 2u);
    EXPECT_TRUE(merged[0] == base[0]);
    EXPECT_TRUE(merged[2] == base[2]);
    EXPECT_FALSE(merged[1] == base[1]);
  }
}

// What is copied is not touched: a NaN keeps its bits, and an infinity (less itself, a NaN) stays one. Both count.
TEST_F(MergeUnchanged, NonFiniteElementsStay) {
  StoredTensor odd = RandomTensor("a", DType::kF32, 0.02, 1000);
  const auto put = [&](size_t i, uint32_t bits) { std::memcpy(odd.bytes.data() + 4 * i, &bits, 4); };
  put(0, 0x7f800123), put(500, 0xffc00001), put(501, 0x7f800000), put(502, 0xff800000), put(999, 0x80000000);
  fixture::WriteCheckpoint(place_, "base", {odd});
  place_.Link(place_ / "base", "alias");
  MergeReport report;
  EXPECT_TRUE(Run(Recipe("task_arithmetic", "", {"alias"}), &report)[0] == odd);
  EXPECT_EQ(report.result.counts.non_finite.nan, 2u);
  EXPECT_EQ(report.result.counts.non_finite.inf, 2u);
}

TEST_F(MergeUnchanged, OnlyWhatIsKnownToBeTheSame) {
  const auto unchanged = [&](const std::string& recipe) { return fixture::PlanOf(recipe).totals.unchanged; };
  fixture::WriteCheckpoint(place_, "base", RandomModel(DType::kF32));
  place_.Link(place_ / "base", "alias");
  EXPECT_EQ(unchanged(Recipe("ties", "", {"alias"})), 3u);
  EXPECT_EQ(unchanged(Recipe("ties", "dtype = 'bfloat16'\n", {"alias"})), 0u);
  EXPECT_EQ(unchanged(Recipe("linear", "", {"alias"})), 0u);
  EXPECT_EQ(unchanged(Recipe("average", "", {"alias"})), 0u);
  fixture::WriteCheckpoint(place_, "wide", RandomModel(DType::kF64));
  place_.Link(place_ / "wide", "wide alias");
  EXPECT_EQ(unchanged(Recipe("ties", "", {"wide alias"}, "wide")), 0u) << "arithmetic is float32";
  // The same file, but another range of it: a head of its own against one that is tied to the embedding.
  const std::vector<StoredTensor> tensors = {RandomTensor("lm_head.weight", DType::kF32, 0.02),
                                             RandomTensor("model.embed_tokens.weight", DType::kF32, 0.02)};
  fixture::WriteCheckpoint(place_, "untied", tensors, 1, "{\"tie_word_embeddings\": false}");
  place_.Write("tied/config.json", "{\"tie_word_embeddings\": true}");
  std::filesystem::create_hard_link(place_ / "untied/model.safetensors", place_ / "tied/model.safetensors");
  EXPECT_EQ(unchanged(Recipe("ties", "", {"tied"}, "untied")), 1u);
}

TEST_F(MergeUnchanged, ThePlanSaysSo) {
  fixture::WriteCheckpoint(place_, "base", RandomModel(DType::kF32));
  place_.Link(place_ / "base", "alias");
  const Json json = Json::parse(fixture::PlanText(fixture::PlanOf(Recipe("ties", "", {"alias"}))));
  EXPECT_EQ(json["tensors_unchanged"], 3);
  EXPECT_EQ(json["tensors_merged"], 0);
  EXPECT_EQ(json["tensors"][0]["action"], "keep");
  EXPECT_EQ(json["bytes_read"], 4 * (2 * kElements + 777));
}

}  // namespace
}  // namespace braid
