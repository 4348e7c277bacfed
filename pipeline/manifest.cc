#include "pipeline/manifest.h"

#include <fmt/format.h>

#include <iterator>
#include <optional>

#include "io/checkpoint.h"
#include "io/error.h"
#include "io/json.h"
#include "io/os.h"
#include "io/safetensors.h"
#include "io/shard_frames.h"

namespace braid {
namespace {

constexpr const char* kFingerprintKey = "braid.fingerprint";
constexpr const char* kHeaderKey = "braid.header_xxh3_128";
constexpr const char* kSumsKey = "braid.xxh3_128";
constexpr size_t kSumDigits = 32;

Error Damaged(const std::string& path, const std::string& why) {
  return Error(ErrorCode::kBadInput, why).Path(path).Hint("run the merge again; verify checks what a merge wrote");
}

// Where the value of a metadata key of ours lies in a header: between its quotes.
struct Span {
  size_t begin = 0, size = 0;
};
std::optional<Span> FindValue(const std::string& header, const char* key) {
  const std::string before = fmt::format("\"{}\":\"", key);
  const size_t at = header.find(before);
  if (at == std::string::npos) return std::nullopt;
  const size_t begin = at + before.size(), end = header.find('"', begin);
  if (end == std::string::npos) return std::nullopt;
  return Span{begin, end - begin};
}

void Put(std::string* header, const char* key, const std::string& value) {
  const auto room = FindValue(*header, key);
  if (!room || room->size != value.size()) throw Error(ErrorCode::kInternal, "no room for checksums in the header");
  header->replace(room->begin, room->size, value);
}

}  // namespace

std::string SumText(XXH128_hash_t sum) { return fmt::format("{:016x}{:016x}", sum.high64, sum.low64); }

void AddChecksumRoom(std::map<std::string, std::string>* metadata, size_t tensors) {
  (*metadata)[kFingerprintKey] = std::string(kSumDigits, '0');
  (*metadata)[kHeaderKey] = std::string(kSumDigits, '0');
  (*metadata)[kSumsKey] = std::string(kSumDigits * tensors, '0');
}

std::string FillChecksums(std::string header, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums) {
  std::string text;
  for (XXH128_hash_t sum : sums) text += SumText(sum);
  Put(&header, kFingerprintKey, fingerprint);
  const std::string header_sum = HeaderSum(header);
  Put(&header, kHeaderKey, header_sum);
  Put(&header, kSumsKey, text);
  return header;
}

std::string HeaderSum(std::string header) {
  for (const char* key : {kHeaderKey, kSumsKey})
    if (const auto value = FindValue(header, key)) header.replace(value->begin, value->size, value->size, '0');
  return SumText(XXH3_128bits(header.data(), header.size()));
}

// Text, not a tree, where each new key is compared with all before it: 6 s for 100,000 tensors.
std::string ManifestText(const Plan& plan, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums,
                         std::optional<double> alpha) {
  std::string text = fmt::format("{{\n \"format\": 1,\n \"method\": {},\n \"fingerprint\": {},\n",
                                 JsonString(plan.method->name), JsonString(fingerprint));
  if (plan.delta()) text += " \"content\": \"delta\",\n";
  if (alpha) text += fmt::format(" \"layer_scale_alpha\": {},\n", *alpha);
  for (const PlannedStage& stage : plan.stages)
    text += fmt::format("{}{{\"name\": {}, \"method\": {}}}{}",
                        &stage == &plan.stages.front() ? " \"stages\": [" : ", ",
                        JsonString(stage.name), JsonString(stage.method->name),
                        &stage == &plan.stages.back() ? "],\n" : "");
  text += " \"headers\": {";
  const auto out = std::back_inserter(text);
  for (size_t i = 0; i < plan.shards.size(); ++i)
    fmt::format_to(out, "{}\n  {}: \"{}\"", i == 0 ? "" : ",", JsonString(plan.shards[i].name),
                   HeaderSum(plan.shards[i].header));
  text += "\n },\n \"tensors\": {";
  for (size_t t = 0; t < plan.tensors.size(); ++t) {
    const PlannedTensor& tensor = plan.tensors[t];
    fmt::format_to(out, "{}\n  {}: {{\n   \"file\": {},\n   \"bytes\": {},\n   \"xxh3_128\": \"{}\"\n  }}",
                   t == 0 ? "" : ",", JsonString(tensor.name), JsonString(plan.shards[tensor.shard].name),
                   tensor.bytes, SumText(sums[t]));
  }
  return text + "\n }\n}\n";
}

Manifest ManifestOf(const Checkpoint& file) {
  const Shard& shard = file.shards.front();
  const auto end = shard.metadata.end();
  const auto sums = shard.metadata.find(kSumsKey), fingerprint = shard.metadata.find(kFingerprintKey),
             header_sum = shard.metadata.find(kHeaderKey);
  if (sums == end || fingerprint == end || header_sum == end)
    throw Damaged(shard.path, "it carries no checksums: braid merge wrote it as a stream, or did not write it")
        .Hint("of a stream, compare the hash that the merge said with that of `braid cat FILE --json`");
  if (sums->second.size() != file.tensors.size() * kSumDigits)
    throw Damaged(shard.path, "its checksums do not fit its tensors");
  Manifest manifest;
  manifest.fingerprint = fingerprint->second;
  manifest.headers[""] = header_sum->second;
  for (size_t i = 0; i < file.tensors.size(); ++i)
    manifest.tensors[file.tensors[i].info.name] = {"", file.tensors[i].info.bytes,
                                                   sums->second.substr(i * kSumDigits, kSumDigits)};
  return manifest;
}

Manifest ReadManifest(const std::string& out) {
  if (IsShardFile(out)) return ManifestOf(OpenCheckpointForReading(out));
  const std::string path = out + "/" + kManifestName;
  if (!FileExists(path)) throw Damaged(path, "it is missing, so there is nothing to verify against");
  const Json json = ParseJson(ReadSmallFile(path, 1u << 30), path);
  Manifest manifest;
  if (!json.is_object() || !json.contains("tensors") || !json["tensors"].is_object() || !json.contains("fingerprint") ||
      !json["fingerprint"].is_string())
    throw Damaged(path, "this is not a manifest of braid merge");
  manifest.fingerprint = json["fingerprint"];
  if (json.contains("headers") && json["headers"].is_object())
    for (const auto& [name, sum] : json["headers"].items())
      if (sum.is_string()) manifest.headers[name] = sum;
  for (const auto& [name, entry] : json["tensors"].items()) {
    const bool sound = entry.is_object() && entry.contains("file") && entry["file"].is_string() &&
                       entry.contains("bytes") && AsSize(entry["bytes"]) && entry.contains("xxh3_128") &&
                       entry["xxh3_128"].is_string();
    if (!sound) throw Damaged(path, fmt::format("its entry for '{}' is damaged", Printable(name)));
    manifest.tensors[name] = {entry["file"], *AsSize(entry["bytes"]), entry["xxh3_128"]};
  }
  return manifest;
}

}  // namespace braid
