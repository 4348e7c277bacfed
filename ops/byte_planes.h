// Floats as planes of bytes, for compression: the bytes of trained weights are noise but for the exponent, which takes
// few of its values. An element is rotated left by one bit, so that its most significant byte is the exponent (of f16:
// the exponent and three bits of the mantissa) and the sign is the last bit; then the most significant bytes of all
// elements come first, and so on.
//
// Pure functions of their arguments; memory of any alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/dtype.h"

namespace braid {

enum class PlaneSplit : uint8_t { kNone, kTwo, kFour };   // planes of 16 and of 32-bit floats

PlaneSplit SplitOf(DType type);            // kNone for what is no float of 16 or 32 bits
constexpr size_t PlanesOf(PlaneSplit split) { return split == PlaneSplit::kTwo ? 2 : split == PlaneSplit::kFour ? 4 : 1; }

// `n` elements to PlanesOf(split) planes of n bytes each, one behind the other.
void SplitPlanes(PlaneSplit split, const std::byte* elements, size_t n, std::byte* planes);

// Elements [first, first + count) of the n whose planes these are.
void JoinPlanes(PlaneSplit split, const std::byte* planes, size_t n, size_t first, size_t count, std::byte* elements);

}  // namespace braid
