#include "ops/task_vector_parts.h"

#include <algorithm>
#include <utility>

#include "ops/mergers_internal.h"

namespace braid {
namespace {

// Task vectors of three models and what they are merged to stay in L2.
constexpr uint64_t kPartLanes = 8 * kBlockLanes;
constexpr size_t Stride(size_t lanes) { return Aligned((lanes + kLanePadding) * sizeof(float)) / sizeof(float); }

}  // namespace

uint64_t TaskVectorPart(const MethodInfo& method, const Coefficients& c, const TensorFacts& tensor) {
  // Of whole rows or slices: what is found of columns is known by now, and slices are merged one by one.
  const uint64_t tile_unit = method.TileUnit(c, tensor);
  const uint64_t unit = tile_unit == 0 || method.WorksByRows(c) ? tile_unit : tensor.slice;
  const uint64_t part = unit == 0 ? kPartLanes : std::max<uint64_t>(kPartLanes / unit, 1) * unit;
  return std::min(part, std::max<uint64_t>(tensor.elements, 1));
}

PartRoom::PartRoom(std::byte* bytes, size_t lanes, size_t num_models, size_t claims) : stride(Stride(lanes)) {
  const auto take = [&](size_t size) { return std::exchange(bytes, bytes + Aligned(size)); };
  zeros = reinterpret_cast<float*>(take(stride * sizeof(float)));
  merged = reinterpret_cast<float*>(take(stride * sizeof(float)));
  deltas = reinterpret_cast<float*>(take(num_models * stride * sizeof(float)));
  models = reinterpret_cast<EncodedLanes*>(take(num_models * sizeof(EncodedLanes)));
  left = reinterpret_cast<uint64_t*>(take(claims * sizeof(uint64_t)));
  granted = reinterpret_cast<uint64_t*>(take(claims * sizeof(uint64_t)));
}

size_t PartRoom::Bytes(size_t lanes, size_t num_models, size_t claims) {
  return (num_models + 2) * Stride(lanes) * sizeof(float) + Aligned(num_models * sizeof(EncodedLanes)) +
         2 * Aligned(claims * sizeof(uint64_t));
}

RoundSpec TaskVectorParts::WithRoom(RoundSpec spec) const {
  spec.scratch_bytes = Aligned(spec.scratch_bytes) + PartRoom::Bytes(largest_part_, num_models_, Claims());
  return spec;
}

PartRoom TaskVectorParts::Enter(const LaneTile& tile, const uint64_t* grants, uint64_t lanes, Scratch& scratch) const {
  const RoundSpec merge = merger_->round(merger_->statistics_rounds());
  const PartRoom room(scratch.workspace + Aligned(merge.scratch_bytes), largest_part_, num_models_, Claims());
  std::fill_n(room.zeros, lanes + kLanePadding, 0.0f);
  std::fill_n(room.left, Claims(), 0);
  if (merge.ordered) std::copy_n(grants, Claims(), room.left);
  ExposeDeltas(tile, room);
  return room;
}

void TaskVectorParts::ExposeDeltas(const LaneTile& tile, const PartRoom& room) const {
  for (size_t m = 0; m < num_models_; ++m) {
    room.models[m] = {};
    if (tile.models[m].bytes != nullptr)
      room.models[m] = {.type = DType::kF32, .bytes = reinterpret_cast<const std::byte*>(room.DeltasOf(m))};
  }
}

LaneTile TaskVectorParts::PartOf(const Coefficients& c, const LaneTile& tile, size_t begin, size_t end,
                                 Scratch& scratch, const PartRoom& room) const {
  for (size_t start = begin; start < end; start += kBlockLanes) {
    const size_t n = std::min(kBlockLanes, end - start);
    DecodeLanesAt(tile.base, start, n, scratch.base);
    for (size_t m = 0; m < num_models_; ++m) {
      const EncodedLanes& source = tile.models[m];
      if (source.bytes == nullptr) continue;
      DecodeTaskVector(source.type, source.bytes + start * static_cast<size_t>(LaneBytes(source.type)), scratch.base, n,
                       room.DeltasOf(m) + (start - begin));
    }
  }
  const LaneTile part{.first = tile.first + begin, .count = end - begin, .tensor = tile.tensor,
                      .base = {.type = DType::kF32, .bytes = reinterpret_cast<const std::byte*>(room.zeros)},
                      .models = {room.models, num_models_}};
  GrantPart(*merger_, c, part, scratch, {room.left, Claims()}, room.granted);
  return part;
}

}  // namespace braid
