#include "pipeline/inspect.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "pipeline/budget.h"
#include "tests/pipeline/checkpoint_fixtures.h"

namespace braid {
namespace {

using namespace fixture;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

class InspectTest : public ::testing::Test {
 protected:
  TensorStatistics StatisticsOf(const Tensor& tensor) {
    const Inspection found = Inspect(directory_.Write("one.safetensors", FileOf({tensor})));
    return ComputeStatistics(found.checkpoint).at(0);
  }
  TemporaryDirectory directory_;
};

// The rule of methods.md, written down plainly: blocks of 65,536 elements, 16 interleaved sums, folded by halves,
// blocks in order.
double SumByTheRule(const std::vector<double>& values) {
  double total = 0;
  for (size_t begin = 0; begin < values.size(); begin += 65'536) {
    double sums[16] = {};
    for (size_t i = begin; i < std::min(values.size(), begin + 65'536); ++i) sums[(i - begin) % 16] += values[i];
    for (int i = 0; i < 8; ++i) sums[i] += sums[i + 8];
    for (int i = 0; i < 4; ++i) sums[i] += sums[i + 4];
    total += (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }
  return total;
}

TEST_F(InspectTest, CountsWhatIsThere) {
  directory_.Write("m/config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})");
  const std::string path = WriteShards(
      directory_, "m", {{F32("a", {1, 2, 3}), Raw16("b", DType::kBF16, {0x3f80})}, {Raw16("c", DType::kBF16, {1, 2})}});
  const Inspection found = Inspect(path);
  EXPECT_EQ(found.checkpoint.tensors.size(), 3u);
  EXPECT_EQ(found.elements, 6u);
  EXPECT_EQ(found.bytes, 18u);
  ASSERT_EQ(found.by_dtype.size(), 2u);
  EXPECT_EQ(found.by_dtype[0].dtype, DType::kF32);
  EXPECT_EQ(found.by_dtype[0].bytes, 12u);
  EXPECT_EQ(found.by_dtype[1].tensors, 2u);
  EXPECT_EQ(found.by_dtype[1].elements, 3u);
  EXPECT_EQ(found.checkpoint.config.model_type, "llama");
}

TEST_F(InspectTest, GivesTheMetadataOfEachShard) {
  const std::string path = directory_.Write("m.safetensors", FileOf({F32("a", {1})}, {{"format", "pt"}, {"k", "v"}}));
  const Inspection found = Inspect(path);
  ASSERT_EQ(found.metadata.size(), 1u);
  EXPECT_EQ(found.metadata[0], (std::map<std::string, std::string>{{"format", "pt"}, {"k", "v"}}));
}

TEST_F(InspectTest, ReadsQuantisedCheckpointsAndAdapters) {
  directory_.Write("q/config.json", R"({"quantization_config": {"quant_method": "fp8"}})");
  directory_.Write("q/model.safetensors", FileOf({{"w", DType::kF8E4M3, {4}, "abcd"}, F32("w_scale", {2})}));
  const Inspection quantised = Inspect(directory_ / "q");
  EXPECT_EQ(quantised.bytes, 8u);
  const auto statistics = ComputeStatistics(quantised.checkpoint);
  const auto scale = quantised.checkpoint.Find("w_scale");
  ASSERT_TRUE(scale);
  EXPECT_EQ(statistics[*scale].l2_norm, 2);

  directory_.Write("a/adapter_config.json", "{}");
  directory_.Write("a/adapter_model.safetensors", FileOf({F32("base_model.model.q.lora_A.weight", {1})}));
  EXPECT_EQ(Inspect(directory_ / "a").checkpoint.tensors.size(), 1u);
}

TEST_F(InspectTest, StatisticsOfKnownValues) {
  const TensorStatistics s = StatisticsOf(F32("t", {3, -4, 0, -0.0f, kNan, kInf, -kInf, 12}));
  EXPECT_EQ(s.l2_norm, 13);
  EXPECT_EQ(s.largest_magnitude, 12);
  EXPECT_EQ(s.mean, 11.0 / 5);
  EXPECT_EQ(s.nan, 1u);
  EXPECT_EQ(s.inf, 2u);
  EXPECT_EQ(s.zeros, 2u);
}

TEST_F(InspectTest, StatisticsAreOfTheTensorsOwnType) {
  EXPECT_EQ(StatisticsOf(F64("t", {1e200, 0})).largest_magnitude, 1e200);
  EXPECT_EQ(StatisticsOf(F64("t", {1e200, 0})).inf, 0u);
  EXPECT_EQ(StatisticsOf(Raw16("t", DType::kF16, {0x7bff, 0x7c00, 0x7e00})).largest_magnitude, 65504);
  EXPECT_EQ(StatisticsOf(Raw16("t", DType::kBF16, {0xc000, 0x7f80})).largest_magnitude, 2);
  EXPECT_EQ(StatisticsOf(F32("t", {})).l2_norm, 0);
  EXPECT_EQ(StatisticsOf(F32("t", {kNan})).mean, 0);
}

// Several windows, reduction blocks and chunks, and ends in the middle of each.
TEST_F(InspectTest, SumsFollowTheFixedRule) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t count : {1u, 15u, 16u, 1023u, 1025u, 65'536u, 65'537u, 524'288u, 1'300'003u}) {
    std::vector<float> values(count);
    for (float& v : values) v = normal(random);
    std::vector<double> squares(values.begin(), values.end());
    const double sum = SumByTheRule(squares);
    for (double& v : squares) v *= v;
    const TensorStatistics s = StatisticsOf(F32("t", values));
    EXPECT_EQ(s.l2_norm, std::sqrt(SumByTheRule(squares))) << count;
    EXPECT_EQ(s.mean, sum / static_cast<double>(count)) << count;
  }
}

TEST_F(InspectTest, ManyTensorsKeepTheirOwnFigures) {
  std::vector<std::vector<Tensor>> shards(3);
  for (int i = 0; i < 300; ++i)
    shards[i / 100].push_back(F32("t" + std::to_string(i), std::vector<float>(i % 7 + 1, 1.0f * i)));
  const Inspection found = Inspect(WriteShards(directory_, "m", shards));
  const auto statistics = ComputeStatistics(found.checkpoint);
  for (int i = 0; i < 300; ++i)
    EXPECT_EQ(statistics[*found.checkpoint.Find("t" + std::to_string(i))].mean, i) << i;
}

TEST_F(InspectTest, AFileThatChangesIsAnError) {
  const std::string path = directory_.Write("m.safetensors", FileOf({F32("a", {1, 2})}));
  const Inspection found = Inspect(path);
  directory_.Write("m.safetensors", FileOf({F32("a", {1, 2, 3, 4})}));
  EXPECT_EQ(ErrorOf([&] { ComputeStatistics(found.checkpoint); }).code(), ErrorCode::kInputChanged);
}

TEST_F(InspectTest, MemoryDoesNotGrowWithTheFile) {
  constexpr uint64_t kBytes = 512 << 20;
  const std::string path = directory_ / "big.safetensors";
  {
    const TensorInfo info{"t", DType::kF32, {kBytes / 4}, kBytes / 4, 0, kBytes};
    const std::string header = MakeSafetensorsHeader({info}, {});
    directory_.Write("big.safetensors", header);
    std::filesystem::resize_file(path, header.size() + kBytes);  // zeros that take no room on the disk
  }
  const Inspection found = Inspect(path);
  const uint64_t before = ReadResidentMemory().peak;
  const TensorStatistics s = ComputeStatistics(found.checkpoint).at(0);
  EXPECT_EQ(s.zeros, kBytes / 4);
  EXPECT_LT(ReadResidentMemory().peak, before + (uint64_t{64} << 20));
}

}  // namespace
}  // namespace braid
