// config.json of models whose layers were rearranged.
#include "io/layer_config.h"

#include <gtest/gtest.h>

#include "io/json.h"

namespace braid {
namespace {

ModelConfig Config(const std::string& text) { return ParseModelConfig(text, "config.json"); }

class LayerConfig : public testing::Test {
 protected:
  Json Edited(const ModelConfig& donor, std::string_view stack, uint64_t count,
              const std::vector<LayerOrigin>& layers) {
    warnings_.clear();
    return Json::parse(ConfigWithLayers(donor, donor.text, stack, count, layers, &warnings_));
  }
  std::vector<std::string> warnings_;
};

TEST_F(LayerConfig, NumbersAndListsOfEveryOrigin) {
  const ModelConfig a =
      Config(R"({"n_layer": 3, "num_hidden_layers": 3, "max_window_layers": 2, "layer_types": ["x", "y", "z"],
                                  "architectures": ["A", "B", "C"], "bos_token_id": [1, 2, 3], "two": [1, 2],
                                  "scale": [0.5, 1e-7, 3]})");
  const ModelConfig b = Config(R"({"num_hidden_layers": 2, "layer_types": ["p", "q"]})");
  const Json json = Edited(a, "model.layers.", 3, {{&a, 0}, {&b, 1}, {&a, 2}, {&a, 2}});
  EXPECT_EQ(json["n_layer"], 4);
  EXPECT_EQ(json["num_hidden_layers"], 4);
  EXPECT_EQ(json["max_window_layers"], 2);
  EXPECT_EQ(json["layer_types"].dump(), R"(["x","q","z","z"])");
  EXPECT_EQ(json["architectures"].size(), 3u);
  EXPECT_EQ(json["bos_token_id"].size(), 3u);
  EXPECT_EQ(json["two"].size(), 2u);
  EXPECT_EQ(json["scale"].dump(), "[0.5,1e-07,3,3]") << "where an origin has no such list, the donor's";
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(LayerConfig, ListsOfLayerNumbers) {
  const ModelConfig a =
      Config(R"({"num_hidden_layers": 4, "mlp_only_layers": [0, 2], "full_attn_idxs": [1], "moe_layers": [0, 1, 2, 3],
                                  "no_rope_layers": [1, 1, 1, 0], "attn_layer_indices": [], "some_block_idxs": [1, 3],
                                  "num_q_layers": [1, 3], "eos_token_ids": [1, 2], "layers": [1, 2],
                                  "out_layers": [2, 1], "far_layers": [1, 9],
                                  "hybrid_override_pattern": "M*-E", "sliding_window_pattern": "LLLG"})");
  const ModelConfig b =
      Config(R"({"num_hidden_layers": 3, "mlp_only_layers": [], "attn_layer_indices": [2], "moe_layers": [2],
                                  "no_rope_layers": [1, 0, 1], "hybrid_override_pattern": "XYZ"})");
  const Json json = Edited(a, "model.layers.", 4, {{&a, 1}, {&b, 2}, {&b, 0}, {&a, 2}, {&a, 2}, {&a, 0}});
  EXPECT_EQ(json["mlp_only_layers"].dump(), "[3,4,5]");
  EXPECT_EQ(json["full_attn_idxs"].dump(), "[0]") << "b has no such list, and its layer 1 is not there";
  EXPECT_EQ(json["moe_layers"].dump(), "[0,1,3,4,5]") << "as long as there are layers by chance";
  EXPECT_EQ(json["no_rope_layers"].dump(), "[1,1,1,1,1,1]") << "an entry per layer";
  EXPECT_EQ(json["attn_layer_indices"].dump(), "[1]");
  EXPECT_EQ(json["some_block_idxs"].dump(), "[0]") << "told by name and value";
  for (const char* other : {"num_q_layers", "eos_token_ids", "layers", "out_layers", "far_layers"})
    EXPECT_EQ(json[other].dump(), Json::parse(a.text)[other].dump()) << other;
  EXPECT_EQ(json["hybrid_override_pattern"], "*ZX--M");
  EXPECT_EQ(json["sliding_window_pattern"], "LLLG") << "repeats itself; its length means nothing";
  EXPECT_TRUE(warnings_.empty());

  const ModelConfig odd = Config(R"({"num_hidden_layers": 4, "mlp_only_layers": [0, -1]})");
  EXPECT_EQ(Edited(odd, "model.layers.", 4, {{&odd, 0}})["mlp_only_layers"].dump(), "[0,-1]");
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("'mlp_only_layers' should hold numbers of layers"), std::string::npos) << warnings_[0];

  const ModelConfig vision = Config(R"({"num_hidden_layers": 4, "full_attn_idxs": [3],
                                       "vision_config": {"depth": 4, "fullatt_block_indexes": [1, 3]}})");
  const Json tower = Edited(vision, "visual.blocks.", 4, {{&vision, 3}, {&vision, 2}, {&vision, 1}});
  EXPECT_EQ(tower["vision_config"]["fullatt_block_indexes"].dump(), "[0,2]");
  EXPECT_EQ(tower["full_attn_idxs"].dump(), "[3]");
}

TEST_F(LayerConfig, PartsOfAModel) {
  const ModelConfig config =
      Config(R"({"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 4, "layer_types": [1, 2, 3, 4]},
                                       "vision_config": {"depth": 4, "num_hidden_layers": 4},
                                       "audio_config": {"num_layers": 7}})");
  const Json text = Edited(config, "model.language_model.layers.", 4, {{&config, 3}});
  EXPECT_EQ(text["num_hidden_layers"], 1);
  EXPECT_EQ(text["text_config"]["num_hidden_layers"], 1);
  EXPECT_EQ(text["text_config"]["layer_types"].dump(), "[4]");
  EXPECT_EQ(text["vision_config"]["depth"], 4);
  const Json vision = Edited(config, "visual.blocks.", 4, {{&config, 3}});
  EXPECT_EQ(vision["num_hidden_layers"], 4);
  EXPECT_EQ(vision["vision_config"]["depth"], 1);
  EXPECT_EQ(vision["vision_config"]["num_hidden_layers"], 1);
}

TEST_F(LayerConfig, EncodersAndDecoders) {
  const ModelConfig t5 = Config(R"({"num_layers": 6, "num_decoder_layers": 6})");
  EXPECT_EQ(Edited(t5, "decoder.block.", 6, {{&t5, 0}}).dump(), R"({"num_layers":6,"num_decoder_layers":1})");
  EXPECT_EQ(Edited(t5, "encoder.block.", 6, {{&t5, 0}}).dump(), R"({"num_layers":1,"num_decoder_layers":6})");
  const ModelConfig bart = Config(R"({"encoder_layers": 6, "decoder_layers": 6, "num_hidden_layers": 6})");
  EXPECT_EQ(Edited(bart, "model.decoder.layers.", 6, {{&bart, 0}}).dump(),
            R"({"encoder_layers":6,"decoder_layers":1,"num_hidden_layers":6})");
  EXPECT_EQ(Edited(bart, "model.encoder.layers.", 6, {{&bart, 0}}).dump(),
            R"({"encoder_layers":1,"decoder_layers":6,"num_hidden_layers":1})");
  const ModelConfig opt = Config(R"({"num_hidden_layers": 6})");
  EXPECT_EQ(Edited(opt, "model.decoder.layers.", 6, {{&opt, 0}}).dump(), R"({"num_hidden_layers":1})");
  const ModelConfig bert = Config(R"({"num_hidden_layers": 6})");
  EXPECT_EQ(Edited(bert, "encoder.layer.", 6, {{&bert, 0}}).dump(), R"({"num_hidden_layers":1})");
}

TEST_F(LayerConfig, WhatCannotBeChanged) {
  const ModelConfig config = Config(R"({"num_hidden_layers": 5, "layer_types": [1, 2, 3, 4, 5]})");
  EXPECT_EQ(Edited(config, "model.layers.", 6, {{&config, 0}})["num_hidden_layers"], 5);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("no number of layers that is 6, as many as model.layers.N has: set it by hand to 1"),
            std::string::npos)
      << warnings_[0];
  const ModelConfig longer = Config(R"({"num_hidden_layers": 9})");
  EXPECT_EQ(Edited(config, "model.layers.", 5, {{&config, 0}, {&longer, 8}})["layer_types"].size(), 5u);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_NE(warnings_[0].find("'layer_types' has one entry per layer"), std::string::npos) << warnings_[0];
  const ModelConfig none;
  warnings_.clear();
  EXPECT_EQ(ConfigWithLayers(none, "", "model.layers.", 2, {{&none, 0}}, &warnings_), "");
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(LayerConfig, DeclaredCounts) {
  EXPECT_EQ(DeclaredLayerCounts(Config(R"({"num_layers": 6, "num_decoder_layers": 7, "depth": "x"})")),
            (std::vector<uint64_t>{6, 7}));
  EXPECT_EQ(DeclaredLayerCounts(Config(R"({"text_config": {"n_layer": 3}, "vision_config": {"depth": 4}})")),
            (std::vector<uint64_t>{3}));
  EXPECT_TRUE(DeclaredLayerCounts(ModelConfig()).empty());
}

}  // namespace
}  // namespace braid
