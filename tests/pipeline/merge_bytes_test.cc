// The same inputs and recipe give the same bytes for any number of threads, tile size, memory and SIMD target.
#include <gtest/gtest.h>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::StoredTensor;

// Values on a coarse grid: thousands of task vector entries share each magnitude, so the last ones to be kept lie in
// the middle of equals, on either side of tile and tensor borders.
std::vector<double> CoarseValues(test::Random& random, size_t n, double step) {
  std::vector<double> values(n);
  for (double& value : values) value = (static_cast<double>(random.Below(33)) - 16) * step;
  return values;
}

class SameBytes : public testing::TestWithParam<const char*> {
 protected:
  SameBytes() {
    test::Random random(20'240'607);
    const std::vector<std::pair<std::string, std::vector<uint64_t>>> shapes = {
        {"model.layers.2.empty", {0}},         {"model.layers.10.one", {1}},
        {"model.layers.10.three", {3}},        {"model.layers.0.block", {65'536}},
        {"model.layers.2.block_and_one", {65'537}}, {"model.layers.10.table", {251, 257}},
        {"model.embed_tokens.weight", {400'003}}};
    std::vector<StoredTensor> base, a, b;
    for (const auto& [name, shape] : shapes) {
      const size_t n = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
      const std::vector<double> values = CoarseValues(random, n, 0.25);
      std::vector<double> first = CoarseValues(random, n, 0.0625), second = CoarseValues(random, n, 0.0625);
      for (size_t i = 0; i < n; ++i) first[i] += values[i], second[i] += values[i];
      base.push_back(Floats(name, DType::kBF16, shape, values));
      a.push_back(Floats(name, DType::kF16, shape, first));
      b.insert(b.begin(), Floats(name, DType::kF32, shape, second));
    }
    fixture::WriteCheckpoint(place_, "base", base, 3);
    fixture::WriteCheckpoint(place_, "a", a, 1);
    fixture::WriteCheckpoint(place_, "b", b, 5);
    place_.Write("base/tokenizer.json", "{}\n");
    place_.Write("base/generation_config.json", "{\"do_sample\": true}\n");
    recipe_ = place_.Write("recipe.toml", "base = '" + place_ / "base" + "'\ndtype = 'bfloat16'\n" +
                                              GetParam() + "\n[[models]]\npath = '" + place_ / "a" +
                                              "'\nweight = 0.6\n[[models]]\npath = '" + place_ / "b" +
                                              "'\nweight = [0.3, 0.9]\n");
  }

  std::map<std::string, std::string> Run(const PlanOptions& options) {
    return fixture::MergedFiles(recipe_, place_ / "out", options);
  }

  // How many scopes of more than one round stay in memory, and how many are read anew in each round; how many of
  // either are drafted (the latter by a spread sample), and how many counted with the help of one.
  void CountPaths(const PlanOptions& options) {
    for (const PlannedScope& scope : fixture::PlanOf(recipe_, options).scopes) {
      if (scope.rounds == 1 || scope.elements == 0) continue;
      ++(scope.resident ? resident_ : streamed_);
      if (scope.approach == Approach::kDraft) ++(scope.resident ? drafted_ : spread_);
      sampled_ += scope.approach == Approach::kSampled;
    }
  }

  // From the smallest budget that this tile allows upwards.
  std::vector<uint64_t> Budgets(PlanOptions options) {
    options.memory = 4 * fixture::kGiB;
    uint64_t least = fixture::PlanOf(recipe_, options).memory.least;
    for (options.memory = least;; options.memory += least / 4) {
      try {
        fixture::PlanOf(recipe_, options);
        break;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kMemory);
      }
    }
    return {options.memory, 2 * options.memory, 4 * fixture::kGiB};
  }

  void ExpectFor(const std::vector<uint64_t>& budgets, PlanOptions options,
                 const std::map<std::string, std::string>& expected) {
    for (uint64_t memory : budgets) {
      SCOPED_TRACE(testing::Message() << options.threads << " threads, " << options.tile_elements << " elements, "
                                      << memory << " bytes");
      options.memory = memory;
      CountPaths(options);
      fixture::ExpectSameFiles(expected, Run(options));
      if (HasFailure()) return;
    }
  }

  fixture::TemporaryDirectory place_;
  std::string recipe_;
  int resident_ = 0, streamed_ = 0, drafted_ = 0, spread_ = 0, sampled_ = 0;
};

TEST_P(SameBytes, ForThreadsTilesAndMemory) {
  const PlanOptions plain{.memory = fixture::kGiB, .threads = 1, .shard_bytes = 500'000};
  const auto expected = Run(plain);
  ASSERT_GE(expected.size(), 8u);  // shards, index, config, card, manifest, recipe, side files
  for (int threads : {1, 2, 8})
    for (uint64_t tile : {65'536, 131'072, 1'048'576}) {
      PlanOptions options = plain;
      options.threads = threads, options.tile_elements = tile;
      ExpectFor(Budgets(options), options, expected);
      if (HasFailure()) return;
    }
  const std::string recipe = GetParam();
  const auto says = [&](const char* what) { return recipe.find(what) != std::string::npos; };
  const bool one_round = says("task_arithmetic"), by_rows = says("della") || says("'row'");
  if (!by_rows) {   // the largest tensor is one row here: one tile
    EXPECT_EQ(streamed_ > 0, !one_round);
  }
  EXPECT_EQ(resident_ > 0, !one_round && !says("'model'") && !says("metagpt"));
}

// A sample taken of everything that allows one, from what is mapped or by reading spots, or of nothing.
TEST_P(SameBytes, ForEveryWayToTheThreshold) {
  const PlanOptions plain{.memory = fixture::kGiB, .threads = 2, .shard_bytes = 500'000, .least_sampled = UINT64_MAX};
  const auto expected = Run(plain);
  for (int threads : {1, 4})
    for (uint64_t tile : {65'536, 1'048'576}) {
      PlanOptions options = plain;
      options.threads = threads, options.tile_elements = tile, options.least_sampled = options.least_spread_sample = 0;
      std::vector<uint64_t> budgets = Budgets(options);
      budgets.insert(budgets.end(), {3 * budgets[1] / 2, 2 * budgets[1], 4 * budgets[1], 8 * budgets[1]});
      ExpectFor(budgets, options, expected);
      if (HasFailure()) return;
    }
  const std::string recipe = GetParam();
  const auto says = [&](const char* what) { return recipe.find(what) != std::string::npos; };
  const bool breadcrumbs = says("'breadcrumbs") && !says("'row'"), rescales = says("rescale");
  const bool may_draft = (says("'ties'") || breadcrumbs) && !rescales && !says("'model'");
  EXPECT_EQ(drafted_ > 0, may_draft);
  EXPECT_EQ(spread_ > 0, may_draft);
  EXPECT_EQ(sampled_ > 0,
            !may_draft && (breadcrumbs || says("'sce'") || says("'pcb'") || (says("'ties'") && !rescales)));
}

TEST_P(SameBytes, ForEverySimdTarget) {
  PlanOptions options{.memory = fixture::kGiB, .threads = 2, .shard_bytes = 500'000};
  const auto expected = Run(options);
  test::ForEachTarget([&] {
    for (uint64_t memory : {Budgets(options).front(), uint64_t{fixture::kGiB}}) {
      PlanOptions each = options;
      each.memory = memory;
      fixture::ExpectSameFiles(expected, Run(each));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, SameBytes,
    testing::Values("method = 'ties'\n[parameters]\ndensity = 0.37\nrescale = true\nzero_sign = 'majority'",
                    "method = 'ties'\n[parameters]\ndensity = 0.37\nrescale = true\nscope = 'model'",
                    "method = 'ties'\n[parameters]\ndensity = 0.37",
                    "method = 'ties'\n[parameters]\ndensity = 0.37\nties_at_threshold = 'keep'",
                    "method = 'ties'\n[parameters]\ndensity = 0.37\nscope = 'model'",
                    "method = 'task_arithmetic'", "method = 'dare_ties'\n[parameters]\ndensity = 0.4\nseed = 11",
                    "method = 'breadcrumbs'\n[parameters]\ndensity = 0.37\ngamma = 0.21",
                    "method = 'breadcrumbs_ties'\n[parameters]\ndensity = 0.37\ngamma = 0.21\nrescale = true",
                    "method = 'breadcrumbs'\n[parameters]\ndensity = 0.37\nrescale = true\nscope = 'row'",
                    "method = 'della'\n[parameters]\ndensity = 0.5", "method = 'metagpt'",
                    "method = 'pcb'\n[parameters]\nscope = 'model'", "method = 'pcb'\n[parameters]\nscope = 'tensor'",
                    "method = 'sce'\n[parameters]\nselect_topk = 0.37"));

}  // namespace
}  // namespace braid
