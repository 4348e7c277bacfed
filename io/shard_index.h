// model.safetensors.index.json: which tensor lies in which shard.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

struct ShardIndex {
  struct Entry {
    std::string tensor;
    uint32_t shard = 0;
  };
  std::vector<std::string> shards;  // plain file names, sorted
  std::vector<Entry> entries;       // sorted by tensor
};

// Throws Error(kBadInput): not JSON, a weight_map that is none, a shard name that is not a plain file name.
ShardIndex ReadShardIndex(const std::string& path);

}  // namespace braid
