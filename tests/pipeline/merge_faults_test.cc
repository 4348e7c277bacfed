// Merges on a system that fails: the right error, nothing left behind, and never a hang.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/io/faulty_os.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::FaultyOs;
using fixture::Floats;
using fixture::kMiB;

std::vector<double> Ramp(size_t n, double step) {
  std::vector<double> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = step * static_cast<double>(i % 1013);
  return values;
}

class MergeFaults : public testing::Test {
 protected:
  MergeFaults() {
    const auto write = [&](const char* name, double step, size_t shards) {
      fixture::WriteCheckpoint(place_, name,
                               {Floats("a", DType::kF32, {400'000}, Ramp(400'000, step)),
                                Floats("b", DType::kF32, {300'000}, Ramp(300'000, 2 * step)),
                                Floats("c", DType::kF32, {10}, Ramp(10, step))},
                               shards);
    };
    write("base", 0.001, 1);
    write("tuned", 0.0013, 2);
    place_.Write("base/tokenizer.json", "{}\n");
  }

  std::string Recipe(const std::string& scope = "tensor") {
    return place_.Write("recipe.toml", "method = 'ties'\nbase = '" + place_ / "base" +
                                           "'\n[parameters]\ndensity = 0.3\nscope = '" + scope +
                                           "'\n[[models]]\npath = '" + place_ / "tuned" + "'\n");
  }

  // Many small tiles, so that there is much to fail between.
  static PlanOptions Options() {
    return {.memory = 64 * kMiB, .threads = 3, .shard_bytes = 1'500'000, .tile_elements = 65'536};
  }
  std::string out() const { return place_ / "out"; }

  void ExpectNothingLeft() {
    EXPECT_FALSE(std::filesystem::exists(out()));
    EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
  }

  // Merges in spite of the faults set; the error it gives.
  Error MergeError() {
    const Error error = fixture::ErrorOf([&] { fixture::Merge(Recipe(), out(), Options()); });
    ExpectNothingLeft();
    return error;
  }

  fixture::TemporaryDirectory place_;
};

TEST_F(MergeFaults, AFullDisk) {
  int writes = 0;
  {
    FaultyOs os;
    fixture::Merge(Recipe(), out(), Options());
    writes = os.calls(FaultyOs::kPwrite);
    std::filesystem::remove_all(out());
  }
  ASSERT_GT(writes, 10);
  for (int nth = 1; nth <= writes; ++nth) {
    SCOPED_TRACE(nth);
    FaultyOs os;
    os.Fail(FaultyOs::kPwrite, ENOSPC, nth);
    const Error error = MergeError();
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("space"), std::string::npos) << error.what();
  }
}

TEST_F(MergeFaults, NoSpaceToReserve) {
  FaultyOs os;
  os.Fail(FaultyOs::kFallocate, ENOSPC, 2);
  EXPECT_EQ(MergeError().code(), ErrorCode::kIo);
}

TEST_F(MergeFaults, AFileSystemWithoutFallocate) {
  fixture::Merge(Recipe(), out(), Options());
  const auto expected = fixture::FilesOf(out());
  std::filesystem::remove_all(out());
  FaultyOs os;
  os.Fail(FaultyOs::kFallocate, EOPNOTSUPP, 1);
  fixture::Merge(Recipe(), out(), Options());
  EXPECT_GT(os.calls(FaultyOs::kFtruncate), 0);
  fixture::ExpectSameFiles(expected, fixture::FilesOf(out()));
}

// Whichever fsync fails. After the last one, of the directory that OUT lies in, OUT is there, and complete.
TEST_F(MergeFaults, AnFsyncThatFails) {
  fixture::Merge(Recipe(), out(), Options());
  const auto expected = fixture::FilesOf(out());
  std::filesystem::remove_all(out());
  int failures = 0;
  for (int nth = 1;; ++nth) {
    SCOPED_TRACE(nth);
    FaultyOs os;
    os.Fail(FaultyOs::kFsync, EIO, nth, nth);
    try {
      fixture::Merge(Recipe(), out(), Options());
      EXPECT_LT(os.calls(FaultyOs::kFsync), nth);
      break;
    } catch (const Error& error) {
      ++failures;
      EXPECT_EQ(error.code(), ErrorCode::kIo);
    }
    EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
    if (!std::filesystem::exists(out())) continue;
    EXPECT_EQ(os.calls(FaultyOs::kRename), 1) << "OUT appeared without the rename";
    fixture::ExpectSameFiles(expected, fixture::FilesOf(out()));
    std::filesystem::remove_all(out());
  }
  EXPECT_GT(failures, 5);
}

TEST_F(MergeFaults, ARenameThatFails) {
  FaultyOs os;
  os.Fail(FaultyOs::kRename, EACCES, 1);
  EXPECT_EQ(MergeError().code(), ErrorCode::kIo);
}

TEST_F(MergeFaults, ADirectoryThatCannotBeMade) {
  FaultyOs os;
  os.Fail(FaultyOs::kMkdir, EACCES, 1);
  EXPECT_EQ(MergeError().code(), ErrorCode::kIo);
}

TEST_F(MergeFaults, WritesThatStopShort) {
  fixture::Merge(Recipe(), out(), Options());
  const auto expected = fixture::FilesOf(out());
  const std::vector<std::function<size_t(size_t)>> shorter = {
      [](size_t bytes) { return bytes > 1 ? bytes - 1 : bytes; },
      [](size_t bytes) { return std::min<size_t>(bytes, 4'000); },
      [](size_t bytes) { return bytes > 100'000 ? size_t{100} : bytes; }};
  for (const auto& shorten : shorter) {
    std::filesystem::remove_all(out());
    FaultyOs os;
    os.shorten = shorten;
    fixture::Merge(Recipe(), out(), Options());
    fixture::ExpectSameFiles(expected, fixture::FilesOf(out()));
  }
}

TEST_F(MergeFaults, AWriteOfNothing) {
  FaultyOs os;
  os.shorten = [](size_t) { return size_t{0}; };
  EXPECT_EQ(MergeError().code(), ErrorCode::kIo);
}

TEST_F(MergeFaults, AnInterrupt) {
  for (int nth : {1, 4}) {
    SCOPED_TRACE(nth);
    FaultyOs os;
    std::atomic<int> interrupt{0};
    os.before_pwrite = [&](int n) {
      if (n < nth) return;
      interrupt = 2;
      usleep(150'000);  // the flag is looked at every 50 ms
    };
    const fixture::Watchdog watchdog;
    Progress progress;
    const Error error = fixture::ErrorOf([&] {
      RunMerge(Recipe(), {.out = out(), .plan = Options(), .quiet = true}, interrupt, &progress);
    });
    EXPECT_EQ(error.code(), ErrorCode::kInterrupted);
    ExpectNothingLeft();
  }
}

// --- inputs that change -----------------------------------------------------------------------------------

// An input is cut while the first tiles are written. Ends the process: exit status 0 when all is as it should be.
[[noreturn]] void MergeWhileCutting(const std::string& recipe, const std::string& out, const std::string& victim,
                                    uint64_t memory) {
  FaultyOs os;
  os.before_pwrite = [&](int n) {
    if (n == 1 && truncate(victim.c_str(), 5000) != 0) std::_Exit(9);
  };
  try {
    fixture::Merge(recipe, out,
                   {.memory = memory, .threads = 2, .shard_bytes = 1'500'000, .tile_elements = 65'536});
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    if (error.code() != ErrorCode::kInputChanged || error.path() != victim) std::_Exit(2);
    if (std::filesystem::exists(out) || std::filesystem::exists(out + ".partial")) std::_Exit(3);
    std::_Exit(0);
  }
  std::_Exit(1);
}

// In a process of its own: what the handler of SIGBUS has seen stays with a process.
TEST_F(MergeFaults, AnInputThatShrinks) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  fixture::WriteCheckpoint(place_, "tuned", {Floats("a", DType::kF32, {400'000}, Ramp(400'000, 0.0013)),
                                             Floats("b", DType::kF32, {300'000}, Ramp(300'000, 0.0026)),
                                             Floats("c", DType::kF32, {10}, Ramp(10, 0.0013))});
  const std::string victim = place_ / "tuned" + "/model.safetensors";
  PlanOptions options = Options();
  options.threads = 2, options.memory = 64 * kMiB;
  const uint64_t least = fixture::PlanOf(Recipe(), options).memory.least;
  EXPECT_EXIT(MergeWhileCutting(Recipe(), out(), victim, least), testing::ExitedWithCode(0), "shrank");
}

TEST_F(MergeFaults, AnInputThatIsWrittenTo) {
  const std::string victim = place_ / "base/model.safetensors";
  FaultyOs os;
  os.before_pwrite = [&](int n) {
    if (n != 2) return;
    std::fstream file(victim, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-4, std::ios::end);
    file << "abcd";
  };
  const Error error = MergeError();
  EXPECT_EQ(error.code(), ErrorCode::kInputChanged);
  EXPECT_EQ(error.path(), victim);
}

}  // namespace
}  // namespace braid
