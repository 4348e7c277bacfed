// config.json of a model whose layers were rearranged: how many there are now, and the lists that speak of each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_config.h"

namespace braid {

// Numbers of layers that a config gives for the model itself, not for its vision or audio part: num_hidden_layers,
// n_layer, num_decoder_layers and the like, at the top level or in text_config. May be empty.
std::vector<uint64_t> DeclaredLayerCounts(const ModelConfig& config);

// Where a layer of the output is from.
struct LayerOrigin {
  const ModelConfig* config = nullptr;
  uint64_t layer = 0;
};

// `text`, which is `donor.text` or an edit of it, with the layers of `stack` rearranged: of the donor's `count` layers
// to `layers`. Every key that gives their number gets the new one; every list with an entry per layer (layer_types and
// others, told by their length) gets the entries of the layers' own configs; every list of some layers' numbers
// (mlp_only_layers, full_attn_idxs and others, told by name) gets the numbers that the layers have now which their own
// configs name. Where the stack is an encoder, a decoder or a vision or audio tower, it is the keys of that. Appends to
// `warnings` what could not be changed.
std::string ConfigWithLayers(const ModelConfig& donor, std::string text, std::string_view stack, uint64_t count,
                             const std::vector<LayerOrigin>& layers, std::vector<std::string>* warnings);

}  // namespace braid
