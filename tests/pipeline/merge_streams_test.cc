// Merges of streams: the same bytes as of files, what is spooled is what the plan says, and streams that are not what
// they should be.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/io/faulty_os.h"
#include "tests/io/feeder.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_scenario.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Feeder;
using fixture::Floats;
using fixture::kMiB;
using fixture::StoredTensor;

// Counts what is written to files without a name.
class SpoolCounter : public fixture::FaultyOs {
 public:
  uint64_t bytes() const { return bytes_; }
  int Open(const char* path, int flags, mode_t mode) override {
    const int fd = FaultyOs::Open(path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) spools_.insert(fd);
    return fd;
  }
  int Close(int fd) override {
    spools_.erase(fd);
    return FaultyOs::Close(fd);
  }
  ssize_t Pwrite(int fd, const void* buffer, size_t bytes, off_t offset) override {
    const ssize_t put = FaultyOs::Pwrite(fd, buffer, bytes, offset);
    if (spools_.contains(fd)) bytes_ += static_cast<uint64_t>(std::max<ssize_t>(put, 0));
    return put;
  }

 private:
  std::set<int> spools_;   // all are opened before, and closed behind everything else
  std::atomic<uint64_t> bytes_{0};
};

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
    text.replace(at, what.size(), by);
  return text;
}

// The weights alone: recipes, fingerprints and what comes from the donor's directory differ.
std::map<std::string, std::string> WeightsOf(const std::string& out) {
  std::map<std::string, std::string> files = fixture::FilesOf(out);
  std::erase_if(files, [](const auto& file) { return !file.first.ends_with(".safetensors"); });
  std::filesystem::remove_all(out);
  return files;
}

// By name: what only other models than the donor have comes in their order.
std::map<std::string, StoredTensor> TensorsOf(const std::string& out) {
  std::map<std::string, StoredTensor> tensors;
  for (StoredTensor& tensor : fixture::ReadTensors(out)) tensors[tensor.name] = std::move(tensor);
  std::filesystem::remove_all(out);
  return tensors;
}

// Random recipes; some of the sources are streams, in an order of their own unless the output has theirs.
TEST(MergeStreams, GiveTheSameBytesAsFiles) {
  test::Random random;
  uint64_t spooled = 0, unspooled = 0;
  fixture::ForRandomScenarios(25, random, [&](const fixture::WrittenScenario& drawn) {
    const fixture::TemporaryDirectory& place = drawn.place;
    const fixture::Scenario& scenario = drawn.scenario;
    const std::string &recipe = drawn.recipe, &out = drawn.out;
    PlanOptions options{.memory = fixture::kGiB, .threads = 1};
    fixture::Merge(recipe, out, options);
    const auto expected = TensorsOf(out);

    std::vector<std::pair<std::string, std::string>> streams;   // path, bytes
    std::string text = fixture::FileText(recipe);
    const auto stream = [&](const fixture::Source& source, bool is_donor) {
      std::vector<StoredTensor> tensors = fixture::ReadTensors(place / source.name);
      if (!is_donor && random.Below(2) == 0) std::shuffle(tensors.begin(), tensors.end(), random);
      streams.emplace_back(place / (source.name + ".fifo"), fixture::FileOf(tensors));
      text = Replaced(text, "\"" + place / source.name + "\"", "\"" + streams.back().first + "\"");
      text = Replaced(text, "'" + place / source.name + "'", "'" + streams.back().first + "'");
    };
    const bool base_leads = scenario.has_base;
    if (scenario.has_base && random.Below(2) == 0) stream(scenario.base, true);
    for (size_t m = 0; m < scenario.models.size(); ++m)
      if (random.Below(2) == 0) stream(scenario.models[m], m == 0 && !base_leads);
    const std::string with_streams = place.Write("streams.toml", text);

    const auto run = [&](const PlanOptions& how) {
      SpoolCounter os;
      std::vector<std::unique_ptr<Feeder>> feeders;
      for (const auto& [path, bytes] : streams)
        feeders.push_back(std::make_unique<Feeder>(path, bytes, 1 + random.Below(300'000)));
      const MergeReport report = fixture::Merge(with_streams, out, how);
      EXPECT_EQ(report.totals.bytes_spooled, os.bytes());
      for (size_t f = 0; f < feeders.size(); ++f) EXPECT_EQ(feeders[f]->written(), streams[f].second.size());
      EXPECT_TRUE(expected == TensorsOf(out));
      (os.bytes() > 0 ? spooled : unspooled) += 1;
    };
    run(options);
    options.threads = static_cast<int>(1 + random.Below(8));
    options.tile_elements = random.OneOf<uint64_t>({65'536, 131'072, 1'048'576});
    options.least_sampled = random.OneOf<uint64_t>({1, 100'000});
    run(options);
    options.tile_elements = 0;
    options.memory = fixture::PlanOf(recipe, options).memory.least + 2 * kMiB;
    run(options);
  });
  EXPECT_GT(spooled, 5u);
  EXPECT_GT(unspooled, 5u);
}

// Three models and their base, of tensors of several tiles and of less than a block.
class StreamFamily : public testing::Test {
 protected:
  StreamFamily() : random_(20'251'123) {
    const std::vector<std::pair<std::string, size_t>> sizes = {
        {"a", 400'003}, {"b", 1}, {"c", 3}, {"d", 2047}, {"e", 65'536}, {"f", 300'001}, {"g", 7}};
    for (const char* name : {"base", "one", "two"}) {
      for (const auto& [tensor, n] : sizes) {
        std::vector<double> values(n);
        for (double& value : values) value = random_.Normal();
        models_[name].push_back(Floats(tensor, DType::kBF16, {n}, values));
      }
      fixture::WriteCheckpoint(place_, name, models_[name]);
    }
  }

  std::string Recipe(const std::string& base, const std::string& one, const std::string& two,
                     const std::string& more = "[parameters]\ndensity = 0.3\n", const std::string& method = "ties") {
    return place_.Write("recipe.toml", "method = '" + method + "'\nbase = '" + place_ / base + "'\n" + more +
                                           "[[models]]\npath = '" + place_ / one + "'\nweight = 0.5\n" +
                                           "[[models]]\npath = '" + place_ / two + "'\nweight = 0.5\n");
  }
  std::string out() const { return place_ / "out"; }
  static PlanOptions Options(uint64_t memory = 256 * kMiB) { return {.memory = memory, .threads = 3}; }

  std::map<std::string, std::string> Run(const std::string& recipe, const PlanOptions& options = Options()) {
    SpoolCounter os;
    const MergeReport report = fixture::Merge(recipe, out(), options);
    spooled_ = os.bytes();
    EXPECT_EQ(spooled_, report.totals.bytes_spooled);
    warnings_ = report.warnings;
    return WeightsOf(out());
  }

  // Of a merge whose model "one" is a stream of these bytes.
  Error ErrorFor(const std::string& bytes, const PlanOptions& options = Options()) {
    const Feeder feeder(place_ / "one.fifo", bytes);
    const std::string recipe = Recipe("base", "one.fifo", "two");
    const Error error = fixture::ErrorOf([&] { fixture::Merge(recipe, out(), options); });
    EXPECT_FALSE(std::filesystem::exists(out()));
    EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
    return error;
  }

  test::Random random_;
  fixture::TemporaryDirectory place_;
  std::map<std::string, std::vector<StoredTensor>> models_;
  uint64_t spooled_ = 0;
  std::vector<std::string> warnings_;
};

TEST_F(StreamFamily, OneStreamInMemoryIsNotSpooled) {
  const auto expected = Run(Recipe("base", "one", "two"));
  const Feeder feeder(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  fixture::ExpectSameFiles(expected, Run(Recipe("base", "one.fifo", "two")));
  EXPECT_EQ(spooled_, 0u);
}

// Too little memory for tensors "a" and "f" to stay between the rounds.
TEST_F(StreamFamily, ATensorThatDoesNotStayIsSpooledAlone) {
  PlanOptions options = Options();
  options.tile_elements = 65'536;
  options.memory = fixture::PlanOf(Recipe("base", "one", "two"), options).memory.least + kMiB;
  const auto expected = Run(Recipe("base", "one", "two"), options);
  const Feeder feeder(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  fixture::ExpectSameFiles(expected, Run(Recipe("base", "one.fifo", "two"), options));
  EXPECT_GE(spooled_, 2 * 400'003u);
  EXPECT_LE(spooled_, 2 * (400'003 + 300'001 + 65'536u));
}

TEST_F(StreamFamily, AMethodWithOneReadIsNeverSpooled) {
  PlanOptions options = Options();
  options.memory = fixture::PlanOf(Recipe("base", "one", "two", "", "task_arithmetic"), options).memory.least;
  const auto expected = Run(Recipe("base", "one", "two", "", "task_arithmetic"), options);
  const Feeder base(place_ / "base.fifo", fixture::FileOf(models_["base"]));
  const Feeder two(place_ / "two.fifo", fixture::FileOf(models_["two"]));
  options.memory += 2 * kMiB;
  fixture::ExpectSameFiles(expected, Run(Recipe("base.fifo", "one", "two.fifo", "", "task_arithmetic"), options));
  EXPECT_EQ(spooled_, 0u);
}

// The output has the donor's order; a stream in another one is read in its own nevertheless, and only a second stream
// in a third order waits.
TEST_F(StreamFamily, StreamsInOtherOrders) {
  const auto expected = Run(Recipe("base", "one", "two"));
  std::reverse(models_["one"].begin(), models_["one"].end());
  {
    const Feeder one(place_ / "one.fifo", fixture::FileOf(models_["one"]));
    fixture::ExpectSameFiles(expected, Run(Recipe("base", "one.fifo", "two")));
    EXPECT_EQ(spooled_, 0u);
  }
  const Feeder one(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  const Feeder two(place_ / "two.fifo", fixture::FileOf(models_["two"]));
  fixture::ExpectSameFiles(expected, Run(Recipe("base", "one.fifo", "two.fifo")));
  EXPECT_GT(spooled_, 0u);
  EXPECT_LE(spooled_, fixture::FileOf(models_["two"]).size());
}

TEST_F(StreamFamily, ModelScopeIsSpooledWhole) {
  const std::string scope = "[parameters]\ndensity = 0.3\nscope = 'model'\n";
  const auto expected = Run(Recipe("base", "one", "two", scope));
  const Feeder one(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  fixture::ExpectSameFiles(expected, Run(Recipe("base", "one.fifo", "two", scope)));
  uint64_t bytes = 0;
  for (const StoredTensor& tensor : models_["one"]) bytes += tensor.bytes.size();
  EXPECT_EQ(spooled_, bytes);
}

// A base that lends a model what it lacks comes once.
TEST_F(StreamFamily, ABaseThatLends) {
  models_["one"].erase(models_["one"].begin());
  place_.Write("one/model.safetensors", fixture::FileOf(models_["one"]));
  const auto expected = Run(Recipe("base", "one", "two", "on_missing = 'base'\n[parameters]\ndensity = 0.3\n"));
  const Feeder base(place_ / "base.fifo", fixture::FileOf(models_["base"]));
  fixture::ExpectSameFiles(expected,
                           Run(Recipe("base.fifo", "one", "two",
                                      "on_missing = 'base'\n[parameters]\ndensity = 0.3\n")));
  EXPECT_EQ(spooled_, 0u);
}

TEST_F(StreamFamily, SideFilesComeFromTheFirstDirectory) {
  const Feeder base(place_ / "base.fifo", fixture::FileOf(models_["base"]));
  fixture::Merge(Recipe("base.fifo", "one", "two"), out(), Options());
  EXPECT_TRUE(std::filesystem::exists(out() + "/config.json"));
  std::filesystem::remove_all(out());
  const Feeder again(place_ / "base.fifo", fixture::FileOf(models_["base"]));
  Run(Recipe("base.fifo", "one/model.safetensors", "two/model.safetensors"));
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("weights alone"), std::string::npos);
}

TEST_F(StreamFamily, ThePlanSaysWhatIsSpooledAndWhy) {
  const Feeder one(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  const Plan plan = fixture::PlanOf(Recipe("base", "one.fifo", "two", "[parameters]\ndensity = 0.3\nscope = 'model'\n"),
                                    Options());
  const Json json = Json::parse(fixture::PlanText(plan));
  ASSERT_EQ(json["streams"].size(), 1u);
  EXPECT_EQ(json["streams"][0]["spooled"].size(), 7u);
  EXPECT_EQ(json["streams"][0]["spooled"][0],
            (Json{{"tensor", "a"}, {"bytes", 800'006}, {"why", "read again"}}));
  EXPECT_EQ(json["bytes_spooled"], json["streams"][0]["bytes_spooled"]);
  EXPECT_EQ(json["sources"][1]["io"], "stream");
  EXPECT_EQ(json["sources"][1]["io_why"], "FIFO");
}

TEST_F(StreamFamily, StreamsThatEndTooEarly) {
  const std::string whole = fixture::FileOf(models_["one"]);
  const uint64_t header = whole.size() - 2 * (400'003 + 1 + 3 + 2047 + 65'536 + 300'001 + 7);
  for (const uint64_t cut : {uint64_t{0}, uint64_t{3}, uint64_t{8}, header / 2, header}) {
    SCOPED_TRACE(cut);
    const Error error = ErrorFor(whole.substr(0, cut));
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    EXPECT_EQ(error.path(), place_ / "one.fifo");
  }
  Error error = ErrorFor(whole.substr(0, header + 800'000));
  EXPECT_EQ(error.code(), ErrorCode::kBadInput);
  EXPECT_EQ(error.tensor(), "a");
  EXPECT_NE(error.message().find("6 of the tensor's 800006 bytes are missing"), std::string::npos) << error.message();
  error = ErrorFor(whole.substr(0, whole.size() - 1));
  EXPECT_EQ(error.tensor(), "g");
  error = ErrorFor(whole + "x");
  EXPECT_EQ(error.code(), ErrorCode::kBadInput);
  EXPECT_NE(error.message().find("goes on after its last tensor"), std::string::npos);
}

TEST_F(StreamFamily, HeadersThatAsk) {
  const auto of = [](const std::string& json) { return fixture::LengthBytes(json.size()) + json; };
  EXPECT_EQ(ErrorFor("not a safetensors file at all").code(), ErrorCode::kBadInput);
  EXPECT_EQ(ErrorFor(fixture::LengthBytes(99'000'000) + "{").code(), ErrorCode::kBadInput);
  EXPECT_EQ(ErrorFor(fixture::LengthBytes(100'000'001) + "{").code(), ErrorCode::kBadInput);
  // Nothing is allocated for tensors that are as long as they say.
  const std::string huge =
      of("{\"a\":{\"dtype\":\"U8\",\"shape\":[1048576,8589934592],\"data_offsets\":[0,9007199254740992]}}");
  EXPECT_NE(ErrorFor(huge).message().find("of the stream"), std::string::npos);
  EXPECT_EQ(ErrorFor(of("{\"a\":{\"dtype\":\"BF16\",\"shape\":[400003],\"data_offsets\":[2,800008]}}")).code(),
            ErrorCode::kBadInput);
}

TEST_F(StreamFamily, AnInterruptEndsTheWaiting) {
  const std::string whole = fixture::FileOf(models_["one"]);
  for (const uint64_t cut : {uint64_t{0}, uint64_t{20}, uint64_t{100'000}}) {
    SCOPED_TRACE(cut);
    const Feeder feeder(place_ / "one.fifo", whole.substr(0, cut), 100'000, true);
    const fixture::Watchdog watchdog;
    std::atomic<int> interrupt{0};
    std::thread later([&] { usleep(200'000), interrupt = 2; });
    Progress progress;
    const Error error = fixture::ErrorOf([&] {
      RunMerge(Recipe("base", "one.fifo", "two"), {.out = out(), .plan = Options(), .quiet = true}, interrupt,
               &progress);
    });
    later.join();
    EXPECT_EQ(error.code(), ErrorCode::kInterrupted);
    EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
  }
}

TEST_F(StreamFamily, OneStreamForTwoSources) {
  const Feeder feeder(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  place_.Link(place_ / "one.fifo", "link");
  const Error error = fixture::ErrorOf([&] { fixture::Merge(Recipe("base", "one.fifo", "link"), out(), Options()); });
  EXPECT_EQ(error.code(), ErrorCode::kUsage);
  EXPECT_NE(error.message().find("being read already"), std::string::npos);
}

// One program writes both, a little to each in turn, as tee does.
TEST_F(StreamFamily, OneWriterForTwoStreams) {
  const auto expected = Run(Recipe("base", "one", "one/model.safetensors", "", "task_arithmetic"));
  const std::string bytes = fixture::FileOf(models_["one"]);
  for (const char* fifo : {"1.fifo", "2.fifo"}) ASSERT_EQ(mkfifo((place_ / fifo).c_str(), 0600), 0);
  std::thread tee([&] {
    std::ofstream one(place_ / "1.fifo", std::ios::binary), two(place_ / "2.fifo", std::ios::binary);
    for (size_t at = 0; at < bytes.size(); at += 30'000)
      for (std::ofstream* to : {&one, &two}) *to << bytes.substr(at, 30'000) << std::flush;
  });
  PlanOptions options = Options();
  options.tile_elements = 400'003 / 65'536 * 65'536 + 65'536;   // far more than a pipe holds
  fixture::ExpectSameFiles(expected, Run(Recipe("base", "1.fifo", "2.fifo", "", "task_arithmetic"), options));
  tee.join();
}

TEST_F(StreamFamily, NothingOfAStreamIsCached) {
  PlanOptions options = Options();
  options.cache = place_ / "cache";
  const auto expected = Run(Recipe("base", "one", "two"), Options());
  for (int i = 0; i < 2; ++i) {
    const Feeder base(place_ / "base.fifo", fixture::FileOf(models_["base"]));
    fixture::ExpectSameFiles(expected, Run(Recipe("base.fifo", "one", "two"), options));
    EXPECT_FALSE(std::filesystem::exists(options.cache));
  }
}

TEST_F(StreamFamily, NoPlaceForTheSpool) {
  const std::string scope = "[parameters]\ndensity = 0.3\nscope = 'model'\n";
  const Feeder feeder(place_ / "one.fifo", fixture::FileOf(models_["one"]));
  SpoolCounter os;
  const fixture::ScopedEnvironment nowhere("TMPDIR", (place_ / "nowhere").c_str());
  const std::string recipe = Recipe("base", "one.fifo", "two", scope);
  const Error error = fixture::ErrorOf([&] { fixture::Merge(recipe, out(), Options()); });
  EXPECT_EQ(error.code(), ErrorCode::kUsage);
  EXPECT_EQ(error.path(), place_ / "nowhere");
  EXPECT_FALSE(std::filesystem::exists(out() + ".partial"));
}

}  // namespace
}  // namespace braid
