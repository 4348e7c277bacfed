#include "pipeline/manifest.h"

#include <fmt/format.h>

#include "io/error.h"
#include "io/json.h"
#include "io/os.h"
#include "io/safetensors.h"

namespace braid {
namespace {

constexpr const char* kFingerprintKey = "braid.fingerprint";
constexpr const char* kSumsKey = "braid.xxh3_128";
constexpr size_t kSumDigits = 32;

Error Damaged(const std::string& path, const std::string& why) {
  return Error(ErrorCode::kBadInput, why).Path(path).Hint("run the merge again; verify checks what a merge wrote");
}

Manifest ManifestOfFile(const std::string& out) {
  FileIdentity identity;
  const Fd fd = OpenForReading(out, &identity);
  const SafetensorsHeader header = ReadSafetensorsHeader(fd.get(), identity.size, out);
  const auto sums = header.metadata.find(kSumsKey), fingerprint = header.metadata.find(kFingerprintKey);
  if (sums == header.metadata.end() || fingerprint == header.metadata.end())
    throw Damaged(out, "it carries no checksums, so it was not written by braid merge");
  if (sums->second.size() != header.tensors.size() * kSumDigits) throw Damaged(out, "its checksums do not fit its tensors");
  Manifest manifest;
  manifest.fingerprint = fingerprint->second;
  for (size_t i = 0; i < header.tensors.size(); ++i)
    manifest.tensors[header.tensors[i].name] = {"", header.tensors[i].bytes, sums->second.substr(i * kSumDigits, kSumDigits)};
  return manifest;
}

void Put(std::string* header, const char* key, size_t digits, const std::string& value) {
  // Keys of ours are found by their room of zeros, which no other metadata has.
  const std::string room = fmt::format("\"{}\":\"{}\"", key, std::string(digits, '0'));
  const size_t at = header->find(room);
  if (at == std::string::npos) throw Error(ErrorCode::kInternal, "no room for checksums in the header");
  header->replace(at, room.size(), fmt::format("\"{}\":\"{}\"", key, value));
}

}  // namespace

std::string SumText(XXH128_hash_t sum) { return fmt::format("{:016x}{:016x}", sum.high64, sum.low64); }

void AddChecksumRoom(std::map<std::string, std::string>* metadata, size_t tensors) {
  (*metadata)[kFingerprintKey] = std::string(kSumDigits, '0');
  (*metadata)[kSumsKey] = std::string(kSumDigits * tensors, '0');
}

std::string FillChecksums(std::string header, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums) {
  std::string text;
  for (XXH128_hash_t sum : sums) text += SumText(sum);
  Put(&header, kFingerprintKey, kSumDigits, fingerprint);
  Put(&header, kSumsKey, text.size(), text);
  return header;
}

std::string ManifestText(const Plan& plan, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums) {
  Json out;
  out["format"] = 1;
  out["method"] = plan.method->name;
  out["fingerprint"] = fingerprint;
  for (size_t t = 0; t < plan.tensors.size(); ++t) {
    const PlannedTensor& tensor = plan.tensors[t];
    out["tensors"][tensor.name] = {{"file", plan.shards[tensor.shard].name}, {"bytes", tensor.bytes}, {"xxh3_128", SumText(sums[t])}};
  }
  return out.dump(1) + "\n";
}

Manifest ReadManifest(const std::string& out) {
  if (out.ends_with(".safetensors")) return ManifestOfFile(out);
  const std::string path = out + "/" + kManifestName;
  if (!FileExists(path)) throw Damaged(path, "it is missing, so there is nothing to verify against");
  const Json json = ParseJson(ReadSmallFile(path, 1u << 30), path);
  Manifest manifest;
  if (!json.is_object() || !json.contains("tensors") || !json["tensors"].is_object() || !json.contains("fingerprint") ||
      !json["fingerprint"].is_string())
    throw Damaged(path, "this is not a manifest of braid merge");
  manifest.fingerprint = json["fingerprint"];
  for (const auto& [name, entry] : json["tensors"].items()) {
    const bool sound = entry.is_object() && entry.contains("file") && entry["file"].is_string() && entry.contains("bytes") &&
                       AsSize(entry["bytes"]) && entry.contains("xxh3_128") && entry["xxh3_128"].is_string();
    if (!sound) throw Damaged(path, fmt::format("its entry for '{}' is damaged", Printable(name)));
    manifest.tensors[name] = {entry["file"], *AsSize(entry["bytes"]), entry["xxh3_128"]};
  }
  return manifest;
}

}  // namespace braid
