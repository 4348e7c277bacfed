#include "ops/byte_planes.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace braid {
namespace {

// Through blocks of aligned integers: the compiler vectorises loops over these, and memory may have any alignment.
constexpr size_t kBlock = 512;
constexpr size_t kWord = 64;   // marks

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

// Of planes of n bytes, elements [first, first + count).
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

// --- marks ------------------------------------------------------------------------------------------------

uint64_t MarkOfByte(const std::byte* marks, size_t i) { return std::to_integer<uint64_t>(marks[i]); }

// Those of elements [at, at + count), at most 64, in the lowest bits; `at` is a multiple of 8.
uint64_t WordAt(const std::byte* marks, size_t at, size_t count) {
  uint64_t word = 0;
  if (count == kWord && std::endian::native == std::endian::little) {
    std::memcpy(&word, marks + at / 8, sizeof(word));
    return word;
  }
  for (size_t i = 0; 8 * i < count; ++i) word |= MarkOfByte(marks, at / 8 + i) << (8 * i);
  return count == kWord ? word : word & ((uint64_t{1} << count) - 1);
}

size_t CountMarks(const std::byte* marks, size_t n) {
  size_t marked = 0;
  for (size_t at = 0; at < n; at += kWord)
    marked += static_cast<size_t>(std::popcount(WordAt(marks, at, std::min(kWord, n - at))));
  return marked;
}

template <typename Bits>
size_t MarkNonZeros(const std::byte* elements, size_t n, std::byte* marks) {
  size_t marked = 0;
  alignas(64) Bits block[kBlock];
  alignas(64) uint8_t set[kBlock];
  for (size_t at = 0; at < n; at += kBlock) {
    const size_t count = std::min(kBlock, n - at);
    std::memcpy(block, elements + at * sizeof(Bits), count * sizeof(Bits));
    std::memset(set, 0, sizeof(set));
    for (size_t i = 0; i < count; ++i) set[i] = block[i] != 0;
    for (size_t i = 0; i < count; i += 8) {
      uint64_t eight;   // bytes of 0 and 1: products gather them, or their sum, in the uppermost byte
      std::memcpy(&eight, set + i, sizeof(eight));
      if constexpr (std::endian::native == std::endian::big) eight = __builtin_bswap64(eight);
      marks[(at + i) / 8] = static_cast<std::byte>(eight * 0x0102040810204080 >> 56);
      marked += eight * 0x0101010101010101 >> 56;
    }
  }
  return marked;
}

void MarkAll(size_t n, std::byte* marks) {
  std::memset(marks, 0xff, n / 8);
  if (n % 8 > 0) marks[n / 8] = static_cast<std::byte>((1u << n % 8) - 1);
}

template <typename Bits>
void SplitMarked(const std::byte* elements, size_t n, const std::byte* marks, size_t marked, std::byte* planes) {
  if (marked == n) return Split<Bits>(elements, n, planes);
  for (size_t at = 0, to = 0; at < n; at += kWord) {
    for (uint64_t word = WordAt(marks, at, std::min(kWord, n - at)); word != 0; word &= word - 1, ++to) {
      Bits bits;
      std::memcpy(&bits, elements + (at + static_cast<size_t>(std::countr_zero(word))) * sizeof(Bits), sizeof(Bits));
      bits = std::rotl(bits, 1);
      for (size_t p = 0; p < sizeof(Bits); ++p)
        planes[p * marked + to] = static_cast<std::byte>(bits >> (8 * (sizeof(Bits) - 1 - p)));
    }
  }
}

template <typename Bits>
void JoinMarked(const std::byte* marks, size_t n, const std::byte* planes, size_t marked, size_t first, size_t count,
                std::byte* elements) {
  if (marked == n) return Join<Bits>(planes, n, first, count, elements);
  std::memset(elements, 0, count * sizeof(Bits));
  const size_t end = first + count, begin = first / kWord * kWord;
  for (size_t at = begin, from = CountMarks(marks, begin); at < end; at += kWord) {
    uint64_t word = WordAt(marks, at, std::min(kWord, end - at));
    if (at < first) {   // what is in front of the range
      const uint64_t before = word & ((uint64_t{1} << (first - at)) - 1);
      from += static_cast<size_t>(std::popcount(before));
      word ^= before;
    }
    for (; word != 0; word &= word - 1, ++from) {
      Bits bits = 0;
      for (size_t p = 0; p < sizeof(Bits); ++p)
        bits = static_cast<Bits>(bits << 8 | std::to_integer<Bits>(planes[p * marked + from]));
      bits = std::rotr(bits, 1);
      std::memcpy(elements + (at + static_cast<size_t>(std::countr_zero(word)) - first) * sizeof(Bits), &bits,
                  sizeof(Bits));
    }
  }
}

}  // namespace

PlaneSplit SplitOf(DType type) {
  if (type == DType::kF16 || type == DType::kBF16) return PlaneSplit::kTwo;
  return type == DType::kF32 ? PlaneSplit::kFour : PlaneSplit::kNone;
}

size_t MarkElements(PlaneSplit split, const std::byte* elements, size_t n, std::byte* marks) {
  const size_t marked = split == PlaneSplit::kFour ? MarkNonZeros<uint32_t>(elements, n, marks)
                                                   : MarkNonZeros<uint16_t>(elements, n, marks);
  if (marked <= n - n / 4) return marked;
  MarkAll(n, marks);
  return n;
}

bool AreMarks(const std::byte* marks, size_t n, size_t* marked) {
  *marked = CountMarks(marks, n);
  return n % 8 == 0 || MarkOfByte(marks, n / 8) >> n % 8 == 0;
}

void SplitPlanes(PlaneSplit split, const std::byte* elements, size_t n, const std::byte* marks, size_t marked,
                 std::byte* planes) {
  if (split == PlaneSplit::kFour) SplitMarked<uint32_t>(elements, n, marks, marked, planes);
  else SplitMarked<uint16_t>(elements, n, marks, marked, planes);
}

void JoinPlanes(PlaneSplit split, const std::byte* marks, size_t n, const std::byte* planes, size_t marked,
                size_t first, size_t count, std::byte* elements) {
  if (split == PlaneSplit::kFour) JoinMarked<uint32_t>(marks, n, planes, marked, first, count, elements);
  else JoinMarked<uint16_t>(marks, n, planes, marked, first, count, elements);
}

}  // namespace braid
