#include "pipeline/tile_sources.h"

#include <fmt/format.h>

#include <cstring>

#include "io/error.h"

namespace braid {

uint64_t MappedBytes(const TileWork& work) {
  uint64_t bytes = 0;
  for (const SourceWindow& window : work.windows) bytes += window.size();
  return bytes;
}

LaneTile LanesOf(const Plan& plan, const TileWork& work, std::vector<EncodedLanes>* lanes) {
  const PlannedTensor& tensor = plan.tensors[work.tensor];
  const auto at = [&](size_t slot) -> EncodedLanes {
    const SourceWindow& window = work.windows[slot];
    return window.size() == 0 ? EncodedLanes{} : EncodedLanes{plan.TypeAt(tensor, slot), window.data()};
  };
  for (size_t m = 0; m < tensor.models.size(); ++m) (*lanes)[m] = at(m + 1);
  return {.first = work.first, .count = work.count, .tensor = tensor.Facts(), .base = at(0),
          .models = std::span(*lanes).first(tensor.models.size())};
}

void CopyTile(const Plan& plan, const TileWork& work, std::byte* out) {
  const PlannedTensor& tensor = plan.tensors[work.tensor];
  const TensorSource* first = nullptr;
  for (size_t slot = 0; slot <= tensor.models.size(); ++slot) {
    const TensorSource& source = tensor.SourceAt(slot);
    if (!source.present()) continue;
    const uint64_t bytes = work.count * static_cast<uint64_t>(DTypeBits(plan.Info(source).dtype)) / 8;
    const std::byte* data = work.windows[slot].data();
    if (first == nullptr) {
      first = &source;
      std::memcpy(out, data, bytes);
    } else if (std::memcmp(out, data, bytes) != 0) {
      throw Error(ErrorCode::kIncompatible,
                  fmt::format("its values differ between {} and {}",
                              plan.checkpoints[static_cast<size_t>(first->checkpoint)].reference,
                              plan.checkpoints[static_cast<size_t>(source.checkpoint)].reference))
          .Tensor(tensor.name)
          .Hint("tensors that are not floating point must be the same in all sources");
    }
  }
}

}  // namespace braid
