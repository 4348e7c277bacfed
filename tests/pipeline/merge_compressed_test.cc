// Compressed checkpoints as inputs: merges give the same bytes as from plain ones, and verbs read them alike.
#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/diff.h"
#include "pipeline/inspect.h"
#include "pipeline/verify.h"
#include "tests/io/compressed_fixtures.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_scenario.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using fixture::kMiB;
using fixture::MergedFiles;

constexpr Compression kNone = Compression::kNone, kZstd = Compression::kZstd, kPlanes = Compression::kPlanes;

// Random recipes over random tensors, with shards that are compressed in one way, the other, or not at all.
TEST(MergeCompressed, GivesTheSameBytesAsPlain) {
  test::Random random;
  fixture::ForRandomScenarios(20, random, [&](const fixture::WrittenScenario& drawn) {
    PlanOptions options{.memory = fixture::kGiB, .threads = 1};
    const auto expected = MergedFiles(drawn.recipe, drawn.out, options);
    fixture::CompressShards(drawn.place.path(),
                            [&] { return random.OneOf<Compression>({kNone, kZstd, kPlanes, kPlanes}); });
    for (const ReadMode mode : {ReadMode::kMapped, ReadMode::kDirect}) {
      options = {.memory = fixture::kGiB, .threads = static_cast<int>(1 + random.Below(8)), .read = mode};
      options.tile_elements = random.OneOf<uint64_t>({0, 65'536, 131'072});
      fixture::ExpectSameFiles(expected, MergedFiles(drawn.recipe, drawn.out, options));
      options.tile_elements = 0;
      options.memory = fixture::PlanOf(drawn.recipe, options).memory.least;
      fixture::ExpectSameFiles(expected, MergedFiles(drawn.recipe, drawn.out, options));
    }
  });
}

// Tensors of many frames, of several in one, and at the ends of frames; in two shards.
class CompressedFamily : public testing::Test {
 protected:
  CompressedFamily() : random_(20'261'122) {
    const auto write = [&](const std::string& name, DType type) {
      std::vector<fixture::StoredTensor> tensors;
      for (const auto& [tensor, n] : std::vector<std::pair<std::string, size_t>>{
               {"a", 3'000'017}, {"b", 1}, {"c", 1'048'576}, {"d", 2047}, {"e", 65'536}, {"f", 600'001}, {"g", 7}}) {
        std::vector<double> values(n);
        for (double& value : values) value = random_.Normal() / 50;
        tensors.push_back(fixture::Floats(tensor, type, {n}, values));
      }
      tensors.push_back(fixture::Integers("ids", {1, 2, 3}));
      fixture::WriteCheckpoint(place_, name, tensors, 2);
    };
    write("base", DType::kBF16);
    write("half", DType::kF16);
    write("full", DType::kF32);
  }

  std::string Recipe(const std::string& scope = "tensor") {
    std::string text = "method = 'ties'\nbase = '" + place_ / "base" +
                       "'\ndtype = 'bfloat16'\n[parameters]\ndensity = 0.3\nscope = '" + scope + "'\n";
    for (const char* model : {"half", "full"}) text += "[[models]]\npath = '" + place_ / model + "'\n";
    return place_.Write("recipe.toml", text);
  }
  std::string out() const { return place_ / "out"; }
  void CompressAll(Compression compression) {
    fixture::CompressShards(place_.path(), [=] { return compression; });
  }
  // The larger of the compressed shards of a model.
  std::string ShardWithA(const std::string& model) const {
    std::string largest;
    for (const auto& entry : fs::directory_iterator(place_ / model))
      if (entry.path().extension() == ".zst" && (largest.empty() || entry.file_size() > fs::file_size(largest)))
        largest = entry.path().string();
    return largest;
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
};

TEST_F(CompressedFamily, GivesTheSameBytesForAllTilesThreadsAndBudgets) {
  std::map<std::string, std::map<std::string, std::string>> expected;
  for (const char* scope : {"tensor", "model"})
    expected[scope] = MergedFiles(Recipe(scope), out(), {.memory = 256 * kMiB, .threads = 2});
  CompressAll(kPlanes);
  for (const char* scope : {"tensor", "model"}) {
    const std::string recipe = Recipe(scope);
    for (const ReadMode mode : {ReadMode::kMapped, ReadMode::kDirect})
      for (const int threads : {1, 3, 8}) {
        SCOPED_TRACE(testing::Message() << scope << " scope, " << threads << " threads");
        PlanOptions options{.memory = 256 * kMiB, .threads = threads, .read = mode};
        fixture::ExpectSameFiles(expected[scope], MergedFiles(recipe, out(), options));
        options.tile_elements = 65'536;   // 16 in a frame
        fixture::ExpectSameFiles(expected[scope], MergedFiles(recipe, out(), options));
        options.tile_elements = 0, options.memory = fixture::PlanOf(recipe, options).memory.least;
        fixture::ExpectSameFiles(expected[scope], MergedFiles(recipe, out(), options));
        if (HasFailure()) return;
      }
  }
}

TEST_F(CompressedFamily, WhatDecodingTakesIsInTheBudget) {
  const PlanOptions options{.memory = 256 * kMiB, .threads = 4};
  const Plan plain = fixture::PlanOf(Recipe(), options);
  EXPECT_EQ(plain.memory.decoding.MemoryBytes(), 0u);
  CompressAll(kZstd);
  const Plan plan = fixture::PlanOf(Recipe(), options);
  EXPECT_EQ(plan.memory.decoding.decoders, 4u);
  EXPECT_GE(plan.memory.decoding.most_content, 2 * kMiB);
  EXPECT_GE(plan.memory.least, plain.memory.least + 3 * kMiB);
  EXPECT_LE(plan.memory.pool + plan.memory.decoding.MemoryBytes(), options.memory);
  const Plan tight = fixture::PlanOf(Recipe(), {.memory = plan.memory.least, .threads = 4});
  EXPECT_EQ(tight.memory.decoding.decoders, 1u);
  EXPECT_EQ(PlanFingerprint(plan), PlanFingerprint(plain)) << "compression is no part of what is merged";
}

TEST_F(CompressedFamily, PlainShardsGoFirst) {
  const auto expected = MergedFiles(Recipe(), out(), {.memory = 256 * kMiB, .threads = 2});
  for (const auto& entry : fs::directory_iterator(place_ / "half"))
    if (entry.path().extension() == ".safetensors")
      std::ofstream(entry.path().string() + ".planes.zst") << "nobody reads this";
  const Plan plan = fixture::PlanOf(Recipe(), {.memory = 256 * kMiB});
  const auto says_so = [](const std::string& warning) {
    return warning.find(".planes.zst is not used") != std::string::npos;
  };
  EXPECT_EQ(std::count_if(plan.checkpoints[1].warnings.begin(), plan.checkpoints[1].warnings.end(), says_so), 2);
  fixture::ExpectSameFiles(expected, MergedFiles(Recipe(), out(), {.memory = 256 * kMiB, .threads = 2}));
}

TEST_F(CompressedFamily, DamageIsAnErrorThatNamesFileTensorAndFrame) {
  CompressAll(kPlanes);
  const std::string shard = ShardWithA("full"), bytes = fixture::BytesOfFile(shard);
  std::string damaged = bytes;
  damaged[damaged.size() / 2] ^= 0x10;
  std::ofstream(shard, std::ios::binary) << damaged;
  for (const ReadMode mode : {ReadMode::kMapped, ReadMode::kDirect}) {
    const Error error = fixture::ErrorOf([&] {
      fixture::Merge(Recipe(), out(), {.memory = 256 * kMiB, .threads = 3, .read = mode});
    });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    EXPECT_EQ(error.path(), shard);
    EXPECT_EQ(error.tensor(), "a");
    EXPECT_NE(error.message().find("frame "), std::string::npos) << error.what();
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_FALSE(fs::exists(out() + ".partial"));
  }
  std::ofstream(shard, std::ios::binary) << bytes.substr(0, bytes.size() - 100);
  const Error cut = fixture::ErrorOf([&] { fixture::Merge(Recipe(), out(), {.memory = 256 * kMiB}); });
  EXPECT_EQ(cut.code(), ErrorCode::kBadInput);
  EXPECT_EQ(cut.path(), shard);
}

// --- the other verbs --------------------------------------------------------------------------------------

TEST_F(CompressedFamily, VerbsReadItAsIfItWerePlain) {
  fixture::Merge(Recipe(), out(), {.memory = 256 * kMiB, .threads = 2, .shard_bytes = 4'000'000});
  const std::string copy = place_ / "copy";
  fs::copy(out(), copy, fs::copy_options::recursive);
  const std::vector<TensorStatistics> statistics = ComputeStatistics(Inspect(out()).checkpoint);
  for (const Compression compression : {kZstd, kPlanes}) {
    fs::remove_all(copy);
    fs::copy(out(), copy, fs::copy_options::recursive);
    fixture::CompressShards(copy, [=] { return compression; });

    const VerifyReport report = Verify(copy);
    EXPECT_TRUE(report.ok()) << (report.faults.empty() ? "" : report.faults.front().reason);
    EXPECT_EQ(report.checked, 8u);
    const CheckpointDifference diff = Diff(out(), copy);
    EXPECT_EQ(diff.differing, 0u);
    EXPECT_EQ(diff.tensors.size(), 8u);
    const Inspection inspection = Inspect(copy);
    const std::vector<TensorStatistics> same = ComputeStatistics(inspection.checkpoint);
    ASSERT_EQ(same.size(), statistics.size());
    for (size_t i = 0; i < same.size(); ++i) EXPECT_EQ(same[i].l2_norm, statistics[i].l2_norm);
    EXPECT_EQ(inspection.metadata.front(), Inspect(out()).metadata.front());
  }
}

TEST_F(CompressedFamily, VerifyNamesTheDamage) {
  fixture::Merge(Recipe(), out(), {.memory = 256 * kMiB, .threads = 2, .single_file = false});
  fixture::CompressShards(out(), [] { return kZstd; });
  const std::string shard = out() + "/model.safetensors.zst";
  std::string bytes = fixture::BytesOfFile(shard);
  bytes[bytes.size() / 2] ^= 1;
  std::ofstream(shard, std::ios::binary) << bytes;
  const VerifyReport report = Verify(out());
  ASSERT_EQ(report.faults.size(), 1u);
  EXPECT_EQ(report.faults[0].file, "model.safetensors");
  EXPECT_FALSE(report.faults[0].tensor.empty());
  EXPECT_NE(report.faults[0].reason.find("frame "), std::string::npos) << report.faults[0].reason;
}

TEST_F(CompressedFamily, ASingleFileIsVerifiedByItsHeader) {
  const std::string file = place_ / "one.safetensors";
  fixture::Merge(Recipe(), file, {.memory = 256 * kMiB, .threads = 2, .single_file = true});
  EXPECT_TRUE(Verify(file).ok());
  for (const Compression compression : {kZstd, kPlanes}) {
    const std::string copy = place_ / "copy.safetensors";
    fs::copy_file(file, copy);
    const VerifyReport report = Verify(fixture::CompressFile(copy, compression));
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report.checked, 8u);
  }
}

}  // namespace
}  // namespace braid
