// Element types: names, decoding and rounding, exhaustively where a type has 65,536 patterns.
#include <algorithm>

#include "ops/dtype.h"
#include "tests/ops/reference.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

using test::ForEachTarget;
using test::FromBits;
using test::kLaneTypes;
using test::Random;
using test::SameLane;
using test::ToBits;

std::vector<std::byte> Raw(const void* data, size_t size) {
  const auto* bytes = static_cast<const std::byte*>(data);
  return {bytes, bytes + size};
}

template <typename T>
std::vector<float> DecodeVector(DType type, const std::vector<T>& elements) {
  std::vector<float> lanes(elements.size() + kLanePadding);
  DecodeLanes(type, elements.data(), elements.size(), lanes.data());
  lanes.resize(elements.size());
  return lanes;
}

template <typename T>
std::vector<T> EncodeVector(DType type, std::vector<float> lanes, NonFinite* counts) {
  const size_t n = lanes.size();
  lanes.resize(n + kLanePadding, -7.0f);
  std::vector<T> elements(n);
  EncodeLanes(type, lanes.data(), n, elements.data(), counts);
  return elements;
}

TEST(DType, NamesAndSizesAreThoseOfTheFormat) {
  const std::pair<const char*, int> rows[] = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  int position = 0;
  for (const auto& [name, bits] : rows) {
    const std::optional<DType> type = ParseDType(name);
    ASSERT_TRUE(type.has_value()) << name;
    EXPECT_EQ(static_cast<int>(*type), position++) << name;
    EXPECT_EQ(DTypeName(*type), name);
    EXPECT_EQ(DTypeBits(*type), bits) << name;
  }
  for (const char* wrong : {"", "bf16", "F32 ", "F128", "F8"}) EXPECT_FALSE(ParseDType(wrong)) << wrong;
}

TEST(DType, LaneTypesPromoteAsTorchDoes) {
  const auto both = [](DType a, DType b) {
    EXPECT_EQ(PromoteLaneTypes(a, b), PromoteLaneTypes(b, a));
    return PromoteLaneTypes(a, b);
  };
  for (DType type : kLaneTypes) EXPECT_EQ(both(type, type), type);
  EXPECT_EQ(both(DType::kBF16, DType::kF16), DType::kF32);
  EXPECT_EQ(both(DType::kBF16, DType::kF32), DType::kF32);
  EXPECT_EQ(both(DType::kF16, DType::kF32), DType::kF32);
  EXPECT_EQ(both(DType::kF16, DType::kF64), DType::kF64);
  EXPECT_EQ(both(DType::kF32, DType::kF64), DType::kF64);
}

TEST(DType, TorchNamesReadBack) {
  for (DType type : kLaneTypes) {
    EXPECT_TRUE(IsLaneType(type));
    EXPECT_FALSE(IsQuantisedType(type));
    EXPECT_EQ(ParseTorchLaneType(TorchName(type)), type);
    EXPECT_EQ(ParseTorchLaneType("torch." + std::string(TorchName(type))), type);
  }
  EXPECT_EQ(TorchName(DType::kBF16), "bfloat16");
  EXPECT_FALSE(ParseTorchLaneType("int8"));
  EXPECT_FALSE(ParseTorchLaneType("torch.torch.float32"));
  EXPECT_FALSE(IsLaneType(DType::kI64));
  EXPECT_TRUE(IsQuantisedType(DType::kF8E4M3));
}

TEST(Types, EveryPatternOfSixteenBitsDecodesToItsValue) {
  std::vector<uint16_t> patterns(65'536);
  for (size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<uint16_t>(i);
  ForEachTarget([&] {
    for (DType type : {DType::kBF16, DType::kF16}) {
      const reference::Format& format = type == DType::kBF16 ? reference::kBF16 : reference::kF16;
      const std::vector<float> lanes = DecodeVector(type, patterns);
      for (size_t i = 0; i < patterns.size(); ++i)
        ASSERT_TRUE(SameLane(lanes[i], static_cast<float>(reference::Value(format, patterns[i])))) << i;
    }
  });
}

TEST(Types, KnownValuesDecode) {
  const std::vector<uint16_t> halves = {0x0000, 0x8000, 0x0001, 0x03ff, 0x0400,
                                        0x3c00, 0xc000, 0x7bff, 0x7c00, 0xfc00};
  const std::vector<float> half_values = {0.0f,
                                          -0.0f,
                                          5.9604644775390625e-8f,
                                          6.0975551605224609375e-5f,
                                          6.103515625e-5f,
                                          1.0f,
                                          -2.0f,
                                          65504.0f,
                                          INFINITY,
                                          -INFINITY};
  const std::vector<uint16_t> brains = {0x3f80, 0xc000, 0x7f7f, 0x0001, 0x8000, 0x7f80, 0x4049};
  const std::vector<float> brain_values = {1.0f,  -2.0f,    3.38953139e38f, 9.18354962e-41f,
                                           -0.0f, INFINITY, 3.140625f};
  ForEachTarget([&] {
    const std::vector<float> from_half = DecodeVector(DType::kF16, halves);
    for (size_t i = 0; i < halves.size(); ++i) EXPECT_EQ(ToBits(from_half[i]), ToBits(half_values[i])) << i;
    const std::vector<float> from_brain = DecodeVector(DType::kBF16, brains);
    for (size_t i = 0; i < brains.size(); ++i) EXPECT_EQ(ToBits(from_brain[i]), ToBits(brain_values[i])) << i;
  });
}

// Between each pair of neighbours: the midpoint goes to the even one, one float32 step to either side
// decides. The expectations here come from the patterns alone.
TEST(Types, EveryMidpointRoundsToEven) {
  for (DType type : {DType::kBF16, DType::kF16}) {
    const reference::Format& format = type == DType::kBF16 ? reference::kBF16 : reference::kF16;
    const double past_the_end = type == DType::kBF16 ? std::ldexp(1.0, 128) : 65'536.0;
    std::vector<float> lanes;
    std::vector<uint16_t> expected;
    const auto expect_both_signs = [&](float x, uint32_t bits) {
      lanes.push_back(x), expected.push_back(static_cast<uint16_t>(bits));
      lanes.push_back(-x), expected.push_back(static_cast<uint16_t>(bits | 0x8000));
    };
    for (uint32_t low = 0; low < format.infinity; ++low) {
      const double a = reference::Value(format, low);
      const double b = low + 1 == format.infinity ? past_the_end : reference::Value(format, low + 1);
      const auto middle = static_cast<float>((a + b) / 2);
      ASSERT_EQ(static_cast<double>(middle), (a + b) / 2);
      expect_both_signs(static_cast<float>(a), low);
      expect_both_signs(middle, low % 2 == 0 ? low : low + 1);
      expect_both_signs(std::nextafterf(middle, 0.0f), low);
      expect_both_signs(std::nextafterf(middle, INFINITY), low + 1);
    }
    expect_both_signs(INFINITY, format.infinity);
    expect_both_signs(std::numeric_limits<float>::max(), format.infinity);
    const auto inf = std::count_if(expected.begin(), expected.end(),
                                   [&](uint16_t bits) { return (bits & 0x7fffu) == format.infinity; });
    ForEachTarget([&] {
      NonFinite counts;
      const std::vector<uint16_t> bits = EncodeVector<uint16_t>(type, lanes, &counts);
      for (size_t i = 0; i < lanes.size(); ++i) ASSERT_EQ(bits[i], expected[i]) << ToBits(lanes[i]);
      EXPECT_EQ(counts.inf, static_cast<uint64_t>(inf));
      EXPECT_EQ(counts.nan, 0u);
    });
  }
}

TEST(Types, OverflowStartsHalfAStepAboveTheLargest) {
  ForEachTarget([] {
    NonFinite counts;
    const auto half =
        EncodeVector<uint16_t>(DType::kF16, {65504.0f, 65519.996f, 65520.0f, -65520.0f, 1e30f}, &counts);
    EXPECT_EQ(half, (std::vector<uint16_t>{0x7bff, 0x7bff, 0x7c00, 0xfc00, 0x7c00}));
    EXPECT_EQ(counts.inf, 3u);
    const auto brain = EncodeVector<uint16_t>(
        DType::kBF16, {FromBits(0x7f7f7fff), FromBits(0x7f7f8000), FromBits(0xff7fffff)}, &counts);
    EXPECT_EQ(brain, (std::vector<uint16_t>{0x7f7f, 0x7f80, 0xff80}));
    EXPECT_EQ(counts.inf, 5u);  // added to what was there
    EXPECT_EQ(counts.nan, 0u);
  });
}

TEST(Types, RandomLanesRoundAsTheReference) {
  Random random;
  std::vector<float> lanes = test::RandomLanes(random, 200'000, test::Kind::kAnyBits);
  for (size_t i = 0; i < 100'000; ++i)  // the narrow range of f16
    lanes.push_back(static_cast<float>(std::ldexp(random.Normal(), static_cast<int>(random.Below(44)) - 28)));
  ForEachTarget([&] {
    for (DType type : kLaneTypes) {
      NonFinite counts;
      std::vector<std::byte> bytes(lanes.size() * static_cast<size_t>(LaneBytes(type)));
      std::vector<float> padded = lanes;
      padded.resize(lanes.size() + kLanePadding);
      EncodeLanes(type, padded.data(), lanes.size(), bytes.data(), &counts);
      ASSERT_TRUE(bytes == reference::Encode(type, lanes)) << DTypeName(type);
    }
  });
}

TEST(Types, EveryNanBecomesTheCanonicalOne) {
  std::vector<float> nans;
  for (uint32_t payload :
       {1u, 2u, 0x1fffu, 0x2000u, 0xffffu, 0x10000u, 0x3fffffu, 0x400000u, 0x400001u, 0x7fffffu})
    nans.push_back(FromBits(0x7f800000 | payload)), nans.push_back(FromBits(0xff800000 | payload));
  for (uint32_t bit = 0; bit < 23; ++bit) nans.push_back(FromBits(0x7f800000 | 1u << bit));
  ForEachTarget([&] {
    NonFinite counts;
    for (uint16_t bits : EncodeVector<uint16_t>(DType::kBF16, nans, &counts)) EXPECT_EQ(bits, 0x7fc0);
    for (uint16_t bits : EncodeVector<uint16_t>(DType::kF16, nans, &counts)) EXPECT_EQ(bits, 0x7e00);
    for (uint32_t bits : EncodeVector<uint32_t>(DType::kF32, nans, &counts)) EXPECT_EQ(bits, 0x7fc00000u);
    for (uint64_t bits : EncodeVector<uint64_t>(DType::kF64, nans, &counts))
      EXPECT_EQ(bits, 0x7ff8000000000000u);
    EXPECT_EQ(counts.nan, 4 * nans.size());
    EXPECT_EQ(counts.inf, 0u);
  });
}

TEST(Types, WiderTypesKeepEveryOtherLane) {
  const std::vector<float> lanes = {0.0f,          -0.0f,    1.5f,     FromBits(1), FromBits(0x807fffff),
                                    3.4028235e38f, INFINITY, -INFINITY};
  ForEachTarget([&] {
    NonFinite counts;
    const auto narrow = EncodeVector<float>(DType::kF32, lanes, &counts);
    const auto wide = EncodeVector<double>(DType::kF64, lanes, &counts);
    for (size_t i = 0; i < lanes.size(); ++i) {
      EXPECT_EQ(ToBits(narrow[i]), ToBits(lanes[i]));
      EXPECT_EQ(std::bit_cast<uint64_t>(wide[i]), std::bit_cast<uint64_t>(static_cast<double>(lanes[i])));
    }
    EXPECT_EQ(counts.inf, 4u);
  });
}

// A double just beside the midpoint of two floats must not be rounded twice.
TEST(Types, DoublesRoundOnceToFloatLanes) {
  Random random;
  std::vector<double> wide = {0.0,
                              -0.0,
                              5e-324,
                              -5e-324,
                              1e-46,
                              0x1p-150,
                              0x1.000001p-150,
                              0x1p-149,
                              0x1.8p-149,
                              0x1.fffffep127,
                              0x1.fffffefffffffp127,
                              0x1.ffffffp127,
                              0x1.fffffffp127,
                              1e300,
                              -1e300,
                              INFINITY,
                              -INFINITY,
                              std::nan(""),
                              0x1.0000010000001p0,
                              0x1.000001p0,
                              0x1.0000030000000p0,
                              0x1.000002fffffffp0,
                              0x1.fffffdp-127,
                              0x1.fffffffp-127};
  for (int i = 0; i < 20'000; ++i) {
    const float a = std::fabs(test::RandomLane(random, test::Kind::kAnyBits));
    const float b = std::nextafterf(a, INFINITY);
    if (!std::isfinite(b)) continue;
    const double middle = (static_cast<double>(a) + static_cast<double>(b)) / 2;
    for (double x : {middle, std::nextafter(middle, 0.0), std::nextafter(middle, 1e308)}) {
      wide.push_back(x);
      wide.push_back(-x);
    }
    wide.push_back(std::bit_cast<double>(random()));
  }
  ForEachTarget([&] {
    const std::vector<float> lanes = DecodeVector(DType::kF64, wide);
    for (size_t i = 0; i < wide.size(); ++i)
      ASSERT_TRUE(SameLane(lanes[i], FromBits(reference::Round(reference::kF32, wide[i])))) << wide[i];
  });
}

// Each length, at each misalignment: nothing is read or written beyond the elements, the padding is zeroed.
TEST(Types, TailsAndUnalignedBytes) {
  Random random;
  ForEachTarget([&] {
    for (DType type : kLaneTypes) {
      const auto size = static_cast<size_t>(LaneBytes(type));
      for (size_t n = 0; n <= 200; ++n) {
        const size_t skew = n % (size + 1);
        std::vector<float> lanes = test::Padded(random, test::RandomLanes(random, n, test::kAllKinds[n % 4]));
        constexpr auto kGuard = std::byte{0xa5};
        std::vector<std::byte> bytes(skew + n * size + 70, kGuard);
        NonFinite counts;
        EncodeLanes(type, lanes.data(), n, bytes.data() + skew, &counts);
        const std::vector<std::byte> expected = reference::Encode(type, {lanes.data(), n});
        ASSERT_TRUE(
            std::equal(expected.begin(), expected.end(), bytes.begin() + static_cast<ptrdiff_t>(skew)));
        for (size_t i = 0; i < skew; ++i) ASSERT_EQ(bytes[i], kGuard);
        for (size_t i = skew + n * size; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], kGuard) << n;

        const std::vector<float> back = reference::Decode(type, expected);
        NonFinite wanted;
        for (float x : back) wanted.nan += std::isnan(x), wanted.inf += std::isinf(x);
        ASSERT_EQ(counts.nan, wanted.nan);
        ASSERT_EQ(counts.inf, wanted.inf);

        bytes.resize(skew + n * size);
        bytes.shrink_to_fit();  // a read past the end is now one that AddressSanitizer sees
        std::vector<float> decoded(n + kLanePadding + 8, 99.0f);
        DecodeLanes(type, bytes.data() + skew, n, decoded.data());
        for (size_t i = 0; i < n; ++i) ASSERT_TRUE(SameLane(decoded[i], back[i])) << n << " " << i;
        for (size_t i = n; i < n + kLanePadding; ++i) ASSERT_EQ(ToBits(decoded[i]), 0u);
        for (size_t i = n + kLanePadding; i < decoded.size(); ++i) ASSERT_EQ(decoded[i], 99.0f);
      }
    }
  });
}

// The reference's rounding, against the compiler's own conversion.
TEST(Reference, RoundsAsTheProcessorDoes) {
  Random random;
  for (int i = 0; i < 200'000; ++i) {
    const double x =
        std::bit_cast<double>((random() & 0x8fffffffffffffff) | (random.Below(256) + 0x380ul - 100) << 52);
    ASSERT_EQ(reference::Round(reference::kF32, x), ToBits(static_cast<float>(x))) << x;
    const auto bits = static_cast<uint32_t>(random());
    if (std::isnan(FromBits(bits))) continue;
    ASSERT_EQ(reference::Round(reference::kF32, reference::Value(reference::kF32, bits)), bits);
    ASSERT_EQ(reference::Value(reference::kF32, bits), static_cast<double>(FromBits(bits)));
  }
  EXPECT_EQ(reference::Decode(DType::kF64, Raw("\0\0\0\0\0\0\xf8\x3f", 8)), std::vector<float>{1.5f});
}

}  // namespace
}  // namespace braid
