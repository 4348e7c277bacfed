// Outputs whose bytes leave in order, through a pipe or compressed: the bytes that a directory gets, for any number of
// threads, tile size and memory, and whichever way the thresholds are found.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <fstream>

#include "io/byte_stream.h"
#include "io/plain_shard.h"
#include "tests/io/faulty_os.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::kMiB;
using fixture::StoredTensor;

std::string Decompressed(const std::string& text) {
  std::string out(64 * kMiB, '\0');
  const size_t bytes = ZSTD_decompress(out.data(), out.size(), text.data(), text.size());
  EXPECT_FALSE(ZSTD_isError(bytes)) << ZSTD_getErrorName(bytes);
  out.resize(ZSTD_isError(bytes) ? 0 : bytes);
  return out;
}

// What `braid cat` makes of a file.
std::string PlainText(const std::string& path) {
  std::string text;
  ReadPlainShard(path, 2, nullptr, [&](const std::byte* bytes, size_t size) {
    text.append(reinterpret_cast<const char*>(bytes), size);
  });
  return text;
}

// Standard output is a file while this lives.
class Redirected {
 public:
  explicit Redirected(const std::string& path) {
    fflush(stdout);
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(fd, STDOUT_FILENO);
    close(fd);
  }
  ~Redirected() {
    dup2(saved_, STDOUT_FILENO);
    close(saved_);
  }

 private:
  int saved_ = dup(STDOUT_FILENO);
};

MergeReport Streamed(const std::string& recipe, const std::string& path, const PlanOptions& options) {
  const Redirected redirected(path);   // nothing may be expected here: what fails is told on standard output
  return fixture::Merge(recipe, "-", options);
}

class Ordered : public testing::TestWithParam<const char*> {
 protected:
  Ordered() {
    test::Random random(20'261'122);
    // In the order of the file; by name the tensors come in another one.
    const std::vector<std::pair<std::string, std::vector<uint64_t>>> shapes = {
        {"z.small", {1000}},          {"model.layers.2.weight", {251, 257}}, {"model.layers.10.empty", {0}},
        {"model.layers.10.one", {1}}, {"model.layers.1.block", {65'536}},    {"a.large", {1'400'003}},
        {"b.more", {300, 300}},       {"counts", {77}}};
    std::vector<StoredTensor> base, x, y;
    for (const auto& [name, shape] : shapes) {
      const size_t n = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
      if (name == "counts") {
        for (std::vector<StoredTensor>* to : {&base, &x, &y})
          to->push_back(fixture::Integers(name, std::vector<int64_t>(n, 3)));
        continue;
      }
      std::vector<double> values(n), first(n), second(n);
      for (size_t i = 0; i < n; ++i) {
        values[i] = random.Normal();
        first[i] = values[i] + 0.1 * random.Normal();
        second[i] = values[i] + 0.1 * random.Normal();
      }
      base.push_back(Floats(name, DType::kBF16, shape, values));
      x.push_back(Floats(name, DType::kBF16, shape, first));
      y.push_back(Floats(name, DType::kBF16, shape, second));
    }
    fixture::WriteCheckpoint(place_, "base", base, 2);
    fixture::WriteCheckpoint(place_, "x", x);
    fixture::WriteCheckpoint(place_, "y", y);
    place_.Write("base/tokenizer.json", "{}\n");
  }

  std::string Recipe(const std::string& output = "") {
    return place_.Write("recipe.toml", "base = '" + place_ / "base" + "'\n" + output + GetParam() +
                                           "\n[[models]]\npath = '" + place_ / "x" + "'\n[[models]]\npath = '" +
                                           place_ / "y" + "'\nweight = 0.5\n");
  }

  static std::vector<PlanOptions> ManyOptions() {
    std::vector<PlanOptions> all;
    for (int threads : {1, 4})
      for (uint64_t tile : {65'536, 262'144})
        for (uint64_t memory : {192 * kMiB, 512 * kMiB})
          for (uint64_t least : {uint64_t{0}, UINT64_MAX})   // with samples and drafts, and without
            all.push_back({.memory = memory, .threads = threads, .shard_bytes = 900'000, .tile_elements = tile,
                           .least_sampled = least, .least_spread_sample = least});
    return all;
  }

  std::map<std::string, std::string> Run(const std::string& recipe, const PlanOptions& options) {
    const std::string out = place_ / "out";
    const MergeReport report = fixture::Merge(recipe, out, options);
    std::map<std::string, std::string> files = fixture::FilesOf(out);
    std::filesystem::remove_all(out);
    spilled_ += report.result.bytes_spilled;
    return files;
  }

  // The report speaks of what arrived.
  static void ExpectSum(const MergeReport& report, const std::string& path) {
    const std::string text = fixture::FileText(path);
    EXPECT_EQ(report.bytes_written, text.size());
    ASSERT_TRUE(report.result.stream_sum);
    EXPECT_TRUE(XXH128_isEqual(*report.result.stream_sum, XXH3_128bits(text.data(), text.size())));
  }

  fixture::TemporaryDirectory place_;
  uint64_t spilled_ = 0;
};

TEST_P(Ordered, CompressedShardsHoldThePlainOnes) {
  const auto plain = Run(Recipe(), ManyOptions().front());
  ASSERT_GE(plain.size(), 8u);
  for (const std::string mode : {"zstd", "planes"}) {
    const std::string suffix(CompressionSuffix(mode == "zstd" ? Compression::kZstd : Compression::kPlanes));
    const std::string recipe = Recipe("output = {compress = '" + mode + "'}\n");
    std::map<std::string, std::string> first;
    for (const PlanOptions& options : ManyOptions()) {
      SCOPED_TRACE(testing::Message() << mode << " " << options.threads << " threads, " << options.tile_elements
                                      << " elements, " << options.memory << " bytes");
      auto files = Run(recipe, options);
      if (first.empty()) first = files;
      fixture::ExpectSameFiles(first, files);
      if (HasFailure()) return;
    }
    size_t shards = 0;
    for (const auto& [name, text] : plain) {
      if (!name.ends_with(".safetensors")) {
        EXPECT_TRUE(first.contains(name)) << name;
        if (name.ends_with("index.json") || name == "config.json") {
          EXPECT_EQ(first[name], text) << name;
        }
        continue;
      }
      ++shards;
      EXPECT_FALSE(first.contains(name)) << name;
      ASSERT_TRUE(first.contains(name + suffix)) << name;
      EXPECT_TRUE(PlainText(place_.Write("shard" + suffix, first[name + suffix])) == text) << name;
      if (mode == "zstd") {
        EXPECT_TRUE(Decompressed(first[name + suffix]) == text) << name;
      }
    }
    EXPECT_GE(shards, 3u);
  }
  if (std::string(GetParam()).find("'model'") != std::string::npos) {
    EXPECT_GT(spilled_, 0u);
  }
}

TEST_P(Ordered, AStreamIsTheFileOfADirectory) {
  PlanOptions one = ManyOptions().front();
  one.shard_bytes = 1 << 30;
  const std::string expected = Run(Recipe(), one).at("model.safetensors");
  for (const PlanOptions& options : ManyOptions()) {
    SCOPED_TRACE(testing::Message() << options.threads << " threads, " << options.tile_elements << " elements, "
                                    << options.memory << " bytes");
    const std::string path = place_ / "stream.safetensors";
    ExpectSum(Streamed(Recipe(), path, options), path);
    EXPECT_TRUE(fixture::FileText(path) == expected);
    ExpectSum(Streamed(Recipe("output = {compress = 'zstd'}\n"), path, options), path);
    EXPECT_TRUE(Decompressed(fixture::FileText(path)) == expected);
  }
}

TEST_P(Ordered, OneCompressedFile) {
  PlanOptions options = ManyOptions().front();
  options.shard_bytes = 1 << 30;
  const std::string expected = Run(Recipe(), options).at("model.safetensors");
  fixture::Merge(Recipe(), place_ / "one.safetensors.zst", options);
  EXPECT_TRUE(Decompressed(fixture::FileText(place_ / "one.safetensors.zst")) == expected);
  const std::string recipe = Recipe("output = {compress = 'planes'}\n");
  for (const char* name : {"one.safetensors", "two.safetensors.zst"}) {
    const Error error = fixture::ErrorOf([&] { fixture::Merge(recipe, place_ / name, options); });
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_NE(error.hint().find(".safetensors.planes.zst"), std::string::npos) << error.what();
  }
}

TEST_P(Ordered, AFullDisk) {
  const std::string recipe = Recipe("output = {compress = 'zstd'}\n"), out = place_ / "out";
  PlanOptions options = ManyOptions().front();
  options.threads = 3;
  int writes = 0, failures = 0;
  {
    fixture::FaultyOs os;
    fixture::Merge(recipe, out, options);
    writes = os.calls(fixture::FaultyOs::kPwrite);
    std::filesystem::remove_all(out);
  }
  ASSERT_GT(writes, 10);
  for (int nth = 1; nth <= writes; ++nth) {
    SCOPED_TRACE(nth);
    fixture::FaultyOs os;
    os.Fail(fixture::FaultyOs::kPwrite, ENOSPC, nth);
    try {
      fixture::Merge(recipe, out, options);
      EXPECT_LT(os.calls(fixture::FaultyOs::kPwrite), nth);   // how many come early, and are written twice, varies
      std::filesystem::remove_all(out);
    } catch (const Error& error) {
      ++failures;
      EXPECT_EQ(error.code(), ErrorCode::kIo);
      EXPECT_NE(std::string(error.what()).find("space"), std::string::npos) << error.what();
    }
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
  }
  EXPECT_GT(failures, 10);
}

// Entries that are small wherever a sample looks (runs of 64 lanes, evenly over the tensor) and large elsewhere: its
// bracket misses, and the tensor is read again while those behind it leave in order.
std::vector<StoredTensor> WithMisleadingEntries(const std::vector<StoredTensor>& base, uint64_t seed) {
  test::Random random(seed);
  std::vector<StoredTensor> model;
  for (const StoredTensor& tensor : base) {
    const std::vector<float> lanes = LanesOf(tensor);
    const size_t stride = std::max<size_t>(lanes.size() / 1024, 64);
    std::vector<double> values(lanes.begin(), lanes.end());
    for (size_t i = 0; i < values.size(); ++i)
      values[i] += (tensor.name.starts_with("misled") && i % stride < 64 ? 1e-4 : 0.1) * random.Normal();
    model.push_back(Floats(tensor.name, tensor.type, tensor.shape, values));
  }
  return model;
}

TEST(OrderedAfterAFailedDraft, TheSameBytes) {
  const fixture::TemporaryDirectory place;
  test::Random random(6);
  std::vector<StoredTensor> base;
  for (const auto& [name, n] : std::vector<std::pair<std::string, size_t>>{
           {"misled.1", 1 << 20}, {"b", 200'000}, {"misled.2", 1 << 19}, {"c", 300'000}, {"a", 70'000}}) {
    std::vector<double> values(n);
    std::generate(values.begin(), values.end(), [&] { return random.Normal(); });
    base.push_back(Floats(name, DType::kF32, {n}, values));
  }
  fixture::WriteCheckpoint(place, "base", base);
  for (uint64_t seed : {1, 2})
    fixture::WriteCheckpoint(place, fmt::format("m{}", seed), WithMisleadingEntries(base, seed));
  const auto recipe = [&](const std::string& output) {
    return place.Write("recipe.toml",
                       fmt::format("method = 'ties'\nbase = '{0}/base'\n{1}[parameters]\ndensity = 0.2\n"
                                   "[[models]]\npath = '{0}/m1'\n[[models]]\npath = '{0}/m2'\n", place.path(), output));
  };
  fixture::Merge(recipe(""), place / "plain", {.memory = 512 * kMiB, .threads = 2, .least_sampled = UINT64_MAX});
  const std::string expected = fixture::FileText(place / "plain/model.safetensors");
  for (int threads : {1, 4})
    for (uint64_t tile : {65'536, 262'144}) {
      SCOPED_TRACE(testing::Message() << threads << " threads, " << tile << " elements");
      const PlanOptions options{.memory = 512 * kMiB, .threads = threads, .tile_elements = tile};
      const Plan plan = fixture::PlanOf(recipe(""), options);
      const auto drafted = [](const PlannedScope& scope) { return scope.approach == Approach::kDraft; };
      ASSERT_EQ(std::count_if(plan.scopes.begin(), plan.scopes.end(), drafted), 4);
      // Both drafts fail: histograms in two rounds, and the merge, read base and models again.
      const uint64_t read = plan.totals.bytes_read + 3 * 3 * 4 * ((1 << 20) + (1 << 19));
      const std::string path = place / "stream.safetensors";
      EXPECT_EQ(Streamed(recipe(""), path, options).bytes_read, read);
      EXPECT_TRUE(fixture::FileText(path) == expected);
      for (const std::string mode : {"zstd", "planes"}) {
        const std::string file = place / ("one.safetensors" + std::string(mode == "zstd" ? ".zst" : ".planes.zst"));
        const std::string compressing = recipe("output = {compress = '" + mode + "'}\n");
        EXPECT_EQ(fixture::Merge(compressing, file, options, true).bytes_read, read) << mode;
        EXPECT_TRUE(PlainText(file) == expected) << mode;
      }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, Ordered,
    testing::Values("method = 'ties'\n[parameters]\ndensity = 0.37",
                    "method = 'ties'\n[parameters]\ndensity = 0.37\nscope = 'model'", "method = 'task_arithmetic'",
                    "method = 'task_arithmetic'\nlayer_scale = {beta = 0.5}",
                    "method = 'della'\n[parameters]\ndensity = 0.5"));

}  // namespace
}  // namespace braid
