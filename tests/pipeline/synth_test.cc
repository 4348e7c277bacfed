#include "pipeline/synth.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <map>

#include "io/error.h"
#include "io/json.h"
#include "io/os.h"
#include "io/safetensors.h"
#include "ops/kernels.h"
#include "pipeline/random_pool.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

class SynthTest : public ::testing::Test {
 protected:
  SynthTest() {
    std::string pattern = (fs::temp_directory_path() / "braid_synth_XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
    options_.architecture = FindArchitecture("tiny");
    options_.finetunes = {"math", "code"};
  }
  ~SynthTest() override { fs::remove_all(directory_); }

  std::string Out(const std::string& name) const { return (directory_ / name).string(); }

  // Writes the family to a directory of that name and returns relative path -> content.
  std::map<std::string, std::string> Write(const std::string& name) {
    options_.output = Out(name);
    SynthesizeFamily(options_);
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(options_.output))
      if (entry.is_regular_file())
        files[fs::relative(entry.path(), options_.output)] = ReadSmallFile(entry.path(), 1u << 30);
    return files;
  }

  fs::path directory_;
  SynthOptions options_;
};

SafetensorsHeader HeaderOf(const std::string& file) {
  uint64_t length = 0;
  std::copy_n(file.data(), 8, reinterpret_cast<char*>(&length));
  return ParseSafetensorsHeader(std::string_view(file).substr(8, length), file.size(), "test");
}

std::map<std::string, std::vector<float>> WeightsOf(const std::string& file) {
  std::map<std::string, std::vector<float>> weights;
  for (const TensorInfo& tensor : HeaderOf(file).tensors) {
    std::vector<float> lanes(tensor.elements + kLanePadding);
    DecodeLanes(tensor.dtype, file.data() + tensor.offset, tensor.elements, lanes.data());
    lanes.resize(tensor.elements);
    weights[tensor.name] = std::move(lanes);
  }
  return weights;
}

double Mean(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

double Deviation(const std::vector<float>& values) {
  const double mean = Mean(values);
  double sum = 0;
  for (float v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

TEST(Architectures, HaveThePublishedNumberOfParameters) {
  const std::map<std::string_view, uint64_t> published = {
      {"llama-1b", 1'235'814'400},   {"qwen-1.5b", 1'543'714'304}, {"llama-3b", 3'212'749'824},
      {"mistral-7b", 7'241'732'096}, {"llama-8b", 8'030'261'248},  {"mixtral-8x7b", 46'702'792'704},
      {"llama-70b", 70'553'706'496}};
  for (const auto& [name, parameters] : published) {
    uint64_t total = 0;
    for (const TensorInfo& tensor : TensorsOf(*FindArchitecture(name), DType::kBF16)) total += tensor.elements;
    EXPECT_EQ(total, parameters) << name;
  }
}

TEST(Architectures, HaveThePublishedNumberOfTensors) {
  const std::map<std::string_view, size_t> published = {
      {"qwen-1.5b", 338}, {"mistral-7b", 291}, {"llama-8b", 291}, {"mixtral-8x7b", 995}, {"llama-70b", 723}};
  for (const auto& [name, tensors] : published)
    EXPECT_EQ(TensorsOf(*FindArchitecture(name), DType::kBF16).size(), tensors) << name;
}

TEST(Architectures, AreListedFromSmallToLarge) {
  uint64_t before = 0;
  for (const Architecture& a : Architectures()) {
    uint64_t total = 0;
    for (const TensorInfo& tensor : TensorsOf(a, DType::kF32)) total += tensor.bytes;
    EXPECT_GT(total, before) << a.name;
    before = total;
  }
  EXPECT_EQ(FindArchitecture("llama-2b"), nullptr);
}

TEST(RandomPool, IsNormal) {
  const auto pool = MakeRandomPool(Distribution::kNormal, 7, 1 << 18, 2);
  EXPECT_NEAR(Mean(pool), 0, 0.01);
  EXPECT_NEAR(Deviation(pool), 1, 0.01);
  const auto above = std::count_if(pool.begin(), pool.end(), [](float v) { return v > 1.644854f; });
  EXPECT_NEAR(static_cast<double>(above) / static_cast<double>(pool.size()), 0.05, 0.002);
}

TEST(RandomPool, IsStudentWithThreeDegreesOfFreedom) {
  auto pool = MakeRandomPool(Distribution::kStudent3, 7, 1 << 18, 2);
  std::sort(pool.begin(), pool.end());
  auto quantile = [&](double q) { return pool[static_cast<size_t>(q * static_cast<double>(pool.size()))]; };
  EXPECT_NEAR(quantile(0.5), 0, 0.01);
  EXPECT_NEAR(quantile(0.75), 0.7649, 0.02);   // from tables of the distribution
  EXPECT_NEAR(quantile(0.95), 2.3534, 0.05);
  EXPECT_NEAR(quantile(0.995), 5.8409, 0.25);
  EXPECT_NEAR(quantile(0.025), -3.1824, 0.08);
}

TEST(RandomPool, DoesNotDependOnThreads) {
  const auto one = MakeRandomPool(Distribution::kStudent3, 3, 1001, 1);
  EXPECT_EQ(one, MakeRandomPool(Distribution::kStudent3, 3, 1001, 7));
  EXPECT_NE(one, MakeRandomPool(Distribution::kStudent3, 4, 1001, 1));
}

TEST_F(SynthTest, WritesWholeModels) {
  const auto files = Write("family");
  ASSERT_EQ(files.size(), 3 * 5u);
  for (const std::string model : {"base", "math", "code"}) {
    const SafetensorsHeader header = HeaderOf(files.at(model + "/model.safetensors"));
    const auto expected = TensorsOf(*options_.architecture, DType::kBF16);
    ASSERT_EQ(header.tensors.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(header.tensors[i].name, expected[i].name);
      EXPECT_EQ(header.tensors[i].shape, expected[i].shape);
      EXPECT_EQ(header.tensors[i].dtype, DType::kBF16);
    }
    EXPECT_EQ(header.metadata.at("format"), "pt");
    const Json config = ParseJson(files.at(model + "/config.json"), "config.json");
    EXPECT_EQ(config["architectures"], Json({"LlamaForCausalLM"}));
    EXPECT_EQ(config["torch_dtype"], "bfloat16");
    EXPECT_EQ(config["vocab_size"], 512);
    const Json tokenizer = ParseJson(files.at(model + "/tokenizer.json"), "tokenizer.json");
    EXPECT_EQ(tokenizer["model"]["vocab"].size(), 3 + 256u);
  }
}

TEST_F(SynthTest, WeightsHaveTheStatedDistributions) {
  options_.dtype = DType::kF32;
  const auto files = Write("family");
  const auto base = WeightsOf(files.at("base/model.safetensors"));
  const auto math = WeightsOf(files.at("math/model.safetensors"));
  const auto code = WeightsOf(files.at("code/model.safetensors"));
  const std::string name = "model.embed_tokens.weight";
  EXPECT_NEAR(Mean(base.at(name)), 0, 5e-4);
  EXPECT_NEAR(Deviation(base.at(name)), 0.02, 5e-4);
  EXPECT_NEAR(Mean(base.at("model.norm.weight")), 1, 0.03);
  EXPECT_NE(base.at("lm_head.weight"), base.at(name));

  std::vector<float> change;
  for (size_t i = 0; i < base.at(name).size(); ++i) change.push_back(math.at(name)[i] - base.at(name)[i]);
  EXPECT_NE(math.at(name), code.at(name));
  std::sort(change.begin(), change.end());
  EXPECT_NEAR(change[change.size() / 2], 0, 3e-5);
  EXPECT_NEAR(change[change.size() * 95 / 100], 2.3534 * 5e-4, 1e-4);
}

TEST_F(SynthTest, BytesDependOnTheSeedAndNotOnThreads) {
  options_.threads = 1;
  const auto first = Write("one");
  options_.threads = 5;
  EXPECT_EQ(Write("five"), first);
  options_.seed = 1;
  EXPECT_NE(Write("other").at("base/model.safetensors"), first.at("base/model.safetensors"));
}

TEST_F(SynthTest, LowerPrecisionIsTheRoundedHigherOne) {
  options_.dtype = DType::kF32;
  const auto wide = WeightsOf(Write("f32").at("math/model.safetensors"));
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    options_.dtype = dtype;
    const std::string file = Write(std::string(DTypeName(dtype))).at("math/model.safetensors");
    for (const TensorInfo& tensor : HeaderOf(file).tensors) {
      std::vector<float> lanes = wide.at(tensor.name);
      lanes.resize(tensor.elements + kLanePadding);
      std::string expected(tensor.bytes, '\0');
      NonFinite counts;
      EncodeLanes(dtype, lanes.data(), tensor.elements, expected.data(), &counts);
      EXPECT_EQ(counts.nan + counts.inf, 0u);
      EXPECT_TRUE(file.compare(tensor.offset, tensor.bytes, expected) == 0) << tensor.name;
    }
  }
}

TEST_F(SynthTest, ShardsHoldTheSameTensorsAsOneFile) {
  const auto whole = WeightsOf(Write("whole").at("math/model.safetensors"));
  options_.shard_bytes = 70'000;
  const auto files = Write("sharded");
  const Json index = ParseJson(files.at("math/model.safetensors.index.json"), "index");
  EXPECT_EQ(index["weight_map"].size(), whole.size());
  uint64_t total = 0;
  std::map<std::string, std::vector<float>> together;
  for (const auto& [path, content] : files) {
    if (!path.starts_with("math/model-") || !path.ends_with(".safetensors")) continue;
    uint64_t bytes = 0;
    for (const TensorInfo& tensor : HeaderOf(content).tensors) {
      EXPECT_EQ(index["weight_map"][tensor.name], path.substr(5));
      bytes += tensor.bytes;
    }
    EXPECT_LE(bytes, options_.shard_bytes);
    total += bytes;
    together.merge(WeightsOf(content));
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(together, whole);
}

// Chunks of the writer begin and end in the middle of a tensor.
TEST_F(SynthTest, TensorsLargerThanAChunkAreWhole) {
  options_.architecture = FindArchitecture("small");
  options_.finetunes = {};
  const std::string file = Write("small").at("base/model.safetensors");
  ASSERT_GT(file.size(), 3 * (size_t{8} << 20));
  const auto weights = WeightsOf(file);
  for (const auto& [name, values] : weights) {
    const bool is_norm = name.find("norm") != std::string::npos;
    EXPECT_NEAR(Mean(values), is_norm ? 1 : 0, is_norm ? 0.02 : 5e-4) << name;
    EXPECT_NEAR(Deviation(values), is_norm ? 0.05 : 0.02, is_norm ? 0.01 : 5e-4) << name;
    EXPECT_FALSE(std::any_of(values.begin(), values.end(), [](float v) { return std::abs(v) > 2; })) << name;
  }
}

ErrorCode CodeOf(const SynthOptions& options) {
  try {
    SynthesizeFamily(options);
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::kInternal;
}

TEST_F(SynthTest, RefusesNamesThatAreNoDirectoryNames) {
  options_.output = Out("family");
  for (const std::vector<std::string>& names :
       std::vector<std::vector<std::string>>{{""}, {"../up"}, {"a/b"}, {".hidden"}, {"base"}, {"a", "a"}}) {
    options_.finetunes = names;
    EXPECT_EQ(CodeOf(options_), ErrorCode::kUsage) << names.front();
  }
  EXPECT_FALSE(fs::exists(options_.output));
}

TEST_F(SynthTest, LeavesAnExistingFamilyAlone) {
  const auto before = Write("family");
  options_.seed = 5;
  EXPECT_EQ(CodeOf(options_), ErrorCode::kUsage);
  EXPECT_EQ(ReadSmallFile(Out("family") + "/base/model.safetensors"), before.at("base/model.safetensors"));
}

TEST_F(SynthTest, RefusesAFamilyThatDoesNotFitTheDisk) {
  options_.architecture = FindArchitecture("llama-70b");
  options_.finetunes.clear();
  for (int i = 0; i < 1000; ++i) options_.finetunes.push_back("ft" + std::to_string(i));  // 141 TB
  options_.output = Out("family");
  EXPECT_EQ(CodeOf(options_), ErrorCode::kIo);
}

// Lets so many bytes be written, then says that the disk is full.
class FullDisk : public Os {
 public:
  explicit FullDisk(ssize_t room) : room_(room) {}
  ssize_t Pwrite(int fd, const void* buffer, size_t bytes, off_t offset) override {
    if (room_.fetch_sub(static_cast<ssize_t>(bytes)) >= static_cast<ssize_t>(bytes))
      return Os::Pwrite(fd, buffer, bytes, offset);
    errno = ENOSPC;
    return -1;
  }

 private:
  std::atomic<ssize_t> room_;
};

TEST_F(SynthTest, AFullDiskLeavesNoHalfModel) {
  FullDisk disk(400'000);  // enough for the base alone
  options_.output = Out("family");
  SetOsForTesting(&disk);
  const ErrorCode code = CodeOf(options_);
  SetOsForTesting(nullptr);
  EXPECT_EQ(code, ErrorCode::kIo);
  EXPECT_TRUE(fs::exists(options_.output + "/base/config.json"));
  EXPECT_FALSE(fs::exists(options_.output + "/math"));
  EXPECT_FALSE(fs::exists(options_.output + "/math.partial"));
}

}  // namespace
}  // namespace braid
