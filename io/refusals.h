// What Braid does not merge, and what to do instead.
#pragma once

#include <string>

#include "io/checkpoint.h"
#include "io/model_directory.h"

namespace braid {

// Throws Error(kIncompatible) when the weights are quantised: arithmetic on their codes means nothing without
// the scales that lie in other tensors.
void RefuseQuantised(const Checkpoint& checkpoint);

// Throws Error(kIncompatible) when the tensors are those of a LoRA adapter rather than of a model.
void RefuseAdapter(const Checkpoint& checkpoint);

// Throws Error(kIncompatible) for a delta where a model is wanted, and the other way round.
void RefuseDelta(const Checkpoint& checkpoint);
void RequireDelta(const Checkpoint& checkpoint);

// Whether the directory holds a PEFT adapter.
bool HoldsAdapter(const ModelDirectory& directory);

// Throws Error saying what a directory without safetensors weights holds in their place: an adapter, PyTorch
// or GGUF files, shards without their index, nothing (kUsage, with `hint_for_nothing`).
[[noreturn]] void RefuseWithoutWeights(const ModelDirectory& directory, const std::string& hint_for_nothing);

// The same for a single file whose name says that it is something else; returns otherwise.
void RefuseOtherFormat(const std::string& file);

}  // namespace braid
