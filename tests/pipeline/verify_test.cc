#include "pipeline/verify.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "io/os.h"
#include "pipeline/manifest.h"
#include "tests/pipeline/checkpoint_fixtures.h"

namespace braid {
namespace {

using namespace fixture;
namespace fs = std::filesystem;

// A merge's output as RunMerge leaves it.
class VerifyTest : public ::testing::Test {
 protected:
  VerifyTest() {
    std::string large((2 << 20) + 70'002, '\0');  // of several windows
    std::mt19937 random(1);
    for (char& c : large) c = static_cast<char>(random());
    const Tensor a{"a", DType::kBF16, {large.size() / 2}, large};
    shards_ = {{a, F32("b", {1, 2, 3})}, {F32("c", {4}), F32("empty", {})}, {{"d", DType::kI8, {3}, "xyz"}}};
    out_ = WriteShards(directory_, "out", shards_);
    WriteManifest("out/braid.json");
  }

  void WriteManifest(const std::string& to) {
    Json manifest = {{"format", 1}, {"method", "linear"}, {"fingerprint", std::string(32, 'f')}};
    for (size_t i = 0; i < shards_.size(); ++i)
      for (const Tensor& t : shards_[i])
        manifest["tensors"][t.name] = {{"file", "model-" + std::to_string(i + 1) + ".safetensors"},
                                       {"bytes", t.bytes.size()},
                                       {"xxh3_128", SumText(XXH3_128bits(t.bytes.data(), t.bytes.size()))}};
    directory_.Write(to, manifest.dump(1));
  }

  static size_t HeaderBytes(const std::string& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    return sizeof length + length;
  }

  std::string WriteSingleFile(const std::string& name) {
    std::vector<Tensor> tensors;
    std::vector<XXH128_hash_t> sums;
    for (const auto& shard : shards_)
      for (const Tensor& t : shard) tensors.push_back(t), sums.push_back(XXH3_128bits(t.bytes.data(), t.bytes.size()));
    std::map<std::string, std::string> metadata{{"format", "pt"}};
    AddChecksumRoom(&metadata, tensors.size());
    // The empty tensor goes first among those of its offset.
    std::swap(tensors[2], tensors[3]), std::swap(sums[2], sums[3]);
    const std::string file = FileOf(tensors, metadata);
    const size_t header = HeaderBytes(file);
    return directory_.Write(name,
                            FillChecksums(file.substr(0, header), std::string(32, 'f'), sums) + file.substr(header));
  }

  std::string Shard(int number) const { return out_ + "/model-" + std::to_string(number) + ".safetensors"; }

  std::string Read(const std::string& path) { return ReadSmallFile(path, 1 << 30); }
  void Overwrite(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

  VerifyFault OnlyFault() {
    const VerifyReport report = Verify(out_);
    EXPECT_EQ(report.faults.size(), 1u);
    return report.faults.empty() ? VerifyFault{} : report.faults[0];
  }

  TemporaryDirectory directory_;
  std::vector<std::vector<Tensor>> shards_;
  std::string out_;
};

TEST_F(VerifyTest, WhatTheMergeWroteIsSound) {
  const VerifyReport report = Verify(out_);
  for (const VerifyFault& fault : report.faults)
    ADD_FAILURE() << fault.file << " " << fault.tensor << " " << fault.reason;
  EXPECT_EQ(report.tensors, 5u);
  EXPECT_EQ(report.checked, 5u);
  EXPECT_EQ(report.files, 3u);
  EXPECT_EQ(report.bytes, (2u << 20) + 70'002 + 12 + 4 + 3);
  EXPECT_EQ(report.fingerprint, std::string(32, 'f'));
}

TEST_F(VerifyTest, ASingleFileIsSound) {
  const VerifyReport report = Verify(WriteSingleFile("one.safetensors"));
  for (const VerifyFault& fault : report.faults)
    ADD_FAILURE() << fault.file << " " << fault.tensor << " " << fault.reason;
  EXPECT_EQ(report.checked, 5u);
}

TEST_F(VerifyTest, AFlippedBitInATensorIsFoundAndNamed) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const std::string single = WriteSingleFile("one.safetensors");
  for (int i = 0; i < 60; ++i) {
    const bool one = i % 2 == 0;
    const std::string path = one ? single : Shard(1 + i / 2 % 3);
    const std::string whole = Read(path);
    FileIdentity identity;
    const Fd fd = OpenForReading(path, &identity);
    const SafetensorsHeader header = ReadSafetensorsHeader(fd.get(), identity.size, path);
    const TensorInfo& tensor = header.tensors[random() % header.tensors.size()];
    if (tensor.bytes == 0) continue;
    std::string flipped = whole;
    const size_t at = tensor.offset + random() % tensor.bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 1 << random() % 8);
    Overwrite(path, flipped);
    const VerifyReport report = Verify(one ? single : out_);
    Overwrite(path, whole);
    ASSERT_EQ(report.faults.size(), 1u) << path << " at " << at;
    EXPECT_EQ(report.faults[0].tensor, tensor.name) << path << " at " << at;
    EXPECT_EQ(report.checked, 5u);
  }
  EXPECT_TRUE(Verify(out_).ok());
  EXPECT_TRUE(Verify(single).ok());
}

TEST_F(VerifyTest, AFlippedBitInAHeaderIsFound) {
  const std::string whole = Read(Shard(1));
  const size_t header = whole.size() - shards_[0][0].bytes.size() - shards_[0][1].bytes.size();
  for (size_t bit = 0; bit < 8 * header; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    Overwrite(Shard(1), flipped);
    EXPECT_FALSE(Verify(out_).ok()) << "bit " << bit % 8 << " of byte " << bit / 8;
  }
}

// The header holds the checksums; its own takes them for zeros, so each of them is checked in another way.
TEST_F(VerifyTest, AFlippedBitInTheHeaderOfASingleFileIsFound) {
  const std::string path = WriteSingleFile("one.safetensors"), whole = Read(path);
  for (size_t bit = 0; bit < 8 * HeaderBytes(whole); ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    Overwrite(path, flipped);
    bool sound = false;
    try {
      sound = Verify(path).ok();
    } catch (const Error&) {  // no manifest to be found any more
    }
    EXPECT_FALSE(sound) << "bit " << bit % 8 << " of byte " << bit / 8;
  }
}

TEST_F(VerifyTest, ATypeOfTheSameSizeIsNoticed) {
  std::string bytes = Read(Shard(1));
  Json manifest = ParseJson(Read(out_ + "/braid.json"), "braid.json");
  manifest["headers"]["model-1.safetensors"] = HeaderSum(bytes.substr(0, HeaderBytes(bytes)));
  Overwrite(out_ + "/braid.json", manifest.dump());
  EXPECT_TRUE(Verify(out_).ok());
  bytes.replace(bytes.find("\"BF16\""), 6, "\"F16\" ");
  Overwrite(Shard(1), bytes);
  EXPECT_EQ(OnlyFault().file, "model-1.safetensors");
}

TEST_F(VerifyTest, ATruncatedShardIsAFaultAndTheOthersAreChecked) {
  const std::string whole = Read(Shard(1));
  for (size_t size : {size_t{0}, size_t{7}, size_t{50}, whole.size() / 2, whole.size() - 1}) {
    fs::resize_file(Shard(1), size);
    const VerifyReport report = Verify(out_);
    ASSERT_EQ(report.faults.size(), 1u) << size;
    EXPECT_EQ(report.faults[0].file, "model-1.safetensors");
    EXPECT_NE(report.faults[0].reason.find("2 tensors"), std::string::npos) << report.faults[0].reason;
    EXPECT_EQ(report.checked, 3u);
    Overwrite(Shard(1), whole);
  }
  Overwrite(Shard(1), whole + "x");
  EXPECT_EQ(OnlyFault().file, "model-1.safetensors");
}

TEST_F(VerifyTest, EveryBadFileAndTensorIsNamed) {
  fs::remove(Shard(2));
  std::string bytes = Read(Shard(1));
  bytes.back() ^= 1;
  Overwrite(Shard(1), bytes);
  fs::resize_file(Shard(3), 20);
  const VerifyReport report = Verify(out_);
  ASSERT_EQ(report.faults.size(), 3u);
  EXPECT_EQ(report.faults[0].file, "model-2.safetensors");
  EXPECT_NE(report.faults[0].reason.find("missing"), std::string::npos);
  EXPECT_EQ(report.faults[1].file, "model-3.safetensors");
  EXPECT_EQ(report.faults[2].tensor, "b");
}

TEST_F(VerifyTest, TensorsThatComeGoOrMoveAreFaults) {
  const auto rewrite = [&](int shard, const std::vector<Tensor>& tensors) { Overwrite(Shard(shard), FileOf(tensors)); };
  const auto reindex = [&](const std::map<std::string, std::string>& map) {
    Overwrite(out_ + "/model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  };
  std::map<std::string, std::string> map;
  for (size_t i = 0; i < shards_.size(); ++i)
    for (const Tensor& t : shards_[i]) map[t.name] = "model-" + std::to_string(i + 1) + ".safetensors";

  rewrite(2, {F32("c", {4}), F32("empty", {}), F32("extra", {1})});
  EXPECT_FALSE(Verify(out_).ok()) << "the index lacks it";
  map["extra"] = "model-2.safetensors";
  reindex(map);
  EXPECT_EQ(OnlyFault().tensor, "extra");

  map.erase("extra"), map.erase("c");
  rewrite(2, {F32("empty", {})});
  reindex(map);
  EXPECT_EQ(OnlyFault().tensor, "c");

  map["c"] = "model-3.safetensors";
  rewrite(3, {shards_[2][0], F32("c", {4})});
  reindex(map);
  EXPECT_EQ(OnlyFault().tensor, "c") << "it moved";

  rewrite(2, shards_[1]), rewrite(3, {{"d", DType::kI8, {4}, "xyzw"}});
  map["c"] = "model-2.safetensors";
  reindex(map);
  EXPECT_EQ(OnlyFault().tensor, "d") << "it grew";
}

TEST_F(VerifyTest, AnIndexThatDisagreesIsAFault) {
  const std::string index = out_ + "/model.safetensors.index.json", whole = Read(index);
  Overwrite(index, "{");
  VerifyReport report = Verify(out_);
  ASSERT_EQ(report.faults.size(), 1u);
  EXPECT_NE(report.faults[0].reason.find("index.json"), std::string::npos);
  EXPECT_EQ(report.checked, 5u);
  fs::remove(index);
  EXPECT_EQ(Verify(out_).faults.size(), 1u);
  Overwrite(index, whole);
  EXPECT_TRUE(Verify(out_).ok());
}

TEST_F(VerifyTest, ADamagedManifestIsAFaultAMissingOneAnError) {
  for (const char* text : {"{", "[]", "{}", R"({"fingerprint": "x", "tensors": {"a": {"file": 1}}})"}) {
    Overwrite(out_ + "/braid.json", text);
    EXPECT_EQ(OnlyFault().file, "braid.json") << text;
  }
  fs::remove(out_ + "/braid.json");
  EXPECT_EQ(ErrorOf([&] { Verify(out_); }).code(), ErrorCode::kBadInput);
  EXPECT_EQ(ErrorOf([&] { Verify(directory_ / "nothing"); }).code(), ErrorCode::kUsage);
  EXPECT_EQ(ErrorOf([&] { Verify(directory_ / "nothing.safetensors"); }).code(), ErrorCode::kUsage);
  EXPECT_EQ(ErrorOf([&] { Verify(directory_.Write("x.safetensors", FileOf({F32("a", {1})}))); }).code(),
            ErrorCode::kBadInput);
}

TEST_F(VerifyTest, ADamagedSingleFileIsAFault) {
  const std::string path = WriteSingleFile("one.safetensors"), whole = Read(path);
  for (size_t size : {size_t{0}, size_t{9}, whole.size() - 1}) {
    fs::resize_file(path, size);
    EXPECT_EQ(Verify(path).faults.size(), 1u) << size;
    Overwrite(path, whole);
  }
}

// A manifest is a file like any other: its names do not lead out of OUT.
TEST_F(VerifyTest, AManifestCannotNameFilesElsewhere) {
  directory_.Write("secret.safetensors", FileOf({F32("a", {1})}));
  Json manifest = ParseJson(Read(out_ + "/braid.json"), "braid.json");
  manifest["tensors"]["c"]["file"] = "../secret.safetensors";
  Overwrite(out_ + "/braid.json", manifest.dump());
  EXPECT_EQ(OnlyFault().tensor, "c");
  fs::remove(out_ + "/model.safetensors.index.json");
  const VerifyReport report = Verify(out_);
  EXPECT_EQ(report.faults.at(0).file, "../secret.safetensors");
  EXPECT_EQ(report.faults.at(0).reason.find("the file is missing"), std::string::npos);
}

}  // namespace
}  // namespace braid
