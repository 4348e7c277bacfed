// Stages that stack layers or merge modules, and stages as bases, with what they know of each other found on the way,
// computed anew or merged into a file first: the bytes of separate merges.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/ops/test_support.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::StoredTensor;

class StagesOfLayers : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<double> base;
    for (const char* name : {"base", "a", "b"}) {
      std::vector<StoredTensor> tensors;
      size_t at = 0;
      const auto add = [&](const std::string& tensor, uint64_t rows, uint64_t columns) {
        std::vector<double> values;
        for (uint64_t i = 0; i < rows * columns; ++i, ++at) {   // few values, so that many are equal
          if (at == base.size()) base.push_back(static_cast<double>(random_.Below(17)) / 8 - 1);
          const double change = std::string(name) == "base" ? 0 : (static_cast<double>(random_.Below(9)) - 4) / 16;
          values.push_back(base[at] + change);
        }
        tensors.push_back(fixture::Floats(tensor, DType::kBF16, {rows, columns}, values));
      };
      add("model.embed_tokens.weight", 1000, 70);
      for (int layer = 0; layer < 4; ++layer) {
        add(fmt::format("model.layers.{}.self_attn.q_proj.weight", layer), 30, 40);
        add(fmt::format("model.layers.{}.mlp.up_proj.weight", layer), 300, 40);
      }
      add("model.norm.weight", 1, 40);
      fixture::WriteCheckpoint(place_, name, tensors, 2, R"({"model_type": "llama", "num_hidden_layers": 4})");
    }
  }

  // A stage as a recipe of its own has it: <a> is a checkpoint, or the stage of that name; "[[" begins a table.
  struct Stage {
    std::string name, text;
  };
  static std::string Filled(std::string text, const std::string& what, const std::string& with) {
    for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size())
      text.replace(at, what.size(), with);
    return text;
  }

  // The result of the last stage, merged both ways. `spilled`: how many stages have to be merged into files first.
  void Compare(const std::vector<Stage>& stages, size_t spilled) {
    std::string chain;
    for (const Stage& stage : stages) {
      const bool last = &stage == &stages.back();
      std::string separate = (last ? "" : "dtype = 'float32'\n") + stage.text;
      std::string chained = "[[stages]]\n" + (last ? "" : "name = '" + stage.name + "'\n");
      chained += Filled(stage.text, "[[", "[[stages.");
      for (const Stage& other : stages) {
        separate = Filled(separate, "path = <" + other.name + ">", fmt::format("path = '{}'", place_ / other.name));
        separate = Filled(separate, "<" + other.name + ">", fmt::format("'{}'", place_ / other.name));
        chained = Filled(chained, "path = <" + other.name + ">", fmt::format("stage = '{}'", other.name));
        chained = Filled(chained, "<" + other.name + ">", fmt::format("{{ stage = '{}' }}", other.name));
      }
      for (const char* source : {"base", "a", "b"}) {
        const std::string path = fmt::format("'{}'", place_ / source);
        separate = Filled(separate, fmt::format("<{}>", source), path);
        chained = Filled(chained, fmt::format("<{}>", source), path);
      }
      fixture::Merge(place_.Write(stage.name + ".toml", separate), place_ / stage.name, {}, true);
      chain += chained;
    }
    SCOPED_TRACE(chain);
    const std::string recipe = place_.Write("chain.toml", chain);
    const std::vector<StoredTensor> expected = fixture::ReadTensors(place_ / stages.back().name);
    for (const uint64_t tile : {uint64_t{0}, uint64_t{65'536}}) {
      const PlanOptions options = {.threads = static_cast<int>(1 + random_.Below(3)), .tile_elements = tile};
      EXPECT_EQ(fixture::PlanOf(recipe, options).spills.size(), spilled);
      fixture::Merge(recipe, place_ / "out", options, true);
      EXPECT_EQ(fixture::ReadTensors(place_ / "out"), expected);
      EXPECT_EQ(fixture::FileText(place_ / "out/config.json"),
                fixture::FileText(place_ / (stages.back().name + "/config.json")));
    }
  }

  fixture::TemporaryDirectory place_;
  test::Random random_;
};

std::string Whole(const std::string& source) {
  return "method = 'ties'\nbase = <base>\nparameters = { density = 0.4, scope = 'model' }\n"
         "[[models]]\npath = <" + source + ">\n[[models]]\npath = <b>\n";
}

const char* const kStack =
    "method = 'linear'\n"
    "[[slices]]\n[[slices.sources]]\npath = <s0>\nlayer_range = [0, 3]\n"
    "[[slices.sources]]\npath = <b>\nlayer_range = [1, 4]\n"
    "[[slices]]\n[[slices.sources]]\npath = <s0>\nlayer_range = [1, 4]\n";

TEST_F(StagesOfLayers, ALaterStageStacksWhatAnEarlierOneMerges) {
  Compare({{"s0", "method = 'ties'\nbase = <base>\nparameters.density = 0.4\n"
                  "[[models]]\npath = <a>\n[[models]]\npath = <b>\n"},
           {"s1", kStack}}, 0);
}

TEST_F(StagesOfLayers, AnEarlierStageStacks) {
  Compare({{"s0", "method = 'linear'\n[[slices]]\nsources = [{ path = <a>, layer_range = [2, 4] }]\n"
                  "[[slices]]\nsources = [{ path = <b>, layer_range = [0, 2] }]\n"},
           {"s1", "method = 'slerp'\nparameters.t = 0.3\n[[models]]\npath = <s0>\n[[models]]\npath = <a>\n"}}, 0);
}

// Layers come out twice and under other names: the statistics of the whole model are found first.
TEST_F(StagesOfLayers, LayersOfAWholeModelStage) { Compare({{"s0", Whole("a")}, {"s1", kStack}}, 1); }

TEST_F(StagesOfLayers, AWholeModelStageOfLayers) {
  Compare({{"s0", "method = 'ties'\nbase = <base>\nparameters = { density = 0.4, scope = 'model' }\n"
                  "[[slices]]\nsources = [{ path = <base>, layer_range = [0, 2] }, "
                  "{ path = <a>, layer_range = [0, 2] }, { path = <b>, layer_range = [0, 2] }]\n"
                  "[[slices]]\nsources = [{ path = <base>, layer_range = [2, 4] }, "
                  "{ path = <b>, layer_range = [2, 4] }]\n"},
           {"s1", "method = 'linear'\n[[models]]\npath = <s0>\n[[models]]\npath = <a>\n"}}, 0);
}

TEST_F(StagesOfLayers, Modules) {
  Compare({{"s0", "method = 'task_arithmetic'\nbase = <base>\n[[models]]\npath = <a>\n"},
           {"s1", "method = 'linear'\n"
                  "modules.default.models = [{ path = <s0> }, { path = <b>, weight = 0.5 }]\n"
                  "modules.embed_tokens.models = [{ path = <b> }, { path = <s0>, weight = 0.2 }]\n"}}, 0);
}

// Recomputed, where nothing else is found of tensors; or else merged first.
TEST_F(StagesOfLayers, AWholeModelStageAsTheBase) {
  Compare({{"s0", Whole("a")},
           {"s1", "method = 'task_arithmetic'\nbase = <s0>\n[[models]]\npath = <b>\nweight = 0.7\n"}}, 0);
  Compare({{"s0", Whole("a")},
           {"s1", "method = 'ties'\nbase = <s0>\nparameters.density = 0.5\n[[models]]\npath = <b>\n"}}, 0);
  Compare({{"s0", Whole("a")},
           {"s1", "method = 'ties'\nbase = <s0>\nparameters = { density = 0.5, scope = 'model' }\n"
                  "[[models]]\npath = <b>\n"}}, 0);
}

}  // namespace
}  // namespace braid
