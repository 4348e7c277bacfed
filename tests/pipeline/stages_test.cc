// Chained stages: one recipe of several merges gives the bytes of the merges run one after another, with float32, or
// the type that a stage asks for, in between.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "pipeline/recipe_writer.h"
#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Floats;
using fixture::StoredTensor;

struct Input {
  int stage = -1;        // or:
  std::string source;    // a checkpoint
  std::string settings;  // lines
};

struct DrawnStage {
  std::string top;
  std::optional<Input> base;
  std::vector<Input> models;
  std::string dtype;     // empty: none
};

// What a stage may be. `models`: most beside the base.
struct Kind {
  std::string top;
  bool base = false;
  size_t least = 1, most = 4;
  bool weights = false, densities = false;
};

class Stages : public testing::Test {
 protected:
  // --- sources: a few tensors each, values that are often equal
  void WriteSources() {
    coarse_ = random_.Chance(0.6);
    const auto add = [&](std::string name, std::vector<uint64_t> shape) {
      shapes_.push_back({std::move(name), std::move(shape)});
    };
    add("model.embed_tokens.weight", {1 + random_.Below(500), 8 * (1 + random_.Below(60))});
    for (int layer = 0; layer < 2; ++layer) {
      add(fmt::format("model.layers.{}.mlp.weight", layer), {1 + random_.Below(40), 1 + random_.Below(60)});
      add(fmt::format("model.layers.{}.bias", layer), {random_.Below(5)});
    }
    add("model.norm.weight", {random_.OneOf<uint64_t>({1, 1025, 65'535, 65'537, 131'073, 200'000})});
    std::vector<std::vector<double>> base(shapes_.size());
    for (const char* name : {"base", "a", "b", "c", "d"}) {
      const DType type = random_.OneOf({DType::kF32, DType::kF16, DType::kBF16, DType::kBF16});
      std::vector<StoredTensor> tensors;
      for (size_t t = 0; t < shapes_.size(); ++t) {
        uint64_t n = 1;
        for (uint64_t extent : shapes_[t].second) n *= extent;
        std::vector<double> values(n);
        for (uint64_t i = 0; i < n; ++i)
          values[i] = (base[t].empty() ? 0 : base[t][i]) + Draw(base[t].empty() ? 1 : 0.25);
        if (base[t].empty()) base[t] = values;
        tensors.push_back(Floats(shapes_[t].first, type, shapes_[t].second, values));
      }
      tensors.push_back(fixture::Integers("ids", {1, 2, 3}));
      std::filesystem::remove_all(place_ / name);   // shards of another number
      fixture::WriteCheckpoint(place_, name, tensors, 1 + random_.Below(2));
    }
  }
  double Draw(double scale) {
    if (random_.Chance(0.0005)) return test::RandomLane(random_, test::Kind::kSpecial);
    return coarse_ ? (static_cast<double>(random_.Below(9)) - 4) * scale / 4 : random_.Normal() * scale;
  }

  Kind DrawKind(size_t models) {
    const std::string rescale = random_.Chance(0.5) ? "parameters.rescale = true\n" : "parameters.rescale = false\n";
    const std::string seed = fmt::format("parameters.seed = {}\n", random_.Below(100));
    const std::string scope = random_.Chance(model_scopes_) ? "parameters.scope = 'model'\n" : "";
    std::vector<Kind> kinds = {
        {.top = "method = 'ties'\n" + rescale + scope, .base = true, .weights = true, .densities = true},
        {.top = "method = 'ties'\nparameters.ties_at_threshold = 'keep'\n", .base = true, .densities = true},
        {.top = "method = 'task_arithmetic'\n", .base = true, .weights = true},
        {.top = "method = 'breadcrumbs_ties'\nparameters.gamma = 0.1\n" + rescale, .base = true, .densities = true},
        {.top = "method = 'dare_ties'\n" + rescale + seed, .base = true, .weights = true, .densities = true},
        {.top = "method = 'della'\n" + rescale + seed, .base = true, .densities = true},
        {.top = "method = 'sce'\nparameters.select_topk = 0.3\n", .base = true, .least = 2},
        {.top = "method = 'model_stock'\n", .base = true, .least = 2},
        {.top = "method = 'model_stock'\nparameters.filter_wise = true\n", .base = true, .least = 2},
        {.top = "method = 'consensus_ta'\n", .base = true, .least = 2},
        {.top = "method = 'arcee_fusion'\n", .base = true, .most = 1},
        {.top = "method = 'nearswap'\nparameters.t = 0.05\n", .base = true, .most = 1},
        {.top = "method = 'slerp'\nparameters.t = 0.3\n", .least = 2, .most = 2},
        {.top = "method = 'slerp'\nparameters.weight = 1\n", .least = 2},
        {.top = "method = 'nuslerp'\nparameters.axis = 'last'\n", .least = 2, .most = 2, .weights = true},
        {.top = "method = 'nuslerp'\nparameters.axis = 'first'\n", .base = true, .least = 2, .most = 2},
        {.top = "method = 'linear'\n", .least = 1, .weights = true},
        {.top = "method = 'passthrough'\n", .least = 1, .most = 1}};
    if (model_scopes_ > 0) {
      kinds.push_back({.top = "method = 'metagpt'\n", .base = true, .least = 2});
      kinds.push_back({.top = "method = 'pcb'\n", .base = true, .least = 2});
      kinds.push_back({.top = "method = 'task_arithmetic'\nlayer_scale = { beta = 0.5 }\n", .base = true});
    }
    for (;;) {
      const Kind& kind = kinds[random_.Below(kinds.size())];
      if (models >= kind.least && models <= kind.most) return kind;
    }
  }

  // --- a tree: every stage but the last is used
  void DrawTree() {
    const size_t count = 2 + random_.Below(4);
    std::vector<int> unused;
    for (size_t s = 0; s < count; ++s) {
      std::vector<Input> inputs;
      const auto take = [&](int stage) {
        for (const Input& input : inputs)
          if (stage >= 0 && input.stage == stage) return;
        inputs.push_back({.stage = stage, .source = stage < 0 ? NewSource(inputs) : "", .settings = {}});
      };
      const bool last = s + 1 == count;
      for (int stage : unused)
        if (last || random_.Chance(0.5)) take(stage);
      const size_t more = random_.Below(3);
      for (size_t i = 0; i < more || inputs.empty(); ++i)
        take(s > 0 && random_.Chance(0.3) ? static_cast<int>(random_.Below(s)) : -1);
      if (inputs.size() > 4) std::swap(inputs.back(), inputs[0]);
      DrawnStage stage;
      const bool stage_as_base = inputs.size() > 1 && inputs.back().stage >= 0 && random_.Chance(0.4);
      for (;;) {
        const Kind kind = DrawKind(std::min<size_t>(4, inputs.size() - (stage_as_base ? 1 : 0)));
        if (stage_as_base && !kind.base) continue;
        if (stage_as_base) stage.base = inputs.back(), inputs.pop_back();
        else if (kind.base) stage.base = Input{.source = "base", .settings = {}};
        stage.top = kind.top;
        if (kind.top.find("scope = 'model'") == std::string::npos && random_.Chance(0.3) && kind.densities)
          stage.top += "parameters.density = [0.3, 0.7]\n";
        else if (kind.densities)
          stage.top += fmt::format("parameters.density = {}\n", random_.OneOf({0.0, 0.2, 0.5, 0.5, 1.0}));
        for (Input& input : inputs)
          if (kind.weights && random_.Chance(0.6))
            input.settings = fmt::format("weight = {}\n", random_.OneOf({0.0, 0.3, 1.0, -0.5, 2.0}));
        break;
      }
      if (random_.Chance(0.2)) stage.top += "exclude = '*norm*'\n";
      if (random_.Chance(0.4)) stage.dtype = random_.OneOf<const char*>({"float32", "bfloat16", "float16", "float64"});
      stage.models = inputs;
      for (const Input& input : inputs) std::erase(unused, input.stage);
      if (stage.base) std::erase(unused, stage.base->stage);
      unused.push_back(static_cast<int>(s));
      stages_.push_back(std::move(stage));
    }
  }
  std::string NewSource(const std::vector<Input>& others) {
    for (;;) {
      const std::string name = random_.OneOf<const char*>({"a", "b", "c", "d"});
      if (std::none_of(others.begin(), others.end(), [&](const Input& other) { return other.source == name; }))
        return name;
    }
  }

  // --- recipes
  std::string ChainText() const {
    std::string text;
    for (size_t s = 0; s < stages_.size(); ++s) {
      const DrawnStage& stage = stages_[s];
      const auto reference = [&](const Input& input, const char* key) {
        return input.stage >= 0 ? fmt::format("stage = 's{}'", input.stage)
            : fmt::format("{} = '{}'", key, place_ / input.source);
      };
      text += "[[stages]]\n" + stage.top;
      if (s + 1 < stages_.size()) text += fmt::format("name = 's{}'\n", s);
      if (!stage.dtype.empty()) text += fmt::format("dtype = '{}'\n", stage.dtype);
      if (stage.base && stage.base->stage >= 0)
        text += fmt::format("base = {{ {} }}\n", reference(*stage.base, "path"));
      else if (stage.base) text += reference(*stage.base, "base") + "\n";
      for (const Input& input : stage.models)
        text += "[[stages.models]]\n" + reference(input, "path") + "\n" + input.settings;
    }
    return text;
  }
  std::string SeparateText(size_t s) const {
    const DrawnStage& stage = stages_[s];
    const auto path = [&](const Input& input) {
      return input.stage >= 0 ? place_ / fmt::format("s{}", input.stage) : place_ / input.source;
    };
    std::string text = stage.top;
    if (!stage.dtype.empty()) text += fmt::format("dtype = '{}'\n", stage.dtype);
    else if (s + 1 < stages_.size()) text += "dtype = 'float32'\n";
    if (stage.base) text += fmt::format("base = '{}'\n", path(*stage.base));
    for (const Input& input : stage.models)
      text += fmt::format("[[models]]\npath = '{}'\n", path(input)) + input.settings;
    return text;
  }

  PlanOptions DrawOptions() {
    // Whole models count in accumulators of megabytes, which not every stage has.
    return {.memory = random_.OneOf({(model_scopes_ > 0 ? 300 : 64) * fixture::kMiB, fixture::kGiB}),
            .threads = static_cast<int>(1 + random_.Below(3)),
            .tile_elements = random_.OneOf<uint64_t>({0, 65'536, 131'072}),
            .read = random_.OneOf({ReadMode::kMapped, ReadMode::kMapped, ReadMode::kDirect})};
  }

  void Compare() {
    std::optional<Error> error;
    for (size_t s = 0; s < stages_.size() && !error; ++s) {
      try {
        fixture::Merge(place_.Write(fmt::format("s{}.toml", s), SeparateText(s)), place_ / fmt::format("s{}", s),
                       DrawOptions(), true);
      } catch (const Error& thrown) {
        error = thrown;
      }
    }
    const std::string chain = place_.Write("chain.toml", ChainText());
    SCOPED_TRACE(ChainText());
    (error ? refused_ : merged_) += 1;
    if (error) {
      const Error thrown = fixture::ErrorOf([&] { fixture::Merge(chain, place_ / "out", DrawOptions(), true); });
      EXPECT_EQ(thrown.code(), error->code()) << thrown.what() << "\ninstead of\n" << error->what();
      // Among whole models, tensors go in the order of their names: another one may be the first without a merge.
      if (model_scopes_ == 0) {
        EXPECT_EQ(thrown.tensor(), error->tensor()) << thrown.what() << "\ninstead of\n" << error->what();
      }
      return;
    }
    const Plan plan = fixture::PlanOf(chain, DrawOptions());
    const auto chosen = std::count_if(plan.stages.begin(), plan.stages.end(),
                                      [](const auto& stage) { return stage.choice; });
    if (!plan.fronts.empty()) (plan.IsWhole(plan.fronts.front()) ? whole_first_ : tensors_first_) += 1;
    spilled_ += static_cast<int>(plan.spills.size());
    recomputed_ += static_cast<int>(chosen) - static_cast<int>(plan.spills.size());
    const std::string separate = place_ / fmt::format("s{}", stages_.size() - 1);
    const std::vector<StoredTensor> expected = fixture::ReadTensors(separate);
    for (int i = 0; i < 3; ++i) {
      const PlanOptions options = DrawOptions();
      fixture::Merge(chain, place_ / "out", options, true);
      const std::vector<StoredTensor> actual = fixture::ReadTensors(place_ / "out");
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t t = 0; t < actual.size(); ++t)
        ExpectSame(expected[t], actual[t], fmt::format("tiles {}, threads {}", options.tile_elements, options.threads));
      EXPECT_EQ(fixture::FileText(place_ / "out/config.json"), fixture::FileText(separate + "/config.json"));
      if (HasFailure()) return;
    }
  }

  // Three trees over each of so many families of sources.
  void CompareTrees(int families) {
    for (int i = 0; i < families && !HasFailure(); ++i) {
      shapes_.clear();
      WriteSources();
      for (int j = 0; j < 3 && !HasFailure(); ++j) {
        stages_.clear();
        DrawTree();
        Compare();
      }
    }
    EXPECT_GT(merged_, refused_);
  }

  static void ExpectSame(const StoredTensor& expected, const StoredTensor& actual, const std::string& how) {
    if (actual == expected) return;
    ASSERT_EQ(actual.type, expected.type) << actual.name;
    const std::vector<float> a = fixture::LanesOf(actual), e = fixture::LanesOf(expected);
    ASSERT_EQ(a.size(), e.size()) << actual.name;
    size_t different = 0, first = a.size();
    for (size_t i = a.size(); i-- > 0;)
      if (test::ToBits(a[i]) != test::ToBits(e[i])) ++different, first = i;
    ADD_FAILURE() << actual.name << ": " << different << " of " << a.size() << " elements, first " << first << ": "
                  << a[first] << " instead of " << e[first] << "; " << how;
  }

  fixture::TemporaryDirectory place_;
  test::Random random_;
  bool coarse_ = false;
  double model_scopes_ = 0;
  int merged_ = 0, refused_ = 0;   // trees; some have no merge, as when directions cancel
  int recomputed_ = 0, spilled_ = 0;   // stages that whole models matter to
  int whole_first_ = 0, tensors_first_ = 0;   // plans in which whole models and single tensors take turns
  std::vector<std::pair<std::string, std::vector<uint64_t>>> shapes_;
  std::vector<DrawnStage> stages_;
};

TEST_F(Stages, WithStatisticsOfWholeModels) {
  model_scopes_ = 0.4;
  CompareTrees(6);
  // Some runs of six families do not have all of these.
  const auto has_all = [&] { return recomputed_ > 0 && spilled_ > 0 && whole_first_ > 0 && tensors_first_ > 0; };
  for (int i = 0; i < 60 && !has_all() && !HasFailure(); ++i) CompareTrees(1);
  EXPECT_GT(recomputed_, 0);
  EXPECT_GT(spilled_, 0);
  EXPECT_GT(whole_first_, 0);
  EXPECT_GT(tensors_first_, 0);
}

// Whole models before single tensors, and behind them. What the choice is made by is what is read; the integers, which
// no stage merges, come to 24 bytes a source.
TEST_F(Stages, ThePlanSaysWhatIsRead) {
  WriteSources();
  const std::string ties = "method = 'ties'\nparameters.density = 0.5\n", whole = "parameters.scope = 'model'\n";
  const Input base{.source = "base", .settings = {}}, a{.source = "a", .settings = {}},
      b{.source = "b", .settings = {}}, c{.source = "c", .settings = {}},
      first{.stage = 0, .source = {}, .settings = {}};
  const std::vector<std::vector<DrawnStage>> trees = {
      {{.top = ties + whole, .base = base, .models = {a, b}, .dtype = {}},
       {.top = ties, .base = base, .models = {first, c}, .dtype = {}}},
      {{.top = ties, .base = base, .models = {a}, .dtype = {}},
       {.top = ties + whole, .base = base, .models = {first, b}, .dtype = {}}}};
  for (const std::vector<DrawnStage>& tree : trees) {
    stages_ = tree;
    SCOPED_TRACE(ChainText());
    const Plan plan = fixture::PlanOf(place_.Write("chain.toml", ChainText()), {.memory = fixture::kGiB});
    const SpillChoice& choice = *plan.stages.front().choice;
    EXPECT_EQ(plan.spills.empty(), choice.recomputed <= choice.spilled);
    EXPECT_EQ(plan.fronts.empty(), !plan.spills.empty());
    if (!plan.spills.empty()) continue;   // types decide
    EXPECT_GE(plan.totals.bytes_read, choice.recomputed);
    EXPECT_LE(plan.totals.bytes_read, choice.recomputed + 4 * 24);
  }
}

TEST_F(Stages, AreEqualToSeparateMerges) { CompareTrees(8); }

}  // namespace
}  // namespace braid
