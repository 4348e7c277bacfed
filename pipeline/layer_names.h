// How the names of tensors number the layers of a model: `model.layers.7.mlp.up_proj.weight`, `h.7.attn.c_attn.bias`,
// `encoder.block.7.layer.0.SelfAttention.q.weight`. There is no table of architectures: the first component that is a
// whole number is the layer, what stands before it is its stack. A model may have several stacks.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"

namespace braid {

// The parts of a tensor's name; views into it.
struct LayerName {
  std::string_view stack;  // "model.layers.", with its dot; empty where the name begins with the number
  uint64_t index = 0;
  std::string_view rest;   // ".mlp.up_proj.weight", with its dot; may be empty
};

// Nothing for a tensor outside any stack.
std::optional<LayerName> ParseLayerName(std::string_view tensor_name);

// The same tensor of another layer.
std::string NameInLayer(const LayerName& name, uint64_t index);

// The stacks of one checkpoint. Immutable; refers to nothing.
class LayerStacks {
 public:
  // Per layer that is there, its tensors as indices into the catalogue, in the order of the file.
  using Layers = std::map<uint64_t, std::vector<uint32_t>>;

  explicit LayerStacks(const Checkpoint& checkpoint);

  // nullptr when there is none.
  const Layers* Find(std::string_view stack) const;
  const std::map<std::string, Layers, std::less<>>& all() const { return stacks_; }
  // One more than the highest number of a stack that is there.
  static uint64_t Count(const Layers& layers) { return layers.rbegin()->first + 1; }

 private:
  std::map<std::string, Layers, std::less<>> stacks_;
};

// "model.layers", for a message.
std::string_view StackText(std::string_view stack);

}  // namespace braid
