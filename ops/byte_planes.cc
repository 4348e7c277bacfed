#include "ops/byte_planes.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace braid {
namespace {

// Through blocks of aligned integers: the compiler vectorises loops over these, and memory may have any alignment.
constexpr size_t kBlock = 512;

template <typename Bits>
void Split(const std::byte* elements, size_t n, std::byte* planes) {
  alignas(64) Bits block[kBlock];
  for (size_t at = 0; at < n; at += kBlock) {
    const size_t count = std::min(kBlock, n - at);
    std::memcpy(block, elements + at * sizeof(Bits), count * sizeof(Bits));
    for (size_t p = 0; p < sizeof(Bits); ++p) {
      auto* const plane = reinterpret_cast<uint8_t*>(planes + p * n + at);
      const int shift = static_cast<int>(8 * (sizeof(Bits) - 1 - p));
      for (size_t i = 0; i < count; ++i) plane[i] = static_cast<uint8_t>(std::rotl(block[i], 1) >> shift);
    }
  }
}

template <typename Bits>
void Join(const std::byte* planes, size_t n, size_t first, size_t count, std::byte* elements) {
  alignas(64) Bits block[kBlock];
  for (size_t at = 0; at < count; at += kBlock) {
    const size_t here = std::min(kBlock, count - at);
    const auto* const plane = reinterpret_cast<const uint8_t*>(planes) + first + at;
    for (size_t i = 0; i < here; ++i) {
      Bits bits = 0;
      for (size_t p = 0; p < sizeof(Bits); ++p) bits = static_cast<Bits>(bits << 8 | plane[p * n + i]);
      block[i] = std::rotr(bits, 1);
    }
    std::memcpy(elements + at * sizeof(Bits), block, here * sizeof(Bits));
  }
}

}  // namespace

PlaneSplit SplitOf(DType type) {
  if (type == DType::kF16 || type == DType::kBF16) return PlaneSplit::kTwo;
  return type == DType::kF32 ? PlaneSplit::kFour : PlaneSplit::kNone;
}

void SplitPlanes(PlaneSplit split, const std::byte* elements, size_t n, std::byte* planes) {
  switch (split) {
    case PlaneSplit::kTwo: return Split<uint16_t>(elements, n, planes);
    case PlaneSplit::kFour: return Split<uint32_t>(elements, n, planes);
    case PlaneSplit::kNone: std::memcpy(planes, elements, n);
  }
}

void JoinPlanes(PlaneSplit split, const std::byte* planes, size_t n, size_t first, size_t count, std::byte* elements) {
  switch (split) {
    case PlaneSplit::kTwo: return Join<uint16_t>(planes, n, first, count, elements);
    case PlaneSplit::kFour: return Join<uint32_t>(planes, n, first, count, elements);
    case PlaneSplit::kNone: std::memcpy(elements, planes + first, count);
  }
}

}  // namespace braid
