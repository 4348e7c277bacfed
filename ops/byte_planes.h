// Floats as planes of bytes, for compression: the bytes of trained weights are noise but for the exponent, which takes
// few of its values. An element is rotated left by one bit, so that its most significant byte is the exponent (of f16:
// the exponent and three bits of the mantissa) and the sign is the last bit; then the most significant bytes of all
// elements come first, and so on.
//
// Where many elements are zero, as in a task vector that was trimmed, they are left out: each element has a mark, one
// bit, and only those that are marked are in the planes. The others are 0 in all their bits.
//
// Pure functions of their arguments; memory of any alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/dtype.h"

namespace braid {

enum class PlaneSplit : uint8_t { kNone, kTwo, kFour };   // planes of 16 and of 32-bit floats

PlaneSplit SplitOf(DType type);            // kNone for what is no float of 16 or 32 bits
constexpr size_t PlanesOf(PlaneSplit split) {
  return split == PlaneSplit::kTwo ? 2 : split == PlaneSplit::kFour ? 4 : 1;
}

// Marks of `n` elements: bit i % 8 of byte i / 8; what is left of the last byte is 0.
constexpr size_t MarkBytes(size_t n) { return (n + 7) / 8; }

// Marks the elements that are not 0, where a quarter of them is, otherwise all. Returns how many are marked. `split`,
// here and below, is not kNone.
size_t MarkElements(PlaneSplit split, const std::byte* elements, size_t n, std::byte* marks);

// Whether these can be the marks of `n` elements, and how many are marked then.
bool AreMarks(const std::byte* marks, size_t n, size_t* marked);

// The marked ones of `n` elements to PlanesOf(split) planes of `marked` bytes each, one behind the other.
void SplitPlanes(PlaneSplit split, const std::byte* elements, size_t n, const std::byte* marks, size_t marked,
                 std::byte* planes);

// Elements [first, first + count) of the `n` whose marks and planes these are.
void JoinPlanes(PlaneSplit split, const std::byte* marks, size_t n, const std::byte* planes, size_t marked,
                size_t first, size_t count, std::byte* elements);

}  // namespace braid
