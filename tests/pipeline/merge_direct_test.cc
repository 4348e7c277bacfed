// Merges that read directly: the same bytes as through maps, and what happens when reads fail.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/io/faulty_reads.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_scenario.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::FaultyReads;
using fixture::Floats;
using fixture::kMiB;

std::map<std::string, std::string> MergedFiles(const std::string& recipe, const std::string& out, PlanOptions options,
                                               ReadMode mode) {
  options.read = mode;
  return fixture::MergedFiles(recipe, out, options);
}

// Random recipes over random tensors; what is tried besides is threads, tiles, budgets, and the dtypes of the sources.
TEST(MergeDirect, GivesTheSameBytesAsMapped) {
  test::Random random;
  fixture::ForRandomScenarios(20, random, [&](const fixture::WrittenScenario& drawn) {
    PlanOptions options{.memory = fixture::kGiB, .threads = 1};
    const auto expected = MergedFiles(drawn.recipe, drawn.out, options, ReadMode::kMapped);
    options.threads = static_cast<int>(1 + random.Below(8));
    options.tile_elements = random.OneOf<uint64_t>({65'536, 131'072, 1'048'576});
    fixture::ExpectSameFiles(expected, MergedFiles(drawn.recipe, drawn.out, options, ReadMode::kDirect));
    options.tile_elements = 0;
    options.memory = fixture::PlanOf(drawn.recipe, options).memory.least;
    fixture::ExpectSameFiles(expected, MergedFiles(drawn.recipe, drawn.out, options, ReadMode::kDirect));
  });
}

std::vector<double> Noise(test::Random& random, size_t n) {
  std::vector<double> values(n);
  for (double& value : values) value = random.Normal();
  return values;
}

// Tensors of several tiles and of less than a block, at offsets that are multiples of nothing, in files that end
// within a block.
class DirectFamily : public testing::Test {
 protected:
  DirectFamily() : random_(20'251'122) {
    const std::vector<std::pair<std::string, size_t>> sizes = {
        {"a", 400'003}, {"b", 1}, {"c", 3}, {"d", 2047}, {"e", 65'536}, {"f", 300'001}, {"g", 7}};
    const auto write = [&](const std::string& name, DType type, size_t shards) {
      std::vector<fixture::StoredTensor> tensors;
      for (const auto& [tensor, n] : sizes) tensors.push_back(Floats(tensor, type, {n}, Noise(random_, n)));
      fixture::WriteCheckpoint(place_, name, tensors, shards);
    };
    write("base", DType::kBF16, 1);
    write("half", DType::kF16, 3);
    write("full", DType::kF32, 2);
  }

  std::string Recipe(const std::string& scope = "tensor") {
    std::string text = "method = 'ties'\nbase = '" + place_ / "base" +
                       "'\ndtype = 'bfloat16'\n[parameters]\ndensity = 0.3\nscope = '" + scope + "'\n";
    for (const char* model : {"half", "full"}) text += "[[models]]\npath = '" + place_ / model + "'\n";
    return place_.Write("recipe.toml", text);
  }
  static PlanOptions Options() {
    return {.memory = 64 * kMiB, .threads = 3, .shard_bytes = 1'500'000, .tile_elements = 65'536};
  }
  std::string out() const { return place_ / "out"; }
  std::map<std::string, std::string> Run(const std::string& recipe, const PlanOptions& options, ReadMode mode) {
    return MergedFiles(recipe, out(), options, mode);
  }

  Error DirectError(uint64_t memory = 64 * kMiB) {
    PlanOptions options = Options();
    options.read = ReadMode::kDirect, options.memory = memory;
    const Error error = fixture::ErrorOf([&] { fixture::Merge(Recipe(), out(), options); });
    EXPECT_FALSE(std::filesystem::exists(out()));
    EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
    return error;
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
};

TEST_F(DirectFamily, GivesTheSameBytesAsMapped) {
  for (const char* scope : {"tensor", "model"}) {
    const std::string recipe = Recipe(scope);
    const auto expected = Run(recipe, Options(), ReadMode::kMapped);
    ASSERT_GE(expected.size(), 5u);
    for (int threads : {1, 2, 8})
      for (uint64_t tile : {65'536, 131'072, 1'048'576}) {
        PlanOptions options = Options();
        options.threads = threads, options.tile_elements = tile;
        SCOPED_TRACE(testing::Message() << scope << " scope, " << threads << " threads, " << tile << " elements");
        fixture::ExpectSameFiles(expected, Run(recipe, options, ReadMode::kDirect));
        options.tile_elements = 0;
        options.memory = fixture::PlanOf(recipe, options).memory.least;
        fixture::ExpectSameFiles(expected, Run(recipe, options, ReadMode::kDirect));
      }
  }
}

TEST_F(DirectFamily, ReadsPastThePageCacheOrEvictsWhatItRead) {
  const auto expected = Run(Recipe(), Options(), ReadMode::kMapped);
  bool direct = false;
  {
    FaultyReads os;
    fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kDirect));
    EXPECT_GT(os.reads(), 20);
    direct = os.direct_reads() > 0;  // else this file system has no O_DIRECT
    if (direct) {
      EXPECT_EQ(os.direct_reads(), os.reads());
    }
  }
  {
    FaultyReads os;
    os.refuse_direct_open = true;
    fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kDirect));
    EXPECT_EQ(os.direct_reads(), 0);
    EXPECT_GE(os.evictions(), 6);  // one at least for each file
  }
  if (!direct) return;
  FaultyReads os;
  os.refuse_direct_read = true;
  fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kDirect));
  EXPECT_LT(os.direct_reads(), os.reads());
}

TEST_F(DirectFamily, OnANetworkFileSystemReadsDirectlyByItself) {
  const auto expected = Run(Recipe(), Options(), ReadMode::kMapped);
  FaultyReads os;
  fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kMapped));
  EXPECT_EQ(os.reads(), 0);
  os.magic = 0x6969;
  fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kAuto));
  EXPECT_GT(os.reads(), 20);
}

TEST_F(DirectFamily, ReadsThatStopShort) {
  const auto expected = Run(Recipe(), Options(), ReadMode::kMapped);
  for (size_t most : {1000, 4096, 100'000}) {
    FaultyReads os;
    os.shorten_read = [&](size_t bytes) { return std::min(bytes, most); };
    fixture::ExpectSameFiles(expected, Run(Recipe(), Options(), ReadMode::kDirect));
  }
}

TEST_F(DirectFamily, ADiskThatCannotRead) {
  int reads = 0;
  {
    FaultyReads os;
    Run(Recipe(), Options(), ReadMode::kDirect);
    reads = os.reads();
  }
  ASSERT_GT(reads, 20);
  for (int nth = 1; nth <= reads; ++nth) {
    SCOPED_TRACE(nth);
    FaultyReads os;
    os.fail_from = nth;
    const Error error = DirectError();
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(error.path(), "");
  }
}

TEST_F(DirectFamily, AnInputThatShrinks) {
  const std::string victim = place_ / "base/model.safetensors";
  for (int nth : {1, 5, 12}) {
    SCOPED_TRACE(nth);
    const std::string whole = fixture::FileText(victim);
    FaultyReads os;
    os.before_read = [&](int n) {
      if (n != nth) return;
      EXPECT_EQ(truncate(victim.c_str(), 5000), 0);
    };
    PlanOptions options = Options();
    const Error error = DirectError(fixture::PlanOf(Recipe(), options).memory.least);
    EXPECT_EQ(error.code(), ErrorCode::kInputChanged);
    EXPECT_EQ(error.path(), victim);
    place_.Write("base/model.safetensors", whole);
  }
}

TEST_F(DirectFamily, AnInputThatIsWrittenTo) {
  const std::string victim = place_ / "base/model.safetensors";
  FaultyReads os;
  os.before_read = [&](int n) {
    if (n != 3) return;
    std::fstream file(victim, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-4, std::ios::end);
    file << "abcd";
  };
  const Error error = DirectError();
  EXPECT_EQ(error.code(), ErrorCode::kInputChanged);
  EXPECT_EQ(error.path(), victim);
}

// Reads that take long must not keep an interrupted run: what is queued is dropped.
TEST_F(DirectFamily, AnInterrupt) {
  int all_reads = 0;
  {
    FaultyReads os;
    Run(Recipe(), Options(), ReadMode::kDirect);
    all_reads = os.reads();
  }
  FaultyReads os;
  std::atomic<int> interrupt{0};
  os.before_read = [&](int n) {
    if (n < 3) return;
    interrupt = 2;
    usleep(150'000);  // the flag is looked at every 50 ms
  };
  const fixture::Watchdog watchdog;
  Progress progress;
  PlanOptions options = Options();
  options.read = ReadMode::kDirect;
  const Error error = fixture::ErrorOf([&] {
    RunMerge(Recipe(), {.out = out(), .plan = options, .quiet = true}, interrupt, &progress);
  });
  EXPECT_EQ(error.code(), ErrorCode::kInterrupted);
  EXPECT_LT(os.reads(), all_reads / 2);
  EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
}

}  // namespace
}  // namespace braid
