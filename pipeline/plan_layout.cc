// Where every output byte goes. Greedy in file order, as the Hub and transformers shard: a tensor that does not fit
// the current shard begins the next one, and one that is larger than the limit has a shard of its own.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <span>

#include "io/base_identity.h"
#include "io/safetensors.h"
#include "io/shard_writer.h"
#include "pipeline/manifest.h"
#include "pipeline/plan_internal.h"

namespace braid {

namespace {

// `base`: of a delta.
PlannedShard MakeShard(std::span<const PlannedTensor> tensors, std::string name, bool with_checksums,
                       const std::optional<BaseIdentity>& base) {
  std::vector<TensorInfo> infos;
  infos.reserve(tensors.size());
  for (const PlannedTensor& tensor : tensors)
    infos.push_back({.name = tensor.name, .dtype = tensor.type, .shape = tensor.shape, .elements = tensor.elements,
                     .bytes = tensor.bytes});
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (with_checksums) AddChecksumRoom(&metadata, infos.size());
  if (base) {
    DeltaMarks marks{.base = base->headers, .samples = base->samples, .types = {}};
    for (const PlannedTensor& tensor : tensors) marks.types.push_back(tensor.applied);
    AddDeltaMarks(marks, &metadata);
  }
  // The data begins with a page: most tensors of most models are whole pages, and those need no page cache then.
  PlannedShard shard{.name = std::move(name), .header = MakeSafetensorsHeader(infos, metadata, ShardWriter::kPage)};
  shard.bytes = shard.header.size();
  for (const TensorInfo& info : infos) shard.bytes += info.bytes;
  return shard;
}

}  // namespace

void PlanLayout(Plan* plan, const PlanOptions& options) {
  plan->single_file = options.single_file || options.pipe;
  plan->in_order = options.pipe || plan->recipe.output.compress != Compression::kNone;
  std::vector<size_t> begins = {0};  // the first tensor of each shard
  uint64_t filled = 0;
  for (size_t t = 0; t < plan->tensors.size(); ++t) {
    PlannedTensor& tensor = plan->tensors[t];
    if (!plan->single_file && filled > 0 &&
        tensor.bytes > options.shard_bytes - std::min(filled, options.shard_bytes)) {
      begins.push_back(t);
      filled = 0;
    }
    tensor.shard = static_cast<uint32_t>(begins.size() - 1);
    tensor.offset = filled;  // within the data; the header's length is added below
    filled += tensor.bytes;
  }
  const size_t shards = begins.size();
  std::optional<BaseIdentity> base;
  if (plan->delta()) base = IdentityOfBase(plan->checkpoints[static_cast<size_t>(plan->base)]);
  begins.push_back(plan->tensors.size());
  for (size_t i = 0; i < shards; ++i) {
    const std::span tensors(plan->tensors.begin() + static_cast<ptrdiff_t>(begins[i]), begins[i + 1] - begins[i]);
    std::string name = shards == 1 ? "model.safetensors"
                                   : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards);
    plan->shards.push_back(MakeShard(tensors, std::move(name), plan->single_file && !plan->in_order, base));
    for (PlannedTensor& tensor : tensors) tensor.offset += plan->shards.back().header.size();
    plan->totals.bytes_written += plan->shards.back().bytes;
  }
}

}  // namespace braid
