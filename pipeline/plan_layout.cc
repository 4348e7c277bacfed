// Where every output byte goes. Greedy in file order, as the Hub and transformers shard: a tensor that does not fit
// the current shard begins the next one, and one that is larger than the limit has a shard of its own.

#include <fmt/format.h>

#include <algorithm>

#include "io/safetensors.h"
#include "io/shard_writer.h"
#include "pipeline/manifest.h"
#include "pipeline/plan_internal.h"

namespace braid {

void PlanLayout(Plan* plan, const PlanOptions& options) {
  plan->single_file = options.single_file;
  std::vector<std::vector<TensorInfo>> shards(1);
  uint64_t filled = 0;
  for (PlannedTensor& tensor : plan->tensors) {
    if (!options.single_file && filled > 0 && tensor.bytes > options.shard_bytes - std::min(filled, options.shard_bytes)) {
      shards.emplace_back();
      filled = 0;
    }
    tensor.shard = static_cast<uint32_t>(shards.size() - 1);
    tensor.offset = filled;  // within the data; the header's length is added below
    filled += tensor.bytes;
    shards.back().push_back({.name = tensor.name, .dtype = tensor.type, .shape = tensor.shape,
                             .elements = tensor.elements, .bytes = tensor.bytes});
  }
  std::vector<uint64_t> data_offsets;
  for (size_t i = 0; i < shards.size(); ++i) {
    PlannedShard shard;
    shard.name = shards.size() == 1 ? "model.safetensors"
                                    : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::map<std::string, std::string> metadata = {{"format", "pt"}};
    if (options.single_file) AddChecksumRoom(&metadata, shards[i].size());
    // The data begins with a page: most tensors of most models are whole pages, and those need no page cache then.
    shard.header = MakeSafetensorsHeader(shards[i], metadata, ShardWriter::kPage);
    shard.bytes = shard.header.size();
    for (const TensorInfo& info : shards[i]) shard.bytes += info.bytes;
    data_offsets.push_back(shard.header.size());
    plan->shards.push_back(std::move(shard));
  }
  for (PlannedTensor& tensor : plan->tensors) tensor.offset += data_offsets[tensor.shard];
}

}  // namespace braid
