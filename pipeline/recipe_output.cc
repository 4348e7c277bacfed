#include "pipeline/recipe_output.h"

#include <algorithm>

#include "pipeline/recipe_format.h"

namespace braid {
namespace {

// In the order of the enumerators.
const std::vector<std::string_view> kCompress = {CompressionName(Compression::kNone),
                                                 CompressionName(Compression::kZstd),
                                                 CompressionName(Compression::kPlanes)};
const std::vector<std::string_view> kContent = {"checkpoint", "delta"};
const std::vector<std::string_view> kDeltaTypes = {"float32", "bfloat16"};

size_t ReadChoice(const RecipeReader& reader, std::string_view name, const std::vector<std::string_view>& choices,
                  const RecipeNode& node) {
  const ParameterSpec spec = {.name = name, .kind = ParameterKind::kChoice, .scope = ParameterScope::kRecipe,
                              .choices = choices, .help = ""};
  return static_cast<size_t>(reader.ReadSetting(spec, node).values.front());
}

}  // namespace

RecipeOutput ReadOutput(const RecipeReader& reader, const RecipeNode& node) {
  RecipeOutput output{.where = node.where};
  const auto read_content = [&](const RecipeNode& value, std::string_view name) {
    output.content = static_cast<RecipeOutput::Content>(ReadChoice(reader, name, kContent, value));
  };
  if (node.kind == RecipeNode::Kind::kText) {
    read_content(node, "output");
    return output;
  }
  reader.RequireTable(node, "output");
  for (const RecipeEntry& entry : node.entries) {
    if (entry.key == "compress")
      output.compress = static_cast<Compression>(ReadChoice(reader, entry.key, kCompress, entry.value));
    else if (entry.key == "content")
      read_content(entry.value, entry.key);
    else if (entry.key == "delta_dtype")
      output.delta_dtype = ReadChoice(reader, entry.key, kDeltaTypes, entry.value) == 0 ? DType::kF32 : DType::kBF16;
    else
      reader.FailUnknownKey(entry, "[output]", {"compress", "content", "delta_dtype"});
  }
  if (const RecipeNode* type = node.Find("delta_dtype");
      type != nullptr && output.content != RecipeOutput::Content::kDelta)
    reader.Fail(type->where, "'delta_dtype' is the type of a delta, which this recipe does not write",
                "write content = \"delta\" beside it; the type of a checkpoint is the recipe's 'dtype'");
  return output;
}

std::optional<RecipeNode> OutputNode(const RecipeOutput& output) {
  RecipeNode table = TableNode();
  const bool delta = output.content == RecipeOutput::Content::kDelta;
  if (output.compress != Compression::kNone)
    Add(&table, "compress", TextNode(std::string(CompressionName(output.compress))));
  if (delta) Add(&table, "content", TextNode("delta"));
  if (output.delta_dtype) Add(&table, "delta_dtype", TextNode(std::string(TorchName(*output.delta_dtype))));
  if (table.entries.empty()) return std::nullopt;
  return table;
}

std::optional<Compression> ParseCompression(std::string_view name) {
  const auto found = std::find(kCompress.begin(), kCompress.end(), name);
  if (found == kCompress.end()) return std::nullopt;
  return static_cast<Compression>(found - kCompress.begin());
}

}  // namespace braid
