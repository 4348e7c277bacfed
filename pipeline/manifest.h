// What a merge leaves behind so that it can be checked: per tensor its size and XXH3-128, the same of every header,
// and the plan's fingerprint. In a directory this is braid.json; a single file carries it in its safetensors metadata,
// where the plan keeps room for what is known only at the end.
#pragma once

#include <xxhash.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/plan.h"

namespace braid {

inline constexpr const char* kManifestName = "braid.json";

// The metadata of a single file, with room for the checksums of `tensors` tensors.
void AddChecksumRoom(std::map<std::string, std::string>* metadata, size_t tensors);

// The same header with the checksums (in the order of the file) and the fingerprint filled in; the same length.
std::string FillChecksums(std::string header, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums);

// The text of braid.json; `sums` in the order of plan.tensors, `alpha` that of layer_scale where it was found.
std::string ManifestText(const Plan& plan, const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums,
                         std::optional<double> alpha);

// XXH3-128 of a shard's header, with the checksums that a single file carries in it taken for zeros.
std::string HeaderSum(std::string header);

// What a manifest promises, from either place.
struct Manifest {
  std::string fingerprint;
  std::map<std::string, std::string> headers;  // HeaderSum by file name; of a single file by ""
  struct Entry {
    std::string file;
    uint64_t bytes = 0;
    std::string sum;  // 32 hex digits
  };
  std::map<std::string, Entry> tensors;
};

// Reads OUT's manifest; throws Error(kBadInput) when there is none or it is damaged.
Manifest ReadManifest(const std::string& out);

// The same of a single file or a stream, opened for reading.
Manifest ManifestOf(const Checkpoint& file);

std::string SumText(XXH128_hash_t sum);

}  // namespace braid
