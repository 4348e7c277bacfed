// Whole merges against the plain scalar reference, bit for bit.
#include <gtest/gtest.h>

#include "tests/pipeline/merge_scenario.h"

namespace braid {
namespace {

using fixture::Expected;
using fixture::Floats;
using fixture::Scenario;
using fixture::StoredTensor;

void ExpectTensors(const std::vector<StoredTensor>& expected, const std::vector<StoredTensor>& actual) {
  ASSERT_EQ(expected.size(), actual.size());
  for (const StoredTensor& tensor : expected) {
    const auto found = std::find_if(actual.begin(), actual.end(), [&](const auto& a) { return a.name == tensor.name; });
    ASSERT_NE(found, actual.end()) << tensor.name;
    EXPECT_EQ(found->type, tensor.type) << tensor.name;
    EXPECT_EQ(found->shape, tensor.shape) << tensor.name;
    if (found->bytes == tensor.bytes) continue;
    const std::vector<float> want = fixture::LanesOf(tensor), got = fixture::LanesOf(*found);
    ASSERT_EQ(want.size(), got.size()) << tensor.name;
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_EQ(test::ToBits(want[i]), test::ToBits(got[i]))
          << tensor.name << "[" << i << "]: " << want[i] << " expected, got " << got[i];
    ADD_FAILURE() << tensor.name << " differs";
  }
}

PlanOptions RandomOptions(test::Random& random, const std::string& recipe) {
  PlanOptions options{.memory = 4 * fixture::kGiB, .threads = random.OneOf({1, 2, 4})};
  options.shard_bytes = random.OneOf<uint64_t>({1'000, 200'000, 5'000'000'000});
  if (random.Chance(0.5)) options.memory = fixture::PlanOf(recipe, options).memory.least;
  else if (random.Chance(0.5)) options.tile_elements = 65'536;
  return options;
}

// Writes, merges and compares; keeps what the report says honest too.
void Check(const Scenario& scenario, test::Random& random) {
  const fixture::TemporaryDirectory place;
  const std::string recipe = fixture::WriteScenario(place, scenario, random);
  SCOPED_TRACE(fixture::FileText(recipe));
  const MergeReport report = fixture::Merge(recipe, place / "out", RandomOptions(random, recipe));
  const Expected expected = fixture::Reference(scenario);
  ExpectTensors(expected.tensors, fixture::ReadTensors(place / "out"));
  EXPECT_EQ(report.result.counts.conflicts, expected.conflicts);
  EXPECT_EQ(report.result.counts.non_finite.nan, expected.nans);
}

class AgainstReference : public testing::TestWithParam<std::tuple<const char*, Syntax>> {};

TEST_P(AgainstReference, RandomMerges) {
  test::Random random;
  const auto [method, syntax] = GetParam();
  const int rounds = std::string(method) == "ties" ? 24 : 8;
  for (int i = 0; i < rounds && !HasFailure(); ++i) {
    SCOPED_TRACE(i);
    Check(fixture::RandomScenario(random, method, syntax), random);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, AgainstReference,
                         testing::Combine(testing::Values("ties", "task_arithmetic", "linear", "average"),
                                          testing::Values(Syntax::kToml, Syntax::kYaml)),
                         [](const auto& values) {
                           return std::string(std::get<0>(values.param)) +
                                  (std::get<1>(values.param) == Syntax::kToml ? "Toml" : "Yaml");
                         });

// Every entry of the task vector has one magnitude, so the quota alone decides, by name and index: layer 10 comes
// before layer 2.
TEST(ModelScope, EqualsStayInBytewiseOrderOfNames) {
  const fixture::TemporaryDirectory place;
  std::vector<StoredTensor> base, tuned;
  for (const char* name : {"model.layers.2.w", "model.layers.10.w", "model.layers.1.w"}) {
    base.push_back(fixture::Constant(name, DType::kBF16, 70'000, 1));
    tuned.push_back(fixture::Constant(name, DType::kBF16, 70'000, 1.5));
  }
  fixture::WriteCheckpoint(place, "base", base);
  fixture::WriteCheckpoint(place, "tuned", tuned, 3);
  const std::string recipe = place.Write("r.toml", "method = 'ties'\nbase = '" + place / "base" +
                                                       "'\n[parameters]\nscope = 'model'\ndensity = 0.5\n" +
                                                       "[[models]]\npath = '" + place / "tuned" + "'\n");
  fixture::Merge(recipe, place / "out", {.memory = fixture::kGiB, .threads = 4, .tile_elements = 65'536});
  std::map<std::string, size_t> kept;
  for (const StoredTensor& tensor : fixture::ReadTensors(place / "out")) {
    const std::vector<float> lanes = fixture::LanesOf(tensor);
    const auto end = std::find(lanes.begin(), lanes.end(), 1.0f);
    kept[tensor.name] = static_cast<size_t>(end - lanes.begin());
    EXPECT_EQ(std::count(end, lanes.end(), 1.0f), lanes.end() - end) << tensor.name << ": lower index first";
  }
  EXPECT_EQ(kept["model.layers.1.w"], 70'000u);
  EXPECT_EQ(kept["model.layers.10.w"], 35'000u);
  EXPECT_EQ(kept["model.layers.2.w"], 0u);
}

// The base's bits come out, a -0 among them, and no model is read.
TEST(WeightZeroEverywhere, GivesTheBase) {
  const fixture::TemporaryDirectory place;
  std::vector<double> values = {0.0, -0.0, 1.25, -3e-38};
  values.resize(70'000, -0.0);
  const StoredTensor base = Floats("w", DType::kF32, {70'000}, values);
  fixture::WriteCheckpoint(place, "base", {base});
  fixture::WriteCheckpoint(place, "tuned", {fixture::Constant("w", DType::kF32, 70'000, 7)});
  for (const char* scope : {"tensor", "model"}) {
    const std::string recipe =
        place.Write("r.toml", "method = 'ties'\nbase = '" + place / "base" + "'\n[parameters]\nscope = '" + scope +
                                  "'\ndensity = 0.5\nzero_sign = 'majority'\n[[models]]\nweight = 0\npath = '" +
                                  place / "tuned" + "'\n");
    const MergeReport report = fixture::Merge(recipe, place / "out", {.memory = fixture::kGiB});
    ExpectTensors({base}, fixture::ReadTensors(place / "out"));
    EXPECT_EQ(report.bytes_read % base.bytes.size(), 0u);
    std::filesystem::remove_all(place / "out");
  }
}

}  // namespace
}  // namespace braid
