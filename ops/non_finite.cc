#include "ops/non_finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace braid {
namespace {

// `infinity`: its bits. Larger ones, apart from the sign, are NaN.
template <typename Element>
void Count(const void* bytes, size_t n, Element infinity, NonFinite* counts) {
  constexpr Element kMagnitude = static_cast<Element>(~Element{0}) >> 1;
  constexpr size_t kBlock = 4096;  // fits L1, and its counts fit an Element, so that the loop below is SIMD
  Element block[kBlock];
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t length = std::min(kBlock, n - start);
    std::memcpy(block, static_cast<const char*>(bytes) + start * sizeof(Element), length * sizeof(Element));
    Element nan = 0, inf = 0;
    for (size_t i = 0; i < length; ++i) {
      const Element magnitude = block[i] & kMagnitude;
      nan = static_cast<Element>(nan + (magnitude > infinity));
      inf = static_cast<Element>(inf + (magnitude == infinity));
    }
    counts->nan += nan, counts->inf += inf;
  }
}

}  // namespace

void CountNonFinite(DType type, const void* bytes, size_t n, NonFinite* counts) {
  switch (type) {
    case DType::kBF16: return Count<uint16_t>(bytes, n, 0x7f80, counts);
    case DType::kF16: return Count<uint16_t>(bytes, n, 0x7c00, counts);
    case DType::kF32: return Count<uint32_t>(bytes, n, 0x7f800000, counts);
    case DType::kF64: return Count<uint64_t>(bytes, n, 0x7ff0000000000000, counts);
    default: return;
  }
}

}  // namespace braid
