#include "pipeline/recipe_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace braid {
namespace {

using Kind = RecipeNode::Kind;

// Integers without a point. 1.0e-05 with one: Python's YAML takes 1e-05 for text.
std::string NumberText(double number) {
  constexpr double kLargestInteger = 1e15;
  if (number == 0) return std::signbit(number) ? "-0.0" : "0";
  if (std::trunc(number) == number && std::abs(number) <= kLargestInteger) return fmt::format("{:.0f}", number);
  std::string text = fmt::format("{}", number);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

// Whether a character must be written as an escape: controls, and what YAML 1.1 takes for an end of line or a mark.
bool NeedsEscape(uint32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x2028 || c == 0x2029 || c == 0xfeff;
}

// The character at the start of `text`, which is UTF-8, and its bytes.
std::pair<uint32_t, size_t> FirstCharacter(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t c = lead & (0xff >> (bytes + 1));
  for (size_t i = 1; i < bytes && i < text.size(); ++i) c = c << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  return {c, std::min(bytes, text.size())};
}

// A basic string of TOML, which is a double-quoted scalar of YAML as well.
std::string QuotedText(std::string_view text) {
  std::string quoted = "\"";
  while (!text.empty()) {
    const auto [c, bytes] = FirstCharacter(text);
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') quoted += "\\n";
    else if (c == '\t') quoted += "\\t";
    else if (NeedsEscape(c)) quoted += fmt::format("\\u{:04x}", c);
    else quoted += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return quoted + "\"";
}

bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsWordCharacter(char c) { return IsLetter(c) || (c >= '0' && c <= '9') || c == '-'; }

// --- TOML -----------------------------------------------------------------------------------------------------------

std::string TomlKey(std::string_view key) {
  return !key.empty() && std::all_of(key.begin(), key.end(), IsWordCharacter) ? std::string(key) : QuotedText(key);
}

std::string TomlValue(const RecipeNode& node) {
  if (node.kind == Kind::kNumber) return NumberText(node.number);
  if (node.kind == Kind::kFlag) return node.flag ? "true" : "false";
  if (node.kind == Kind::kText) return QuotedText(node.text);
  std::string text;
  for (const RecipeNode& item : node.items) text += (text.empty() ? "" : ", ") + TomlValue(item);
  for (const RecipeEntry& entry : node.entries)
    text += fmt::format("{}{} = {}", text.empty() ? " " : ", ", TomlKey(entry.key), TomlValue(entry.value));
  return node.kind == Kind::kList ? "[" + text + "]" : "{" + text + " }";
}

bool IsListOfTables(const RecipeNode& node) {
  return node.kind == Kind::kList && !node.items.empty() &&
         std::all_of(node.items.begin(), node.items.end(),
                     [](const RecipeNode& item) { return item.kind == Kind::kTable; });
}

// The keys of a table whose header, if it needs one, is written; `path` leads to it.
void WriteTomlTable(const RecipeNode& table, const std::string& path, std::string* out) {
  for (const RecipeEntry& entry : table.entries)
    if (entry.value.kind != Kind::kTable && !IsListOfTables(entry.value))
      *out += fmt::format("{} = {}\n", TomlKey(entry.key), TomlValue(entry.value));
  for (const RecipeEntry& entry : table.entries) {
    const std::string inner = path + TomlKey(entry.key);
    if (entry.value.kind == Kind::kTable) {
      *out += fmt::format("\n[{}]\n", inner);
      WriteTomlTable(entry.value, inner + ".", out);
    } else if (IsListOfTables(entry.value)) {
      for (const RecipeNode& item : entry.value.items) {
        *out += fmt::format("\n[[{}]]\n", inner);
        WriteTomlTable(item, inner + ".", out);
      }
    }
  }
}

// --- YAML -----------------------------------------------------------------------------------------------------------

// Without quotes only what no reader of YAML 1.1 takes for something else than text.
std::string YamlText(std::string_view text) {
  constexpr std::array kOtherThings = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"};
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  const auto is_plain = [](char c) { return IsWordCharacter(c) || c == '.' || c == '/' || c == '@'; };
  const bool plain = !text.empty() && (IsLetter(text[0]) || text[0] == '/') &&
                     std::all_of(text.begin(), text.end(), is_plain) &&
                     std::find(kOtherThings.begin(), kOtherThings.end(), lower) == kOtherThings.end();
  return plain ? std::string(text) : QuotedText(text);
}

// On one line.
std::string YamlFlow(const RecipeNode& node) {
  if (node.kind == Kind::kNumber) return NumberText(node.number);
  if (node.kind == Kind::kFlag) return node.flag ? "true" : "false";
  if (node.kind == Kind::kText) return YamlText(node.text);
  std::string text;
  for (const RecipeNode& item : node.items) text += (text.empty() ? "" : ", ") + YamlFlow(item);
  for (const RecipeEntry& entry : node.entries)
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", YamlText(entry.key), YamlFlow(entry.value));
  return node.kind == Kind::kList ? "[" + text + "]" : "{" + text + "}";
}

// Whether a node goes on lines of its own below its key: tables, and lists that hold one.
bool IsBlock(const RecipeNode& node) {
  if (node.kind == Kind::kTable) return !node.entries.empty();
  return std::any_of(node.items.begin(), node.items.end(), IsBlock);
}

// The lines of a table or list. The first one's indentation is already there when `begun`.
void WriteYamlBlock(const RecipeNode& node, size_t indent, bool begun, std::string* out) {
  const auto begin_line = [&] {
    if (!begun) out->append(indent, ' ');
    begun = false;
  };
  for (const RecipeNode& item : node.items) {
    begin_line();
    *out += "- ";
    if (IsBlock(item)) WriteYamlBlock(item, indent + 2, true, out);
    else *out += YamlFlow(item) + "\n";
  }
  for (const RecipeEntry& entry : node.entries) {
    begin_line();
    *out += YamlText(entry.key) + ":";
    if (IsBlock(entry.value)) {
      *out += "\n";
      WriteYamlBlock(entry.value, indent + 2, false, out);
    } else {
      *out += " " + YamlFlow(entry.value) + "\n";
    }
  }
}

}  // namespace

RecipeNode TextNode(std::string text) {
  RecipeNode node;
  node.kind = Kind::kText;
  node.text = std::move(text);
  return node;
}

RecipeNode NumberNode(double number) {
  RecipeNode node;
  node.kind = Kind::kNumber;
  node.number = number;
  return node;
}

RecipeNode FlagNode(bool flag) {
  RecipeNode node;
  node.kind = Kind::kFlag;
  node.flag = flag;
  return node;
}

RecipeNode ListNode() {
  RecipeNode node;
  node.kind = Kind::kList;
  return node;
}

RecipeNode TableNode() {
  RecipeNode node;
  node.kind = Kind::kTable;
  return node;
}

void Add(RecipeNode* table, std::string key, RecipeNode value) {
  table->entries.push_back({std::move(key), {}, std::move(value)});
}

std::string FormatToml(const RecipeNode& root) {
  std::string out;
  WriteTomlTable(root, "", &out);
  return out;
}

std::string FormatYaml(const RecipeNode& root) {
  std::string out;
  WriteYamlBlock(root, 0, false, &out);
  return out;
}

}  // namespace braid
