#include "pipeline/architectures.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/json.h"

namespace braid {
namespace {

// Collects tensors of one element type.
class TensorList {
 public:
  explicit TensorList(DType dtype) : dtype_(dtype) {}

  void Add(std::string name, std::vector<uint64_t> shape) {
    TensorInfo tensor;
    tensor.name = std::move(name);
    tensor.dtype = dtype_;
    tensor.elements = 1;
    for (uint64_t extent : shape) tensor.elements *= extent;
    tensor.shape = std::move(shape);
    tensor.bytes = tensor.elements * static_cast<uint64_t>(LaneBytes(dtype_));
    tensors_.push_back(std::move(tensor));
  }

  std::vector<TensorInfo> Take() { return std::move(tensors_); }

 private:
  DType dtype_;
  std::vector<TensorInfo> tensors_;
};

void AddFeedForward(const Architecture& a, const std::string& prefix, TensorList* list) {
  if (a.experts == 0) {
    list->Add(prefix + "mlp.down_proj.weight", {a.hidden, a.intermediate});
    list->Add(prefix + "mlp.gate_proj.weight", {a.intermediate, a.hidden});
    list->Add(prefix + "mlp.up_proj.weight", {a.intermediate, a.hidden});
    return;
  }
  for (uint64_t e = 0; e < a.experts; ++e) {
    const std::string expert = fmt::format("{}block_sparse_moe.experts.{}.", prefix, e);
    list->Add(expert + "w1.weight", {a.intermediate, a.hidden});
    list->Add(expert + "w2.weight", {a.hidden, a.intermediate});
    list->Add(expert + "w3.weight", {a.intermediate, a.hidden});
  }
  list->Add(prefix + "block_sparse_moe.gate.weight", {a.experts, a.hidden});
}

void AddAttention(const Architecture& a, const std::string& prefix, TensorList* list) {
  const uint64_t head = a.hidden / a.heads;
  const bool biased = a.model_type == "qwen2";
  auto add = [&](std::string_view which, uint64_t rows) {
    list->Add(fmt::format("{}self_attn.{}_proj.weight", prefix, which), {rows, a.hidden});
    if (biased) list->Add(fmt::format("{}self_attn.{}_proj.bias", prefix, which), {rows});
  };
  add("q", a.heads * head);
  add("k", a.key_value_heads * head);
  add("v", a.key_value_heads * head);
  list->Add(prefix + "self_attn.o_proj.weight", {a.hidden, a.heads * head});
}

}  // namespace

const std::vector<Architecture>& Architectures() {
  static const std::vector<Architecture> all = {
      // in the order of the struct: sizes from hidden to vocabulary, experts, tied
      {"tiny", "LlamaForCausalLM", "llama", 64, 2, 128, 4, 2, 512, 0, false},
      {"small", "LlamaForCausalLM", "llama", 512, 8, 1376, 8, 4, 8192, 0, false},
      {"llama-70m", "LlamaForCausalLM", "llama", 512, 12, 1408, 8, 8, 32000, 0, false},
      {"llama-350m", "LlamaForCausalLM", "llama", 1024, 24, 2816, 16, 16, 32000, 0, true},
      {"llama-1b", "LlamaForCausalLM", "llama", 2048, 16, 8192, 32, 8, 128256, 0, true},
      {"qwen-1.5b", "Qwen2ForCausalLM", "qwen2", 1536, 28, 8960, 12, 2, 151936, 0, true},
      {"llama-3b", "LlamaForCausalLM", "llama", 3072, 28, 8192, 24, 8, 128256, 0, true},
      {"one-tensor", "LlamaForCausalLM", "llama", 4096, 0, 8192, 32, 8, 976563, 0, true},  // 8 GB in bf16
      {"mistral-7b", "MistralForCausalLM", "mistral", 4096, 32, 14336, 32, 8, 32000, 0, false},
      {"llama-8b", "LlamaForCausalLM", "llama", 4096, 32, 14336, 32, 8, 128256, 0, false},
      {"mixtral-8x7b", "MixtralForCausalLM", "mixtral", 4096, 32, 14336, 32, 8, 32000, 8, false},
      {"llama-70b", "LlamaForCausalLM", "llama", 8192, 80, 28672, 64, 8, 128256, 0, false},
  };
  return all;
}

const Architecture* FindArchitecture(std::string_view name) {
  const auto& all = Architectures();
  auto found = std::find_if(all.begin(), all.end(), [&](const Architecture& a) { return a.name == name; });
  return found == all.end() ? nullptr : &*found;
}

std::vector<TensorInfo> TensorsOf(const Architecture& a, DType dtype) {
  TensorList list(dtype);
  list.Add("model.embed_tokens.weight", {a.vocabulary, a.hidden});
  for (uint64_t layer = 0; layer < a.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    list.Add(prefix + "input_layernorm.weight", {a.hidden});
    AddFeedForward(a, prefix, &list);
    list.Add(prefix + "post_attention_layernorm.weight", {a.hidden});
    AddAttention(a, prefix, &list);
  }
  list.Add("model.norm.weight", {a.hidden});
  if (!a.tied_embeddings) list.Add("lm_head.weight", {a.vocabulary, a.hidden});
  return list.Take();
}

std::string ConfigText(const Architecture& a, DType dtype) {
  Json config = {{"architectures", {a.transformers_class}},
                 {"model_type", a.model_type},
                 {"hidden_size", a.hidden},
                 {"intermediate_size", a.intermediate},
                 {"num_hidden_layers", a.layers},
                 {"num_attention_heads", a.heads},
                 {"num_key_value_heads", a.key_value_heads},
                 {"vocab_size", a.vocabulary},
                 {"tie_word_embeddings", a.tied_embeddings},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"max_position_embeddings", 4096},
                 {"hidden_act", "silu"},
                 {"bos_token_id", 1},
                 {"eos_token_id", 2},
                 {"torch_dtype", TorchName(dtype)}};
  if (a.experts > 0) {
    config["num_local_experts"] = a.experts;
    config["num_experts_per_tok"] = 2;
  }
  return config.dump(2) + "\n";
}

}  // namespace braid
