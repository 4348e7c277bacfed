// Reading and writing what a recipe says about its output. TOML only:
//
//   [output]
//   compress = "none" | "zstd" | "planes"
//   content = "checkpoint" | "delta"
//   delta_dtype = "float32" | "bfloat16"     with content = "delta"
//
// `output = "delta"` is short for content = "delta". Used while one recipe is read, by one thread; everything that
// fails throws RecipeError.
#pragma once

#include <optional>

#include "pipeline/recipe_node.h"
#include "pipeline/recipe_reader.h"

namespace braid {

RecipeOutput ReadOutput(const RecipeReader& reader, const RecipeNode& node);

// The node that ReadOutput reads as `output`; nothing where all of it is the default.
std::optional<RecipeNode> OutputNode(const RecipeOutput& output);

// By CompressionName; nothing for anything else.
std::optional<Compression> ParseCompression(std::string_view name);

}  // namespace braid
