#include "pipeline/recipe_reference.h"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/recipe_format.h"

namespace braid {
namespace {

bool IsGiven(const RecipeNode* node) { return node != nullptr && node->kind != RecipeNode::Kind::kNothing; }

void CheckKeys(const RecipeReader& reader, const RecipeNode& table, std::string_view place,
               const std::vector<std::string_view>& known) {
  for (const RecipeEntry& entry : table.entries)
    if (std::find(known.begin(), known.end(), entry.key) == known.end()) reader.FailUnknownKey(entry, place, known);
}

[[noreturn]] void FailAdapter(const RecipeReader& reader, const RecipeNode& node, std::string_view text) {
  reader.Fail(node.where, fmt::format("adapters (model+lora) are not supported yet: {}", Quoted(text)),
              "merge the adapter into its model first; a path with a '+' in it is written {model: {path: ...}}");
}

// path[@revision]
std::string ReadTextReference(const RecipeReader& reader, const RecipeNode& node, std::string_view name) {
  if (reader.IsStage(node.text)) return reader.ReadStage(node);
  std::string text = reader.ReadReference(node, name);
  const auto adapters = std::count(text.begin(), text.end(), '+');
  if (adapters > 1) reader.Fail(node.where, fmt::format("more than one '+' in the model {}", Quoted(text)));
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('+', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    if (std::count(part.begin(), part.end(), '@') > 1)
      reader.Fail(node.where, fmt::format("more than one '@' in the model {}", Quoted(text)),
                  "write it as path or org/name@revision");
    if (part.empty() || part.front() == '@' || part.back() == '@')
      reader.Fail(node.where, fmt::format("the model {} is incomplete", Quoted(text)),
                  "write it as path or org/name@revision");
    begin = end + 1;
  }
  if (adapters == 1) FailAdapter(reader, node, text);
  return text;
}

// Text, or {path, revision}.
std::string ReadPath(const RecipeReader& reader, const RecipeNode& node, std::string_view name) {
  if (node.kind != RecipeNode::Kind::kTable) return ReadTextReference(reader, node, name);
  CheckKeys(reader, node, fmt::format("'{}'", name), {"path", "revision"});
  const RecipeNode* path = node.Find("path");
  if (!IsGiven(path)) reader.Fail(node.where, fmt::format("'{}' without a 'path'", name));
  const RecipeNode* revision = node.Find("revision");
  if (!IsGiven(revision) && reader.IsStage(path->text)) return reader.ReadStage(*path);
  std::string reference = reader.ReadReference(*path, "path");
  if (!IsGiven(revision)) return reference;
  if (reference.find('@') != std::string::npos)
    reader.Fail(path->where, fmt::format("the path {} with a '@', and a 'revision' beside it", Quoted(reference)),
                "name the revision once");
  return reference + "@" + reader.ReadText(*revision, "revision");
}

}  // namespace

std::string ReadYamlReference(RecipeReader* reader, const RecipeNode& node, std::string_view name) {
  if (node.kind != RecipeNode::Kind::kTable) return ReadTextReference(*reader, node, name);
  const RecipeNode* model = node.Find("model");
  if (!IsGiven(model))
    reader->Fail(node.where, fmt::format("'{}' is a table without a 'model'", name),
                 "write it as path, org/name@revision, or {model: {path: ..., revision: ...}}");
  CheckKeys(*reader, node, fmt::format("'{}'", name), {"model", "lora", "override_architecture"});
  if (const RecipeNode* lora = node.Find("lora"); IsGiven(lora)) FailAdapter(*reader, *lora, "lora");
  if (const RecipeNode* architecture = node.Find("override_architecture"); IsGiven(architecture))
    reader->Warn(architecture->where, "'override_architecture' has no effect: tensors are found by their names");
  return ReadPath(*reader, *model, "model");
}

RecipeNode YamlReferenceNode(const std::string& reference) {
  if (const std::string_view stage = StageNameOf(reference); !stage.empty()) return TextNode(std::string(stage));
  const bool plain = reference.find('+') == std::string::npos &&
                     std::count(reference.begin(), reference.end(), '@') <= 1 && !reference.starts_with('@') &&
                     !reference.ends_with('@');
  if (plain) return TextNode(reference);
  RecipeNode path = TableNode(), model = TableNode();
  Add(&path, "path", TextNode(reference));
  Add(&model, "model", std::move(path));
  return model;
}

}  // namespace braid
