// Where Braid is stricter than the reference reader (safetensors 0.8): duplicate names, whitespace before
// '{', shapes of more than 64 dimensions, dimensions of 2^48 and more, names longer than 4,096 bytes, nesting
// deeper than 64. Every other file that this reader accepts, the reference accepts too.
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "io/error.h"
#include "io/os.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::ErrorOf;
using fixture::LengthBytes;
using fixture::SafetensorsFile;
using fixture::TemporaryDirectory;

SafetensorsHeader Parse(const std::string& json, uint64_t data_bytes) {
  return ParseSafetensorsHeader(json, 8 + json.size() + data_bytes, "f.safetensors");
}

SafetensorsHeader Read(const std::string& path) {
  FileIdentity identity;
  Fd fd = OpenForReading(path, &identity);
  return ReadSafetensorsHeader(fd.get(), identity.size, path);
}

std::string Entry(const std::string& name, const std::string& type, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
         offsets + "]}";
}
std::string One(const std::string& type, const std::string& shape, const std::string& offsets) {
  return "{" + Entry("a", type, shape, offsets) + "}";
}

struct Hostile {
  std::string why;
  std::string json;
  uint64_t data_bytes;
};

const std::vector<Hostile>& Hostiles() {
  using namespace std::string_literals;
  static const std::string a = Entry("a", "F32", "1", "0,4"), b = Entry("b", "F32", "1", "4,8");
  static const std::vector<Hostile> cases = {
      {"empty header", "", 0},
      {"not an object", "[]", 0},
      {"leading space", " {}", 0},
      {"leading newline", "\n{}", 0},
      {"byte order mark", "\xef\xbb\xbf{}", 0},
      {"trailing NUL", "{}\0"s, 0},
      {"NUL then more", "{" + a + "}\0garbage"s, 4},
      {"trailing value", "{}{}", 0},
      {"trailing text", "{}x", 0},
      {"unfinished", "{" + a, 4},
      {"duplicate tensor", "{" + a + "," + a + "}", 4},
      {"duplicate tensor, other range", "{" + a + "," + Entry("a", "F32", "1", "4,8") + "}", 8},
      {"duplicate tensor, escaped", "{" + a + "," + Entry("\\u0061", "F32", "1", "4,8") + "}", 8},
      {"duplicate empty tensor",
       "{" + Entry("z", "F32", "0", "0,0") + "," + Entry("z", "F32", "0", "0,0") + "}", 0},
      {"duplicate dtype", R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4},
      {"duplicate shape", R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4},
      {"duplicate offsets", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}})",
       4},
      {"duplicate extra", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1,"x":1}})", 4},
      {"duplicate within extra",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[{"y":1,"y":2}]}})", 4},
      {"duplicate metadata key", R"({"__metadata__":{"k":"1","k":"2"}})", 0},
      {"duplicate metadata", R"({"__metadata__":{},"__metadata__":{}})", 0},
      {"duplicate metadata, null", R"({"__metadata__":null,"__metadata__":{}})", 0},
      {"metadata not strings", R"({"__metadata__":{"k":1}})", 0},
      {"metadata null value", R"({"__metadata__":{"k":null}})", 0},
      {"metadata object value", R"({"__metadata__":{"k":{}}})", 0},
      {"metadata list value", R"({"__metadata__":{"k":[]}})", 0},
      {"metadata is a list", R"({"__metadata__":[]})", 0},
      {"metadata is a string", R"({"__metadata__":"x"})", 0},
      {"entry is null", R"({"a":null})", 0},
      {"entry is a list", R"({"a":[]})", 0},
      {"entry is a number", R"({"a":1})", 0},
      {"no dtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4},
      {"no shape", R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4},
      {"no offsets", R"({"a":{"dtype":"F32","shape":[1]}})", 4},
      {"empty entry", R"({"a":{}})", 0},
      {"unknown dtype", One("F31", "1", "0,4"), 4},
      {"lowercase dtype", One("f32", "1", "0,4"), 4},
      {"dtype is a number", R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})", 4},
      {"dtype is an object", R"({"a":{"dtype":{},"shape":[1],"data_offsets":[0,4]}})", 4},
      {"shape is a number", R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4},
      {"shape is null", R"({"a":{"dtype":"F32","shape":null,"data_offsets":[0,4]}})", 4},
      {"shape in shape", One("F32", "[1]", "0,4"), 4},
      {"float dimension", One("F32", "1.0", "0,4"), 4},
      {"exponent dimension", One("U8", "1e1", "0,10"), 10},
      {"negative dimension", One("F32", "-1", "0,4"), 4},
      {"minus zero dimension", One("F32", "-0", "0,0"), 0},
      {"string dimension", One("F32", "\"1\"", "0,4"), 4},
      {"null dimension", One("F32", "null", "0,4"), 4},
      {"boolean dimension", One("F32", "true", "0,4"), 4},
      {"dimension 2^48", One("F32", "0,281474976710656", "0,0"), 0},
      {"dimension 2^63 after 0", One("F32", "0,9223372036854775808,4", "0,0"), 0},
      {"dimension 2^63 before 0", One("F32", "9223372036854775808,4,0", "0,0"), 0},
      {"dimension 2^64", One("F32", "18446744073709551616", "0,4"), 4},
      {"2^32 x 2^32", One("F32", "4294967296,4294967296", "0,0"), 0},
      {"2^32 x 2^32 x 2", One("U8", "4294967296,4294967296,2", "0,0"), 0},
      {"2^61 elements of 64 bits", One("U64", "2147483648,1073741824", "0,0"), 0},
      {"rank 65",
       One(
           "U8",
           "1" +
               [] {
                 std::string s;
                 for (int i = 0; i < 64; ++i) s += ",1";
                 return s;
               }(),
           "0,1"),
       1},
      {"one offset", One("F32", "1", "0"), 4},
      {"three offsets", One("F32", "1", "0,4,4"), 4},
      {"no numbers in offsets", One("F32", "1", ""), 4},
      {"float offset", One("F32", "1", "0,4.0"), 4},
      {"negative offset", One("F32", "1", "-4,0"), 4},
      {"string offset", One("F32", "1", "0,\"4\""), 4},
      {"offset 2^63", One("F32", "1", "0,9223372036854775808"), 4},
      {"offset 2^64 + 4", One("F32", "1", "0,18446744073709551620"), 4},
      {"offsets is an object", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":{}}})", 4},
      {"end before begin", One("F32", "1", "4,0"), 4},
      {"range too short", One("F32", "2", "0,4"), 4},
      {"range too long", One("F32", "1", "0,8"), 8},
      {"range beyond the file", One("F32", "2", "0,8"), 4},
      {"range far beyond the file", One("U8", "281474976710655", "0,281474976710655"), 4},
      {"trailing data", One("F32", "1", "0,4"), 5},
      {"data without tensors", "{}", 1},
      {"hole at the start", One("F32", "1", "4,8"), 8},
      {"hole between", "{" + a + "," + Entry("b", "F32", "1", "8,12") + "}", 12},
      {"overlap", "{" + Entry("a", "F32", "2", "0,8") + "," + b + "}", 8},
      {"same range twice", "{" + a + "," + Entry("b", "F32", "1", "0,4") + "}", 4},
      {"empty tensor inside another",
       "{" + Entry("a", "F32", "2", "0,8") + "," + Entry("z", "F32", "0", "4,4") + "}", 8},
      {"odd F4", One("F4", "3", "0,1"), 1},
      {"odd F6", One("F6_E2M3", "2", "0,1"), 1},
      {"bad UTF-8 in a name", "{" + Entry("\xff", "F32", "1", "0,4") + "}", 4},
      {"lone surrogate", "{" + Entry("\\ud800", "F32", "1", "0,4") + "}", 4},
      {"name too long", "{" + Entry(std::string(4097, 'n'), "F32", "1", "0,4") + "}", 4},
      {"deep extra",
       R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":)" + std::string(63, '[') +
           std::string(63, ']') + "}}",
       4},
      {"five million brackets", "{\"a\":" + std::string(5'000'000, '['), 0},
      {"NaN", R"({"a":NaN})", 0},
      {"comment", "{}/**/", 0},
  };
  return cases;
}

TEST(SafetensorsHeader, RejectsHostileHeaders) {
  for (const Hostile& hostile : Hostiles()) {
    SCOPED_TRACE(hostile.why);
    Error error = ErrorOf([&] { Parse(hostile.json, hostile.data_bytes); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
    EXPECT_EQ(error.path(), "f.safetensors");
    EXPECT_LT(std::string(error.what()).size(), 5000u);
  }
}

TEST(SafetensorsHeader, NamesTheTensorAndThePlace) {
  Error error = ErrorOf([] {
    Parse("{" + Entry("a", "F32", "1", "0,4") + "," + Entry("model.w", "F32", "3", "4,8") + "}", 8);
  });
  EXPECT_EQ(error.tensor(), "model.w");
  EXPECT_NE(error.message().find("needs 12"), std::string::npos) << error.what();
  EXPECT_NE(std::string(error.what()).find("at byte "), std::string::npos);
  EXPECT_FALSE(error.hint().empty());
}

TEST(SafetensorsHeader, AcceptsTheUnusual) {
  const std::string a = Entry("a", "U8", "1", "0,1");
  EXPECT_TRUE(Parse("{}", 0).tensors.empty());
  EXPECT_EQ(Parse(R"({"__metadata__":{"format":"pt","":""}})", 0).metadata.at("format"), "pt");
  EXPECT_TRUE(Parse(R"({"__metadata__":null})", 0).metadata.empty());
  EXPECT_EQ(Parse("{" + a + "}   \t", 1).warnings.size(), 0u);
  EXPECT_EQ(Parse("{" + a + "} \n", 1).warnings.size(), 1u);
  EXPECT_EQ(Parse(One("U8", "0,281474976710655,281474976710655", "0,0"), 0).tensors[0].elements, 0u);
  EXPECT_EQ(Parse(One("U8", "281474976710655,281474976710655,0", "0,0"), 0).tensors[0].elements, 0u);
  EXPECT_EQ(Parse(One("F4", "3,2", "0,3"), 3).tensors[0].bytes, 3u);
  EXPECT_EQ(Parse(One("F6_E3M2", "4", "0,3"), 3).tensors[0].bytes, 3u);

  SafetensorsHeader misaligned = Parse("{" + a + "," + Entry("", "F32", "", "1,5") + "}", 5);
  EXPECT_EQ(misaligned.tensors[1].elements, 1u);
  EXPECT_EQ(misaligned.tensors[1].name, "");
  EXPECT_EQ(misaligned.tensors[1].offset, misaligned.data_offset + 1);

  SafetensorsHeader extra = Parse(
      R"({"a":{"x":[1,{"y":null,"z":[-1,2.5,"s",true]}],"dtype":"U8","shape":[1],"w":null,)"
      R"("data_offsets":[0,1]}})",
      1);
  ASSERT_EQ(extra.warnings.size(), 1u);
  EXPECT_NE(extra.warnings[0].find("'x'"), std::string::npos);
  EXPECT_EQ(extra.tensors[0].bytes, 1u);

  for (const char* name : {"../../etc/passwd", "\\u0000", "\\u001b]0;x\\u0007", "\\\"", "\xe6\xa8\xa1"})
    EXPECT_EQ(Parse("{" + Entry(name, "U8", "1", "0,1") + "}", 1).tensors.size(), 1u) << name;
}

TEST(SafetensorsHeader, SortsByOffsetWithEmptyTensorsFirst) {
  SafetensorsHeader header =
      Parse("{" + Entry("b", "U8", "2", "1,3") + "," + Entry("e", "F32", "0", "1,1") + "," +
                Entry("a", "U8", "1", "0,1") + "," + Entry("f", "F32", "0,7", "1,1") + "," +
                Entry("z", "F32", "0", "3,3") + "}",
            3);
  std::string order;
  for (const TensorInfo& tensor : header.tensors) order += tensor.name;
  EXPECT_EQ(order, "aefbz");
}

TEST(SafetensorsFile, ChecksTheLengthBeforeAnythingElse) {
  TemporaryDirectory directory;
  const std::pair<std::string, std::string> cases[] = {
      {"", "too few"},
      {"1234567", "too few"},
      {LengthBytes(~uint64_t{0}) + "{}", "limit"},
      {LengthBytes(uint64_t{1} << 63) + "{}", "limit"},
      {LengthBytes(100'000'001) + "{}", "limit"},
      {LengthBytes(100'000'000) + "{}", "the file has 2 left"},
      {LengthBytes(3) + "{}", "the file has 2 left"},
      {LengthBytes(0), "does not begin"},
      {"version https://git-lfs.github.com/spec/v1\n", "Git LFS"},
      {"GGUF\x03" + std::string(3, '\0') + std::string(64, 'x'), "GGUF"},
      {"<!DOCTYPE html><html></html>", "web page"},
  };
  for (const auto& [bytes, expected] : cases) {
    Error error = ErrorOf([&, &contents = bytes] { Read(directory.Write("f", contents)); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
}

TEST(SafetensorsFile, RejectsEveryTruncation) {
  TemporaryDirectory directory;
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}," + Entry("a", "F32", "8", "0,32") + "," +
                     Entry("b", "BF16", "4,8", "32,96") + "}  ";
  const std::string whole = SafetensorsFile(json, 96);
  EXPECT_EQ(Read(directory.Write("whole", whole)).tensors.size(), 2u);
  for (size_t length = 0; length < whole.size(); ++length) {
    Error error = ErrorOf([&] { Read(directory.Write("cut", whole.substr(0, length))); });
    EXPECT_EQ(error.code(), ErrorCode::kBadInput) << length;
    EXPECT_NE(std::string(error.what()).find("at byte "), std::string::npos) << error.what();
  }
}

// What every accepted header promises to the code downstream.
void ExpectSound(const SafetensorsHeader& header, uint64_t file_bytes) {
  uint64_t at = header.data_offset;
  for (const TensorInfo& tensor : header.tensors) {
    ASSERT_EQ(tensor.offset, at);
    uint64_t elements = 1;
    for (uint64_t dimension : tensor.shape) elements *= dimension;
    ASSERT_EQ(tensor.elements, elements);
    ASSERT_EQ(tensor.bytes * 8, elements * DTypeBits(tensor.dtype));
    at += tensor.bytes;
  }
  ASSERT_EQ(at, file_bytes);
}

TEST(SafetensorsHeader, SurvivesEveryChangeOfOneByte) {
  const std::string samples[] = {
      One("F32", "1", "0,4"),
      "{\"__metadata__\":{\"k\":\"v\"}," + Entry("a", "F16", "2,1", "0,4") + "," +
          Entry("b", "U8", "", "4,5") + "} ",
      "{" + Entry("z", "F32", "0,3", "0,0") +
          ",\"y\":{\"x\":[1,{}],\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}"};
  const uint64_t data_bytes[] = {4, 5, 1};
  int accepted = 0;
  for (int sample = 0; sample < 3; ++sample) {
    uint64_t file_bytes = 8 + samples[sample].size() + data_bytes[sample];
    for (size_t i = 0; i < samples[sample].size(); ++i) {
      for (int value = 0; value < 256; ++value) {
        std::string changed = samples[sample];
        changed[i] = static_cast<char>(value);
        try {
          ExpectSound(ParseSafetensorsHeader(changed, file_bytes, "f"), file_bytes);
          ++accepted;
        } catch (const Error& error) {
          ASSERT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
        }
      }
    }
  }
  EXPECT_GT(accepted, 500);  // at least each byte as it was, and other names
}

TEST(SafetensorsHeader, SurvivesRandomDamage) {
  uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::string whole = "{\"__metadata__\":{\"k\":\"v\"}," + Entry("a", "F16", "2,1", "0,4") + "," +
                            Entry("b", "U8", "", "4,5") + "}";
  const std::string alphabet = "{}[]\",:0123456789-.eE\\u null" + whole;
  for (int round = 0; round < 20'000; ++round) {
    std::string changed = whole;
    for (int edits = 1 + random() % 4; edits > 0; --edits) {
      size_t at = random() % changed.size();
      char c = alphabet[random() % alphabet.size()];
      if (random() % 3 == 0)
        changed.insert(at, 1, c);
      else if (random() % 2 == 0 && changed.size() > 1)
        changed.erase(at, 1 + random() % 8);
      else
        changed[at] = c;
      if (changed.empty()) changed = "{";
    }
    try {
      ExpectSound(Parse(changed, 5), 8 + changed.size() + 5);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kBadInput) << error.what();
    }
  }
}

TEST(MakeSafetensorsHeader, RoundTrips) {
  uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const char* prefixes[] = {"model.layers.", "\xe6\xa8\xa1\xe5\x9e\x8b.", "a\"b\\c\n\x01.",
                            "\xf0\x9f\xa7\xb5", ""};
  for (int round = 0; round < 200; ++round) {
    std::vector<TensorInfo> tensors(random() % 40);
    uint64_t total = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      TensorInfo& tensor = tensors[i];
      tensor.name = prefixes[random() % 5] + std::to_string(i);
      tensor.dtype = static_cast<DType>(random() % 22);
      tensor.shape.resize(random() % 4);
      for (uint64_t& dimension : tensor.shape) dimension = random() % 5;
      if (DTypeBits(tensor.dtype) < 8) tensor.shape.push_back(4);  // whole bytes
      tensor.elements = 1;
      for (uint64_t dimension : tensor.shape) tensor.elements *= dimension;
      tensor.bytes = tensor.elements * DTypeBits(tensor.dtype) / 8;
      total += tensor.bytes;
    }
    std::map<std::string, std::string> metadata;
    if (random() % 2 == 0) metadata = {{"format", "pt"}, {"\xe2\x82\xac \"x\"", "line\nbreak"}};
    uint64_t alignment = uint64_t{8} << random() % 10;

    std::string bytes = MakeSafetensorsHeader(tensors, metadata, alignment);
    ASSERT_EQ(bytes.size() % alignment, 0u);
    ASSERT_EQ(bytes.substr(0, 8), LengthBytes(bytes.size() - 8));
    SafetensorsHeader header = ParseSafetensorsHeader(bytes.substr(8), bytes.size() + total, "f");
    ExpectSound(header, bytes.size() + total);
    EXPECT_EQ(header.metadata, metadata);
    EXPECT_TRUE(header.warnings.empty());
    ASSERT_EQ(header.tensors.size(), tensors.size());
    // An empty tensor that follows another one keeps its offset but may change its place among equals.
    std::map<std::string, const TensorInfo*> by_name;
    for (const TensorInfo& tensor : header.tensors) by_name[tensor.name] = &tensor;
    for (const TensorInfo& tensor : tensors) {
      const TensorInfo* read = by_name.at(tensor.name);
      EXPECT_EQ(read->dtype, tensor.dtype);
      EXPECT_EQ(read->shape, tensor.shape);
      EXPECT_EQ(read->bytes, tensor.bytes);
    }
  }
}

TEST(MakeSafetensorsHeader, RefusesAHeaderThatNoReaderTakes) {
  std::vector<TensorInfo> tensors(30);
  for (TensorInfo& tensor : tensors) tensor.name.assign(4'000'000, 'n');
  EXPECT_EQ(ErrorOf([&] { MakeSafetensorsHeader(tensors, {}); }).code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace braid
