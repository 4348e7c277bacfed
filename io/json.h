// Strict JSON for files that others wrote. Built on nlohmann::json, with what it lets through closed:
// duplicate keys, depth, numbers that only look like integers, and (for config.json, which Python writes)
// the literals NaN, Infinity and -Infinity, read as null where allowed.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace braid {

using Json = nlohmann::ordered_json;  // keeps the keys in the order of the file

struct JsonLimits {
  int depth = 64;
  bool python_literals = false;  // accept NaN and Infinity
};

// Parses the whole text; every fault is Error(kBadInput) with `path` and the byte offset.
Json ParseJson(std::string_view text, const std::string& path, JsonLimits limits = {});

// A non-negative integer written as one (not 2.0, not 1e3, not -1, not above 2^63-1).
std::optional<uint64_t> AsSize(const Json& value);

// `text`, which is UTF-8, as a JSON string with its quotes: for writers of long lists, which need no tree.
std::string JsonString(std::string_view text);

// The value of a top-level key as it is written, or nothing. `text` as for ReplaceTopLevelValue.
std::optional<std::string> TopLevelValue(const std::string& text, std::string_view key);

// `text` with the value of the top-level key replaced by `json_value`, every other byte kept. A key that is
// absent is added as the last one. `text` must be a JSON object that ParseJson accepted.
std::string ReplaceTopLevelValue(const std::string& text, std::string_view key, std::string_view json_value);

// The same, for taking a key out.
std::string RemoveTopLevelKey(const std::string& text, std::string_view key);

}  // namespace braid
