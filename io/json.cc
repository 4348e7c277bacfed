#include "io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "io/json_events.h"

namespace braid {
namespace {

// Builds the tree. Members are appended without the search for an equal key that ordered_json makes on every
// insertion, which would be quadratic for an index of 100,000 tensors; duplicates show when an object ends.
class TreeBuilder final : public JsonEvents {
 public:
  TreeBuilder(const std::string& path, int depth, std::vector<size_t> inserted)
      : JsonEvents(path, 0, depth), inserted_(std::move(inserted)) {}

  Json Take() { return std::move(root_); }

 private:
  void OnNull() override { Add(nullptr); }
  void OnBoolean(bool value) override { Add(value); }
  void OnUnsigned(uint64_t value) override { Add(value); }
  void OnNegative(int64_t value) override { Add(value); }
  void OnFloat(double value) override { Add(value); }
  void OnString(std::string& value) override { Add(std::move(value)); }
  void OnKey(std::string& key) override { key_ = std::move(key); }
  void OnStartObject() override { open_.push_back(Add(Json::object())); }
  void OnStartArray() override { open_.push_back(Add(Json::array())); }
  void OnEndArray() override { open_.pop_back(); }
  void OnEndObject() override {
    CheckDuplicates(*open_.back()->get_ptr<Json::object_t*>());
    open_.pop_back();
  }

  // Pointers in `open_` stay valid: a container does not grow while one of its elements is open.
  Json* Add(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (auto* array = open_.back()->get_ptr<Json::array_t*>()) return &array->emplace_back(std::move(value));
    std::vector<std::pair<const std::string, Json>>& members = *open_.back()->get_ptr<Json::object_t*>();
    return &members.emplace_back(std::move(key_), std::move(value)).second;
  }

  void CheckDuplicates(const Json::object_t& object) {
    keys_.clear();
    for (const auto& [key, value] : object) keys_.push_back(key);
    std::sort(keys_.begin(), keys_.end());  // not a hash table: its collisions could be arranged
    auto twice = std::adjacent_find(keys_.begin(), keys_.end());
    if (twice == keys_.end()) return;
    throw Fault(fmt::format("the key '{}' occurs twice in the object that ends here", twice->substr(0, 200)))
        .Hint("readers disagree on which one counts; remove one");
  }

  uint64_t FileOffset(size_t position) const override {
    return position - static_cast<size_t>(std::lower_bound(inserted_.begin(), inserted_.end(), position) -
                                          inserted_.begin());
  }

  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::vector<std::string_view> keys_;
  std::vector<size_t> inserted_;  // positions of bytes that the file does not have, ascending
};

// The text with NaN, Infinity and -Infinity outside of strings replaced by null. "null" is one byte longer
// than "NaN": `inserted` gets the positions of those bytes.
std::string WithoutPythonLiterals(std::string_view text, std::vector<size_t>* inserted) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    std::string_view rest = text.substr(i);
    if (in_string && rest[0] == '\\' && rest.size() > 1) {
      out += rest.substr(0, 2), i += 2;
    } else if (!in_string && rest.starts_with("NaN")) {
      out += "null", i += 3;
      inserted->push_back(out.size() - 1);
    } else if (!in_string && rest.starts_with("Infinity")) {
      out += "null    ", i += 8;
    } else if (!in_string && rest.starts_with("-Infinity")) {
      out += "null     ", i += 9;
    } else {
      if (rest[0] == '"') in_string = !in_string;
      out += rest[0], ++i;
    }
  }
  return out;
}

// Where one member of the top-level object lies in the text.
struct Member {
  std::string key;
  size_t key_begin = 0, value_begin = 0, value_end = 0;
};

// Finds the members of an object that ParseJson accepted: strings and brackets are all that needs telling
// apart.
class MemberScanner {
 public:
  explicit MemberScanner(std::string_view text) : text_(text) {}

  std::vector<Member> Scan() {
    std::vector<Member> members;
    at_ = text_.find('{');
    if (at_ == std::string_view::npos)
      throw Error(ErrorCode::kInternal, "the text to edit is not a JSON object");
    for (++at_; SkipTo("\"}"), at_ < text_.size() && text_[at_] == '"';) members.push_back(ScanMember());
    return members;
  }

 private:
  void SkipTo(const char* any) { at_ = std::min(text_.find_first_of(any, at_), text_.size()); }
  void SkipSpace() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  void SkipString() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_)
      if (text_[at_] == '\\') ++at_;
    ++at_;
  }

  Member ScanMember() {
    Member member;
    member.key_begin = at_;
    SkipString();
    member.key = Json::parse(text_.substr(member.key_begin, at_ - member.key_begin)).get<std::string>();
    SkipTo(":");
    ++at_;
    SkipSpace();
    member.value_begin = at_;
    SkipValue();
    member.value_end = at_;
    return member;
  }

  void SkipValue() {
    if (text_[at_] == '"') return SkipString();
    if (text_[at_] != '{' && text_[at_] != '[') return SkipTo(" \t\r\n,}");
    int depth = 0;
    do {
      SkipTo("\"{}[]");
      if (text_[at_] == '"') {
        SkipString();
        continue;
      }
      depth += (text_[at_] == '{' || text_[at_] == '[') ? 1 : -1;
      ++at_;
    } while (depth > 0);
  }

  std::string_view text_;
  size_t at_ = 0;
};

std::vector<Member>::const_iterator FindMember(const std::vector<Member>& members, std::string_view key) {
  return std::find_if(members.begin(), members.end(),
                      [&](const Member& member) { return member.key == key; });
}

}  // namespace

Json ParseJson(std::string_view text, const std::string& path, JsonLimits limits) {
  std::vector<size_t> inserted;
  std::string plain;
  if (limits.python_literals) text = plain = WithoutPythonLiterals(text, &inserted);
  TreeBuilder builder(path, limits.depth, std::move(inserted));
  builder.Walk(text);
  return builder.Take();
}

std::optional<uint64_t> AsSize(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  uint64_t size = value.get<uint64_t>();
  if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return size;
}

std::string JsonString(std::string_view text) {
  bool plain = std::all_of(text.begin(), text.end(),
                           [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; });
  return plain ? fmt::format("\"{}\"", text) : Json(std::string(text)).dump();
}

std::optional<std::string> TopLevelValue(const std::string& text, std::string_view key) {
  std::vector<Member> members = MemberScanner(text).Scan();
  auto found = FindMember(members, key);
  if (found == members.end()) return std::nullopt;
  return text.substr(found->value_begin, found->value_end - found->value_begin);
}

std::string ReplaceTopLevelValue(const std::string& text, std::string_view key, std::string_view json_value) {
  std::vector<Member> members = MemberScanner(text).Scan();
  if (auto found = FindMember(members, key); found != members.end())
    return text.substr(0, found->value_begin) + std::string(json_value) + text.substr(found->value_end);

  std::string member = fmt::format("{}: {}", Json(std::string(key)).dump(), json_value);
  if (members.empty()) {
    size_t inside = text.find('{') + 1;
    return text.substr(0, inside) + member + text.substr(text.find('}'));
  }
  // Set apart from its predecessor as that one is from what stands before it.
  const Member& last = members.back();
  size_t gap = text.find_last_not_of(" \t\r\n", last.key_begin - 1) + 1;
  return text.substr(0, last.value_end) + "," + text.substr(gap, last.key_begin - gap) + member +
         text.substr(last.value_end);
}

std::string RemoveTopLevelKey(const std::string& text, std::string_view key) {
  std::vector<Member> members = MemberScanner(text).Scan();
  auto found = FindMember(members, key);
  if (found == members.end()) return text;
  if (members.size() == 1)
    return text.substr(0, text.find('{') + 1) + text.substr(text.find('}', found->value_end));
  bool last = found + 1 == members.end();
  size_t begin = last ? (found - 1)->value_end : found->key_begin;
  size_t end = last ? found->value_end : (found + 1)->key_begin;
  return text.substr(0, begin) + text.substr(end);
}

}  // namespace braid
