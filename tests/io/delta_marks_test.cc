// What a delta's files say of themselves.
#include "io/delta_marks.h"

#include <gtest/gtest.h>

#include "io/error.h"
#include "tests/ops/test_support.h"

namespace braid {
namespace {

constexpr const char* kSum = "0123456789abcdef0123456789abcdef";

SafetensorsHeader HeaderWith(const std::map<std::string, std::string>& metadata, size_t tensors,
                             DType type = DType::kF32) {
  std::vector<TensorInfo> infos;
  for (size_t i = 0; i < tensors; ++i)
    infos.push_back({.name = "t" + std::to_string(i), .dtype = type, .shape = {1}, .elements = 1,
                     .bytes = static_cast<uint64_t>(DTypeBits(type) / 8)});
  const std::string header = MakeSafetensorsHeader(infos, metadata);
  return ParseSafetensorsHeader(std::string_view(header).substr(8), header.size() + tensors * infos[0].bytes, "x");
}

TEST(DeltaMarks, ComeBack) {
  const std::vector<std::vector<DType>> lists = {
      {DType::kBF16}, {DType::kF32, DType::kBF16, DType::kBF16, DType::kF64, DType::kF16, DType::kF16},
      std::vector<DType>(1000, DType::kF16)};
  for (const auto& types : lists) {
    std::map<std::string, std::string> metadata = {{"format", "pt"}};
    AddDeltaMarks({.base = kSum, .samples = kSum, .types = types}, &metadata);
    const auto found = FindDeltaMarks(HeaderWith(metadata, types.size()), "x");
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->base, kSum);
    EXPECT_EQ(found->samples, kSum);
    EXPECT_EQ(found->types, types);
    EXPECT_LT(metadata.at("braid.types").size(), 40u) << "runs";
  }
  EXPECT_FALSE(FindDeltaMarks(HeaderWith({{"format", "pt"}}, 2), "x"));
}

TEST(DeltaMarks, AreCheckedBeforeTheyAreBelieved) {
  const auto code = [](const std::string& key, const std::string& value, DType type = DType::kF32) {
    std::map<std::string, std::string> metadata;
    AddDeltaMarks({.base = kSum, .samples = kSum, .types = {DType::kBF16, DType::kBF16}}, &metadata);
    metadata[key] = value;
    try {
      FindDeltaMarks(HeaderWith(metadata, 2, type), "x");
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  for (const char* types : {"", "BF16*1", "BF16*3", "BF16*18446744073709551615 F32*3", "BF16*-2", " BF16*2", "BF16",
                            "I8*2", "BF16*1 F32", "BF16*1,F32*1", "X*2", "BF16*2x", "BF16*0"})
    EXPECT_EQ(code("braid.types", types), ErrorCode::kBadInput) << types;
  for (const char* key : {"braid.base", "braid.base_samples"})
    for (const char* sum : {"x", "0123", "0123456789ABCDEF0123456789abcdef", "0123456789abcdef0123456789abcdef0"})
      EXPECT_EQ(code(key, sum), ErrorCode::kBadInput) << key << " " << sum;
  EXPECT_EQ(code("braid.base", kSum, DType::kI32), ErrorCode::kBadInput) << "no task vector";
  EXPECT_EQ(code("braid.base", kSum), ErrorCode::kInternal) << "all is well";
}

// Whatever the types say, they are as many as there are tensors, or an error.
TEST(DeltaMarks, AnyText) {
  test::Random random;
  const std::vector<std::string> parts = {"BF16", "F32", "F64", "I8", "*", "*", " ", "1", "2", "3", "0", "-", "+", "9",
                                          "18446744073709551615", "18446744073709551614", "x", "\t"};
  std::map<std::string, std::string> metadata;
  AddDeltaMarks({.base = kSum, .samples = kSum, .types = {DType::kBF16, DType::kF32, DType::kF32}}, &metadata);
  int read = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text = i % 2 == 0 ? "BF16*1 F32*2" : "";
    if (text.empty())
      for (size_t n = 1 + random.Below(8); n > 0; --n) text += parts[random.Below(parts.size())];
    else text.replace(random.Below(text.size()), random.Below(3), parts[random.Below(parts.size())]);
    metadata["braid.types"] = text;
    try {
      EXPECT_EQ(FindDeltaMarks(HeaderWith(metadata, 3), "x")->types.size(), 3u) << text;
      ++read;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadInput) << text;
    }
  }
  EXPECT_GT(read, 20);
}

}  // namespace
}  // namespace braid
