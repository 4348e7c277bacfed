#include "io/shard_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "io/error.h"
#include "io/json.h"
#include "io/model_directory.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint64_t kMaxIndexBytes = 100'000'000;

}  // namespace

ShardIndex ReadShardIndex(const std::string& path) {
  Json json = ParseJson(ReadSmallFile(path, kMaxIndexBytes), path);
  auto bad = [&](std::string message) {
    Error error(ErrorCode::kBadInput, std::move(message));
    error.Path(path).Hint("download or save the model again");
    return error;
  };
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    throw bad("this is not the index of a checkpoint: it has no 'weight_map' object");

  const Json& weight_map = json["weight_map"];
  if (weight_map.empty()) throw bad("the 'weight_map' lists no tensors");
  std::vector<std::pair<std::string_view, std::string_view>> by_tensor;
  ShardIndex index;
  for (const auto& [tensor, shard] : weight_map.get_ref<const Json::object_t&>()) {
    if (!shard.is_string()) throw bad("the shard of a tensor must be a file name").Tensor(tensor);
    const std::string& name = shard.get_ref<const std::string&>();
    if (!IsPlainFileName(name, ".safetensors"))
      throw bad(fmt::format("'{}' is not the plain name of a .safetensors file", name.substr(0, 300)))
          .Tensor(tensor)
          .Hint("the shards must lie beside the index; a name that leads elsewhere is not followed");
    by_tensor.emplace_back(tensor, name);
  }
  std::set<std::string_view> shards;
  for (const auto& [tensor, shard] : by_tensor) shards.insert(shard);
  index.shards.assign(shards.begin(), shards.end());

  std::sort(by_tensor.begin(), by_tensor.end());
  for (const auto& [tensor, shard] : by_tensor) {
    auto place = std::lower_bound(index.shards.begin(), index.shards.end(), shard);
    index.entries.push_back({std::string(tensor), static_cast<uint32_t>(place - index.shards.begin())});
  }
  return index;
}

}  // namespace braid
