#include "io/delta_marks.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>

#include "io/error.h"

namespace braid {
namespace {

constexpr const char* kContentKey = "braid.content";
constexpr const char* kBaseKey = "braid.base";
constexpr const char* kSamplesKey = "braid.base_samples";
constexpr const char* kTypesKey = "braid.types";
constexpr std::string_view kDelta = "delta";
constexpr size_t kSumDigits = 32;

bool IsSum(std::string_view text) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == kSumDigits && std::all_of(text.begin(), text.end(), is_digit);
}

// "BF16*290 F32*1": runs of tensors.
std::string RunsOf(const std::vector<DType>& types) {
  std::string text;
  for (size_t i = 0, end; i < types.size(); i = end) {
    end = i + 1;
    while (end < types.size() && types[end] == types[i]) ++end;
    fmt::format_to(std::back_inserter(text), "{}{}*{}", i == 0 ? "" : " ", DTypeName(types[i]), end - i);
  }
  return text;
}

// Nothing where the text is not runs of lane types of so many tensors in all.
std::optional<std::vector<DType>> ReadRuns(std::string_view text, size_t tensors) {
  std::vector<DType> types;
  while (!text.empty()) {
    const std::string_view run = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), run.size() + 1));
    const size_t star = run.find('*');
    if (star == std::string_view::npos) return std::nullopt;
    const std::optional<DType> type = ParseDType(run.substr(0, star));
    size_t count = 0;
    const auto [end, error] = std::from_chars(run.data() + star + 1, run.data() + run.size(), count);
    if (error != std::errc() || end != run.data() + run.size()) return std::nullopt;
    if (!type || !IsLaneType(*type) || count > tensors - types.size()) return std::nullopt;
    types.insert(types.end(), count, *type);
  }
  if (types.size() != tensors) return std::nullopt;
  return types;
}

}  // namespace

void AddDeltaMarks(const DeltaMarks& marks, std::map<std::string, std::string>* metadata) {
  (*metadata)[kContentKey] = kDelta;
  (*metadata)[kBaseKey] = marks.base;
  (*metadata)[kSamplesKey] = marks.samples;
  (*metadata)[kTypesKey] = RunsOf(marks.types);
}

std::optional<DeltaMarks> FindDeltaMarks(const SafetensorsHeader& header, const std::string& path) {
  const auto value = [&](const char* key) -> std::string_view {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string_view() : found->second;
  };
  if (value(kContentKey) != kDelta) return std::nullopt;
  auto types = ReadRuns(value(kTypesKey), header.tensors.size());
  const std::string_view base = value(kBaseKey), samples = value(kSamplesKey);
  const bool sound = IsSum(base) && (samples.empty() || IsSum(samples)) && types &&
                     std::all_of(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& tensor) {
                       return tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16;
                     });
  if (!sound)
    throw Error(ErrorCode::kBadInput, "it is marked as a delta, but what it says of its base and types is damaged")
        .Path(path)
        .Hint("write it anew: braid merge with content = \"delta\"");
  return DeltaMarks{.base = std::string(base), .samples = std::string(samples), .types = std::move(*types)};
}

}  // namespace braid
