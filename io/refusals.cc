#include "io/refusals.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "io/error.h"
#include "io/json.h"

namespace braid {
namespace {

constexpr std::string_view kToSafetensors =
    "load it with transformers and save_pretrained it: that writes safetensors";
constexpr std::string_view kDequantise =
    "merge the original, unquantised checkpoints and quantise the result";

bool EndsWithAny(std::string_view name, std::initializer_list<std::string_view> suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

// Tensors that exist only beside packed or scaled weights: GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes.
bool IsQuantisationTensor(std::string_view name) {
  return EndsWithAny(name, {"_scale_inv", ".weight_scale", ".weight_packed", ".qweight", ".qzeros", ".SCB",
                            ".absmax"}) ||
         name.find(".quant_state.") != name.npos;
}

bool IsAdapterTensor(std::string_view name) {
  return name.find(".lora_A.") != name.npos || name.find(".lora_embedding_A") != name.npos;
}

std::vector<std::string> Ending(const std::vector<std::string>& names,
                                std::initializer_list<std::string_view> suffixes) {
  std::vector<std::string> out;
  for (const std::string& name : names)
    if (EndsWithAny(name, suffixes)) out.push_back(name);
  return out;
}

// " of meta-llama/Llama-3.1-8B", if the adapter says whose it is.
std::string OfBaseModel(const ModelDirectory& directory) {
  if (!directory.Has("adapter_config.json")) return "";
  std::string path = directory.FilePath("adapter_config.json");
  Json config = ParseJson(ReadSmallFile(path), path, {.python_literals = true});
  auto base = config.find("base_model_name_or_path");
  return base == config.end() || !base->is_string() ? "" : " of " + base->get<std::string>();
}

Error AdapterError(const std::string& path, const std::string& of_base) {
  return Error(ErrorCode::kIncompatible,
               fmt::format("this is an adapter (LoRA){}, not a whole model", of_base))
      .Path(path)
      .Hint("apply it to its base model with PEFT (merge_and_unload, then save_pretrained) and merge that");
}

}  // namespace

void RefuseQuantised(const Checkpoint& checkpoint) {
  if (const std::string& method = checkpoint.config.quantisation; !method.empty())
    throw Error(ErrorCode::kIncompatible, fmt::format("the weights are quantised ({})", method))
        .Path(checkpoint.config.path)
        .Hint(fmt::format("{}; if these weights are plain, remove quantization_config from this file",
                          kDequantise));
  for (const CheckpointTensor& tensor : checkpoint.tensors) {
    const std::string& name = tensor.info.name;
    if (!IsQuantisedType(tensor.info.dtype) && !IsQuantisationTensor(name)) continue;
    throw Error(ErrorCode::kIncompatible,
                IsQuantisedType(tensor.info.dtype)
                    ? fmt::format("the weights are quantised: this one is {}", DTypeName(tensor.info.dtype))
                    : "the weights are quantised: this tensor belongs to packed or scaled weights")
        .Path(checkpoint.shards[tensor.shard].path)
        .Tensor(name)
        .Hint(std::string(kDequantise));
  }
}

void RefuseAdapter(const Checkpoint& checkpoint) {
  for (const CheckpointTensor& tensor : checkpoint.tensors)
    if (IsAdapterTensor(tensor.info.name))
      throw AdapterError(checkpoint.shards[tensor.shard].path, "").Tensor(tensor.info.name);
}

bool HoldsAdapter(const ModelDirectory& directory) {
  return directory.Has("adapter_config.json") || directory.Has("adapter_model.safetensors") ||
         directory.Has("adapter_model.bin");
}

void RefuseWithoutWeights(const ModelDirectory& directory, const std::string& hint_for_nothing) {
  if (HoldsAdapter(directory)) throw AdapterError(directory.path(), OfBaseModel(directory));
  const std::vector<std::string> names = directory.Names();
  auto refuse = [&](std::string message, std::string hint) {
    throw Error(ErrorCode::kIncompatible, std::move(message)).Path(directory.path()).Hint(std::move(hint));
  };
  if (auto found = Ending(names, {".safetensors"}); !found.empty())
    refuse(fmt::format("there is neither model.safetensors nor model.safetensors.index.json here, only {}",
                       ListedNames(found)),
           found.size() == 1 ? "give that file itself, or rename it to model.safetensors"
                             : "the index that names the shards is missing: download it too");
  if (auto found = Ending(names, {".bin", ".pt", ".pth", ".ckpt"}); !found.empty())
    refuse(fmt::format("there are only PyTorch weights here ({}), which can run code when loaded",
                       ListedNames(found)),
           std::string(kToSafetensors));
  if (auto found = Ending(names, {".gguf"}); !found.empty())
    refuse(fmt::format("there are only GGUF files here ({})", ListedNames(found)),
           "use the safetensors checkpoint that they were made from");
  throw Error(ErrorCode::kUsage, names.empty()
                                     ? "this directory is empty"
                                     : fmt::format("there are no weights here, only {}", ListedNames(names)))
      .Path(directory.path())
      .Hint(hint_for_nothing);
}

void RefuseOtherFormat(const std::string& file) {
  auto refuse = [&](std::string_view message, std::string_view hint) {
    throw Error(ErrorCode::kIncompatible, std::string(message)).Path(file).Hint(std::string(hint));
  };
  if (EndsWithAny(file, {".gguf"}))
    refuse("this is a GGUF file", "use the safetensors checkpoint that it was made from");
  if (EndsWithAny(file, {".bin", ".pt", ".pth", ".ckpt"}))
    refuse("this is a file of PyTorch weights, which can run code when loaded", kToSafetensors);
  if (EndsWithAny(file, {".json"}))
    refuse("this is not a file of weights", "give the directory that it lies in");
}

void RefuseDelta(const Checkpoint& checkpoint) {
  if (!checkpoint.delta) return;
  throw Error(ErrorCode::kIncompatible, "this is a delta: what a merge adds to its base, and no model")
      .Path(checkpoint.reference)
      .Hint("make the model first: braid apply BASE DELTA OUT");
}

void RequireDelta(const Checkpoint& checkpoint) {
  if (checkpoint.delta) return;
  throw Error(ErrorCode::kIncompatible, "this is no delta")
      .Path(checkpoint.reference)
      .Hint("a delta is what braid merge writes with content = \"delta\"; a fine-tune is merged with "
            "method = \"task_arithmetic\"");
}

}  // namespace braid
