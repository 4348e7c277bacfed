// Merges with a statistics cache: the same bytes as without one, whatever the cache holds, and fewer of them read.
#include "pipeline/statistics_cache.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "tests/io/faulty_os.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_scenario.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using fixture::Floats;
using fixture::kGiB;
using fixture::StoredTensor;

constexpr uint64_t kSmall = 5 << 20;   // too little for large tensors to stay in memory

std::vector<double> Coarse(test::Random& random, size_t n) {
  std::vector<double> values(n);
  for (double& value : values) value = (static_cast<double>(random.Below(65)) - 32) / 64;
  return values;
}

// Many entries share each magnitude, so quotas are handed out.
StoredTensor Changed(test::Random& random, const StoredTensor& base) {
  const std::vector<float> lanes = fixture::LanesOf(base);
  std::vector<double> values = Coarse(random, lanes.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] += lanes[i];
  return Floats(base.name, base.type, base.shape, values);
}

void Flip(const std::string& path, uint64_t at, unsigned char bits) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const char byte = static_cast<char>(file.get() ^ bits);
  file.seekp(static_cast<std::streamoff>(at)).put(byte);
  ASSERT_TRUE(file.good());
}

struct Outcome {
  std::map<std::string, std::string> files;
  MergeReport report;
};

class StatisticsCacheTest : public testing::Test {
 protected:
  StatisticsCacheTest() {
    for (const auto& [name, n] : {std::pair<std::string, uint64_t>{"model.large", 400'003}, {"model.block", 65'537},
                                  {"model.small", 1000}, {"model.twin0", 300},
                                  {"model.twin1", 300}, {"model.one", 1}}) {
      base_.push_back(Floats(name, DType::kF32, {n}, Coarse(random_, n)));
      a_.push_back(Changed(random_, base_.back()));
      b_.push_back(Changed(random_, base_.back()));
    }
  }
  void Write() {
    fixture::WriteCheckpoint(place_, "base", base_, 2);
    fixture::WriteCheckpoint(place_, "a", a_, 1);
    fixture::WriteCheckpoint(place_, "b", b_, 2);
    Age(place_ / "base"), Age(place_ / "a"), Age(place_ / "b");
  }
  // Files of this very moment are not trusted.
  static void Age(const std::string& directory) {
    for (const auto& entry : fs::recursive_directory_iterator(directory))
      fs::last_write_time(entry, fs::file_time_type::clock::now() - std::chrono::hours(1));
  }

  std::string Recipe(const std::string& weight_a, const std::string& weight_b, double density,
                     const std::string& more = "") const {
    return place_.Write("recipe.toml", "method = 'ties'\nbase = '" + place_ / "base" +
                                           "'\n[parameters]\ndensity = " + std::to_string(density) + "\n" + more +
                                           "\n[[models]]\npath = '" + place_ / "a" + "'\nweight = " + weight_a +
                                           "\n[[models]]\npath = '" + place_ / "b" + "'\nweight = " + weight_b + "\n");
  }
  PlanOptions Options(uint64_t memory, bool cached) const {
    PlanOptions options{.memory = memory, .threads = 2};
    if (cached) options.cache = place_ / "cache";
    return options;
  }
  Outcome Run(const std::string& recipe, const PlanOptions& options) const {
    Outcome outcome;
    outcome.report = fixture::Merge(recipe, place_ / "out", options);
    outcome.files = fixture::FilesOf(place_ / "out");
    fs::remove_all(place_ / "out");
    return outcome;
  }
  // The same merge with and without the cache; returns the one with.
  Outcome RunBoth(const std::string& recipe, uint64_t memory = kGiB) const {
    const Outcome plain = Run(recipe, Options(memory, false));
    const uint64_t planned = fixture::PlanOf(recipe, Options(memory, true)).totals.bytes_read;
    Outcome cached = Run(recipe, Options(memory, true));
    fixture::ExpectSameFiles(plain.files, cached.files);
    EXPECT_EQ(plain.report.result.entries, cached.report.result.entries);
    EXPECT_EQ(plain.report.result.kept, cached.report.result.kept);
    EXPECT_EQ(plain.report.result.counts.conflicts, cached.report.result.counts.conflicts);
    EXPECT_EQ(planned, cached.report.bytes_read);
    return cached;
  }
  static uint64_t BytesOf(const std::vector<StoredTensor>& tensors) {
    uint64_t bytes = 0;
    for (const StoredTensor& tensor : tensors) bytes += tensor.bytes.size();
    return bytes;
  }
  uint64_t OneRead() const { return BytesOf(base_) + BytesOf(a_) + BytesOf(b_); }
  // Models of scopes whose thresholds are known, and those of which at least a histogram is.
  std::pair<int, int> Known(const std::string& recipe, uint64_t memory = kGiB) const {
    int thresholds = 0, bins = 0;
    for (const PlannedScope& scope : fixture::PlanOf(recipe, Options(memory, true)).scopes)
      for (const ModelStatistics& known : scope.known) thresholds += known.has_threshold, bins += known.has_bin;
    return {thresholds, bins};
  }
  std::vector<std::string> CacheFiles() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(place_ / "cache")) files.push_back(entry.path().string());
    std::sort(files.begin(), files.end());
    return files;
  }
  static bool Warns(const std::vector<std::string>& warnings) {
    return std::any_of(warnings.begin(), warnings.end(),
                       [](const std::string& w) { return w.find("statistics") != w.npos; });
  }

  test::Random random_{20'260'904};
  fixture::TemporaryDirectory place_;
  std::vector<StoredTensor> base_, a_, b_;
};

constexpr const char* kVariants[] = {"", "scope = 'model'", "rescale = true", "scope = 'model'\nrescale = true",
                                     "ties_at_threshold = 'keep'", "zero_sign = 'majority'",
                                     "scope = 'model'\nties_at_threshold = 'keep'\nelect = 'count'"};

TEST_F(StatisticsCacheTest, SameBytesWithOtherWeightsAndDensities) {
  Write();
  for (const char* more : kVariants)
    for (const uint64_t memory : {kSmall, uint64_t{kGiB}}) {
      SCOPED_TRACE(testing::Message() << more << ", " << memory << " bytes");
      fs::remove_all(place_ / "cache");
      RunBoth(Recipe("1.0", "1.0", 0.3, more), memory);
      RunBoth(Recipe("0.3", "-0.8", 0.3, more), memory);
      RunBoth(Recipe("0.3", "0.8", 0.7, more), memory);
      RunBoth(Recipe("0.0", "0.8", 0.3, more), memory);
      RunBoth(Recipe("[0.0, 0.5]", "0.8", 0.2, more), memory);
      RunBoth(Recipe("0.5", "[0.8, 0.0]", 0.2, more), memory);
      if (HasFailure()) return;
    }
}

TEST_F(StatisticsCacheTest, OtherWeightsNeedOneRead) {
  Write();
  for (const char* more : kVariants) {
    const std::string options = more;
    if (options.find("zero_sign") != options.npos) continue;   // what a drawn vote elects depends on the weights
    SCOPED_TRACE(more);
    fs::remove_all(place_ / "cache");
    EXPECT_GT(RunBoth(Recipe("1.0", "1.0", 0.3, more), kSmall).report.bytes_read, OneRead());
    EXPECT_EQ(RunBoth(Recipe("0.2", "0.9", 0.3, more), kSmall).report.bytes_read, OneRead());
    EXPECT_EQ(fixture::PlanOf(Recipe("0.2", "0.9", 0.3, more), Options(kSmall, true)).totals.read_per_round.size(), 1u);
  }
}

TEST_F(StatisticsCacheTest, OtherDensitiesNeedOneReadLess) {
  Write();
  for (const char* more : {"rescale = true", "scope = 'model'\nrescale = true"}) {
    SCOPED_TRACE(more);
    fs::remove_all(place_ / "cache");
    const uint64_t before = RunBoth(Recipe("1.0", "1.0", 0.3, more), kSmall).report.bytes_read;
    const uint64_t after = RunBoth(Recipe("1.0", "1.0", 0.6, more), kSmall).report.bytes_read;
    EXPECT_LE(after + OneRead() * 8 / 10, before);   // small tensors stay in memory anyway
    // Both answers are known now.
    EXPECT_EQ(RunBoth(Recipe("0.5", "1.0", 0.3, more), kSmall).report.bytes_read, OneRead());
    EXPECT_EQ(RunBoth(Recipe("0.5", "1.0", 0.6, more), kSmall).report.bytes_read, OneRead());
  }
}

TEST_F(StatisticsCacheTest, ARandomMergeAgain) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", static_cast<unsigned long>(seed));
  test::Random random(seed);
  size_t hits = 0;
  for (int i = 0; i < 60; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", merge " << i);
    const fixture::TemporaryDirectory place;
    const auto scenario =
        fixture::RandomScenario(random, random.Chance(0.9) ? "ties" : "task_arithmetic", Syntax::kToml);
    const std::string recipe = fixture::WriteScenario(place, scenario, random);
    for (const auto& entry : fs::recursive_directory_iterator(place / "."))
      if (entry.is_regular_file()) fs::last_write_time(entry, fs::file_time_type::clock::now() - std::chrono::hours(1));
    std::map<std::string, std::string> expected;
    PlanOptions later{.memory = kGiB};
    later.cache = place / "cache";
    for (int run = 0; run < 3; ++run) {
      PlanOptions options{.memory = random.OneOf<uint64_t>({16 << 20, kGiB}), .threads = 2};
      if (run > 0) options.cache = place / "cache";
      fixture::Merge(recipe, place / "out", options);
      const auto files = fixture::FilesOf(place / "out");
      fs::remove_all(place / "out");
      if (run == 0) expected = files;
      fixture::ExpectSameFiles(expected, files);
    }
    for (const PlannedScope& scope : fixture::PlanOf(recipe, later).scopes) hits += !scope.known.empty();
    if (HasFailure()) return;
  }
  EXPECT_GT(hits, 60);
}

TEST_F(StatisticsCacheTest, ZeroTaskVectorsAreNotRead) {
  a_[0] = base_[0];
  Write();
  for (const char* more : {"", "rescale = true"}) {
    SCOPED_TRACE(more);
    fs::remove_all(place_ / "cache");
    RunBoth(Recipe("1.0", "1.0", 0.3, more));
    EXPECT_EQ(RunBoth(Recipe("0.5", "1.0", 0.3, more)).report.bytes_read, OneRead() - a_[0].bytes.size());
    // Nobody is left to vote.
    EXPECT_EQ(RunBoth(Recipe("0.5", "0.0", 0.3, more)).report.bytes_read,
              BytesOf(base_) + BytesOf(a_) - a_[0].bytes.size());
  }
}

TEST_F(StatisticsCacheTest, ChangedFilesAreNoticed) {
  Write();
  const std::string recipe = Recipe("1.0", "1.0", 0.3, "scope = 'model'");
  const std::string model = place_ / "a" + "/model.safetensors";
  const auto remembered = [&] {
    RunBoth(recipe);
    EXPECT_EQ(Known(recipe).first, 2);
    return fs::last_write_time(model);
  };
  auto time = remembered();
  fs::last_write_time(model, time - std::chrono::seconds(1));   // touched
  EXPECT_EQ(Known(recipe).first, 1);

  time = remembered();
  const uint64_t records = fs::file_size(CacheFiles().front());
  fs::copy_file(model, model + ".new");   // replaced
  Flip(model + ".new", fs::file_size(model) - 1, 0x40);
  fs::rename(model + ".new", model);
  fs::last_write_time(model, time);
  EXPECT_EQ(Known(recipe).first, 1);

  time = remembered();
  EXPECT_EQ(fs::file_size(CacheFiles().front()), records) << "what is stale is not kept";
  // Written anew in place, and its time set back: two tensors of one shape change places in the header.
  std::string text = fixture::FileText(model);
  const size_t one = text.find("model.twin0"), other = text.find("model.twin1");
  text[one + 10] = '1', text[other + 10] = '0';
  std::fstream(model, std::ios::in | std::ios::out | std::ios::binary) << text;
  fs::last_write_time(model, time);
  EXPECT_EQ(Known(recipe).first, 1);

  time = remembered();   // a header that says the same in another order
  const std::string before = R"("dtype":"F32","shape":[1])", after = R"("shape":[1],"dtype":"F32")";
  text.replace(text.find(before), before.size(), after);
  std::fstream(model, std::ios::in | std::ios::out | std::ios::binary) << text;
  fs::last_write_time(model, time);
  EXPECT_EQ(Known(recipe).first, 1);
  RunBoth(recipe);
}

TEST_F(StatisticsCacheTest, FilesOfThisMomentAreNotTrusted) {
  Write();
  fs::last_write_time(place_ / "a" + "/model.safetensors",
                      fs::file_time_type::clock::now() + std::chrono::hours(1));  // however slow this is
  const std::string recipe = Recipe("1.0", "1.0", 0.3, "scope = 'model'");
  RunBoth(recipe);
  EXPECT_EQ(Known(recipe).first, 1);
}

TEST_F(StatisticsCacheTest, DamageIsNoticed) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", static_cast<unsigned long>(seed));
  test::Random random(seed);
  Write();
  const std::string recipe = Recipe("1.0", "0.5", 0.3, "rescale = true");
  const auto expected = RunBoth(recipe).files;
  const auto complete = Known(recipe);
  ASSERT_EQ(CacheFiles().size(), 2u);
  const std::string path = CacheFiles()[random.Below(2)], good = fixture::FileText(path);
  for (int i = 0; i < 80; ++i) {
    std::string bad = good;
    const size_t at = i < 40 ? static_cast<size_t>(i) : random.Below(good.size());   // every byte of the header
    if (i < 70) bad[at] = static_cast<char>(bad[at] ^ (1 << random.Below(8)));
    else if (i < 75) bad.resize(at);
    else bad.append(at, 'x');
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", damage " << i << " at byte " << at);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bad;
    const Plan plan = fixture::PlanOf(recipe, Options(kGiB, true));
    const bool version = i < 70 && at >= 8 && at < 12;
    EXPECT_EQ(Warns(plan.warnings), !version);
    EXPECT_LT(Known(recipe).first, complete.first);
    if (i % 8 == 0) {   // merges go on, and mend it
      fixture::ExpectSameFiles(expected, Run(recipe, Options(kGiB, true)).files);
      EXPECT_EQ(Known(recipe), complete);
    }
    if (HasFailure()) return;
  }
}

// A file whose checksum is right, but not what it says.
TEST_F(StatisticsCacheTest, NonsenseIsNotUsed) {
  Write();
  const std::string recipe = Recipe("1.0", "0.5", 0.3);
  RunBoth(recipe);
  const auto rewrite = [&](const std::function<void(StatisticsRecord*)>& spoil) {
    for (const std::string& path : CacheFiles()) {
      std::vector<StatisticsRecord> records;
      StatisticsReader::Open(path)->ForEach([&](const StatisticsRecord& r, std::span<const BinCount> bins) {
        if (bins.empty()) records.push_back(r);
      });
      ASSERT_FALSE(records.empty());
      const auto writer = StatisticsWriter::Open(path);
      for (StatisticsRecord& record : records) spoil(&record), writer->Add(record, {});
      writer->Commit();
    }
  };
  const int before = Known(recipe).first;
  EXPECT_GT(before, 0);
  rewrite([](StatisticsRecord*) {});
  EXPECT_EQ(Known(recipe).first, before);
  const auto spoils = std::vector<std::function<void(StatisticsRecord*)>>{
      [](StatisticsRecord* r) { r->cut_key = 0x7fffffff; },
      [](StatisticsRecord* r) { r->kept = UINT64_MAX; },
      [](StatisticsRecord* r) { r->quota = UINT64_MAX - 1; },
      [](StatisticsRecord* r) { r->asked += 1; },
      [](StatisticsRecord* r) { r->flags ^= StatisticsRecord::kKeepEquals; },
      [](StatisticsRecord* r) { ++r->scope.low64; }};
  for (const auto& spoil : spoils) {
    RunBoth(recipe);
    rewrite(spoil);
    EXPECT_EQ(Known(recipe).first, 0);
  }
  RunBoth(recipe);
}

TEST_F(StatisticsCacheTest, DirectoriesThatCannotBeWritten) {
  Write();
  const std::string recipe = Recipe("1.0", "0.5", 0.3);
  place_.Write("cache", "a file\n");
  EXPECT_TRUE(Warns(RunBoth(recipe).report.warnings));
  fs::remove(place_ / "cache");
  {
    fixture::FaultyOs os;
    os.Fail(fixture::FaultyOs::kMkdir, EACCES, 2);   // the first one is that of the output
    EXPECT_TRUE(Warns(Run(recipe, Options(kGiB, true)).report.warnings));
  }
  {
    fixture::FaultyOs os;
    os.Fail(fixture::FaultyOs::kFlock, ENOLCK, 2);
    EXPECT_TRUE(Warns(Run(recipe, Options(kGiB, true)).report.warnings));
  }
  RunBoth(recipe);
  EXPECT_GT(Known(recipe).first, 0);
}

TEST_F(StatisticsCacheTest, WhileAnotherRunWritesNothingIsKept) {
  Write();
  const std::string recipe = Recipe("1.0", "0.5", 0.3);
  RunBoth(recipe);
  const std::string path = CacheFiles().front();
  const auto other = StatisticsWriter::Open(path);
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(StatisticsWriter::Open(path), nullptr);
  const std::string next = Recipe("1.0", "0.5", 0.4);
  EXPECT_FALSE(Warns(RunBoth(next).report.warnings));
  other->Commit();   // empty
  RunBoth(next);
  const int both = Known(next).first;
  EXPECT_GT(both, 0);
  EXPECT_GE(both, Known(recipe).first);
}

TEST_F(StatisticsCacheTest, BlobsOfTheHubAreKnownByTheirNames) {
  Write();
  const std::string hash(64, 'a'), other(64, 'b'), commit(40, 'c');
  const fs::path model = place_ / "models--o--n";
  fs::create_directories(model / "blobs");
  fs::create_directories(model / "snapshots" / commit);
  fs::rename(place_ / "a" + "/model.safetensors", model / "blobs" / hash);
  const fs::path link = model / "snapshots" / commit / "model.safetensors";
  fs::create_symlink("../../blobs/" + hash, link);
  fs::rename(place_ / "a" + "/config.json", model / "snapshots" / commit / "config.json");
  fs::remove_all(place_ / "a");
  std::string text = fixture::FileText(Recipe("1.0", "0.5", 0.3, "scope = 'model'"));
  text.replace(text.find(place_ / "a'"), (place_ / "a'").size(), (model / "snapshots" / commit).string() + "'");
  const std::string recipe = place_.Write("recipe.toml", text);
  RunBoth(recipe);
  EXPECT_EQ(Known(recipe).first, 2);
  fs::last_write_time(model / "blobs" / hash, fs::file_time_type::clock::now());
  EXPECT_EQ(Known(recipe).first, 2) << "the time says nothing";
  fs::rename(model / "blobs" / hash, model / "blobs" / other);
  fs::remove(link);
  fs::create_symlink("../../blobs/" + other, link);
  EXPECT_EQ(Known(recipe).first, 1) << "another blob";
}

}  // namespace
}  // namespace braid
