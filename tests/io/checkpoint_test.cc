#include "io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "io/error.h"
#include "io/hf_cache.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::ErrorOf;
using fixture::SafetensorsFile;
using fixture::ScopedEnvironment;
using fixture::SmallFile;
using fixture::TemporaryDirectory;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";

std::string Index(const std::vector<std::pair<std::string, std::string>>& weight_map) {
  std::string text = R"({"metadata":{"total_size":32},"weight_map":{)";
  for (const auto& [tensor, shard] : weight_map) text += "\"" + tensor + "\":\"" + shard + "\",";
  text.back() = '}';
  return text + "}";
}

// Shards x and y with the tensors a, b and c, d.
void WriteSharded(const TemporaryDirectory& directory) {
  directory.Write("x.safetensors", SmallFile({"b", "a"}));
  directory.Write("y.safetensors", SmallFile({"d", "c"}));
  directory.Write(
      kIndex,
      Index(
          {{"a", "x.safetensors"}, {"b", "x.safetensors"}, {"c", "y.safetensors"}, {"d", "y.safetensors"}}));
}

void ExpectRefused(const std::string& reference, ErrorCode code, const std::string& text) {
  Error error = ErrorOf([&] { OpenCheckpoint(reference); });
  EXPECT_EQ(error.code(), code) << error.what();
  EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  EXPECT_FALSE(error.hint().empty()) << error.what();
}

TEST(OpenCheckpoint, ReadsOneFile) {
  TemporaryDirectory directory;
  std::string path = directory.Write("any.safetensors", SmallFile({"w", "v"}));
  directory.Write("config.json", "this is not looked at");
  Checkpoint checkpoint = OpenCheckpoint(path);
  EXPECT_EQ(checkpoint.directory, "");
  EXPECT_EQ(checkpoint.config.path, "");
  ASSERT_EQ(checkpoint.shards.size(), 1u);
  EXPECT_EQ(checkpoint.shards[0].name, "any.safetensors");
  EXPECT_EQ(checkpoint.shards[0].identity.size, std::filesystem::file_size(path));
  EXPECT_EQ(checkpoint.TotalBytes(), 16u);
  EXPECT_GT(checkpoint.MemoryBytes(), sizeof(Checkpoint));
}

TEST(OpenCheckpoint, ReadsShardsInFileOrder) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  directory.Write("config.json", R"({"architectures":["LlamaForCausalLM"],"model_type":"llama",
      "tie_word_embeddings":true,"torch_dtype":"bfloat16","rope":Infinity,"quantization_config":null})");
  Checkpoint opened = OpenCheckpoint(directory.path() + "/");
  Checkpoint checkpoint = std::move(opened);
  EXPECT_EQ(checkpoint.directory, directory.path());
  std::string order;
  for (const CheckpointTensor& tensor : checkpoint.tensors)
    order += tensor.info.name + std::to_string(tensor.shard);
  EXPECT_EQ(order, "b0a0d1c1");
  EXPECT_EQ(checkpoint.Find("a"), 1u);
  EXPECT_EQ(checkpoint.Find("d"), 2u);
  EXPECT_EQ(checkpoint.Find("e"), std::nullopt);
  EXPECT_EQ(checkpoint.Find(""), std::nullopt);
  EXPECT_EQ(checkpoint.config.architectures, std::vector<std::string>{"LlamaForCausalLM"});
  EXPECT_EQ(checkpoint.config.model_type, "llama");
  EXPECT_EQ(checkpoint.config.tie_word_embeddings, true);
  EXPECT_EQ(checkpoint.config.dtype_key, "torch_dtype");
  EXPECT_TRUE(checkpoint.warnings.empty());
}

TEST(OpenCheckpoint, TakesTieWordEmbeddingsFromTextConfig) {
  TemporaryDirectory directory;
  directory.Write("model.safetensors", SmallFile({"a"}));
  directory.Write("config.json", R"({"dtype":"float16","text_config":{"tie_word_embeddings":true}})");
  EXPECT_EQ(OpenCheckpoint(directory.path()).config.tie_word_embeddings, true);
  directory.Write("config.json",
                  R"({"tie_word_embeddings":false,"text_config":{"tie_word_embeddings":true}})");
  EXPECT_EQ(OpenCheckpoint(directory.path()).config.tie_word_embeddings, false);
  for (const char* config :
       {R"({"tie_word_embeddings":1})", R"({"architectures":"x"})", R"({"architectures":[1]})",
        R"({"model_type":[]})", "[]", R"({"a":1,"a":2})", ""}) {
    directory.Write("config.json", config);
    EXPECT_EQ(ErrorOf([&] { OpenCheckpoint(directory.path()); }).code(), ErrorCode::kBadInput) << config;
  }
}

TEST(OpenCheckpoint, PrefersTheSingleFileAndSaysSo) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  directory.Write("model.safetensors", SmallFile({"z"}));
  Checkpoint checkpoint = OpenCheckpoint(directory.path());
  EXPECT_EQ(checkpoint.tensors.size(), 1u);
  ASSERT_EQ(checkpoint.warnings.size(), 1u);
  EXPECT_NE(checkpoint.warnings[0].find("not used"), std::string::npos);
}

TEST(OpenCheckpoint, WarnsOfShardsThatTheIndexDoesNotList) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  directory.Write("stale.safetensors", "not even looked at");
  directory.Write("s\x1b[2J.safetensors", "its name must not reach a terminal as it is");
  Checkpoint checkpoint = OpenCheckpoint(directory.path());
  ASSERT_EQ(checkpoint.warnings.size(), 1u);
  EXPECT_NE(checkpoint.warnings[0].find("s\\x1b[2J.safetensors, stale.safetensors"), std::string::npos)
      << checkpoint.warnings[0];
}

TEST(OpenCheckpoint, RejectsAnIndexThatDisagrees) {
  const std::string x = "x.safetensors", y = "y.safetensors";
  const std::pair<std::string, std::string> cases[] = {
      {Index({{"a", x}, {"b", x}, {"c", y}}), "the index does not list this tensor"},
      {Index({{"b", x}, {"c", y}, {"d", y}}), "the index does not list this tensor"},
      {Index({{"a", x}, {"b", x}, {"c", y}, {"d", y}, {"e", y}}), "y.safetensors does not hold this tensor"},
      {Index({{"a", x}, {"a0", x}, {"b", x}, {"c", y}, {"d", y}}), "x.safetensors does not hold this tensor"},
      {Index({{"a", x}, {"b", y}, {"c", y}, {"d", y}}),
       "places it in y.safetensors, but it is in x.safetensors"},
      {Index({{"a", x}, {"b", x}, {"c", "gone.safetensors"}, {"d", y}}),
       "1 of 3 shards are missing: gone.safetensors"},
      {Index({{"a", x}, {"a", x}, {"b", x}, {"c", y}, {"d", y}}), "'a' occurs twice"},
      {R"({"weight_map":{"a":"x.safetensors"},"weight_map":{}})", "'weight_map' occurs twice"},
      {R"({"metadata":{"k":1,"k":2},"weight_map":{"a":"x.safetensors"}})", "'k' occurs twice"},
      {R"({"metadata":[{"k":1,"k":2}],"weight_map":{"a":"x.safetensors"}})", "'k' occurs twice"},
      {R"({"metadata":{"weight_map":{"a":"x.safetensors"}}})", "no 'weight_map' object"},
      {R"([{"weight_map":{"a":"x.safetensors"}}])", "no 'weight_map' object"},
      {R"({"weight_map":"x.safetensors"})", "no 'weight_map' object"},
      {R"({"weight_map":{"a":{"a":"x.safetensors"}}})", "must be a file name"},
      {R"({"weight_map":{"a":["x.safetensors"]}})", "must be a file name"},
      {R"({"weight_map":{"a":null}})", "must be a file name"},
      {R"({"weight_map":{}})", "lists no tensors"},
      {R"({"weight_map":[]})", "no 'weight_map' object"},
      {R"({"weight_map":{"a":1}})", "must be a file name"},
      {"[]", "no 'weight_map' object"},
      {"{", "not valid JSON"},
  };
  for (const auto& [index, expected] : cases) {
    TemporaryDirectory directory;
    WriteSharded(directory);
    directory.Write(kIndex, index);
    ExpectRefused(directory.path(), ErrorCode::kBadInput, expected);
  }
}

TEST(OpenCheckpoint, TakesAnIndexInAnyOrderWithOtherMembers) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  directory.Write(kIndex, R"({"metadata":{"total_size":32,"extra":[1,-2,0.5,true,null,{"weight_map":"x"}]},)"
                          R"("more":"text","weight_map":{"d":"y.safetensors","b":"x.safetensors","c":"y.safetensors",)"
                          R"("a":"x.safetensors"},"weight_maps":{"a":1}})");
  Checkpoint checkpoint = OpenCheckpoint(directory.path());
  ASSERT_EQ(checkpoint.shards.size(), 2u);
  EXPECT_EQ(checkpoint.shards[0].name, "x.safetensors");
  EXPECT_EQ(checkpoint.tensors.size(), 4u);
}

TEST(Checkpoint, FindsATensorWhateverTheGuess) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  Checkpoint checkpoint = OpenCheckpoint(directory.path());
  for (uint32_t guess : {0u, 1u, 2u, 3u, 4u, UINT32_MAX}) {
    for (uint32_t i = 0; i < checkpoint.tensors.size(); ++i)
      EXPECT_EQ(checkpoint.Find(checkpoint.tensors[i].info.name, guess), i);
    EXPECT_EQ(checkpoint.Find("e", guess), std::nullopt);
  }
}

TEST(OpenCheckpoint, RejectsATensorThatIsInTwoShards) {
  TemporaryDirectory directory;
  WriteSharded(directory);
  directory.Write("y.safetensors", SmallFile({"c", "a"}));
  ExpectRefused(directory.path(), ErrorCode::kBadInput, "this tensor is also in x.safetensors");
}

TEST(OpenCheckpoint, RejectsShardNamesThatAreNoPlainFileNames) {
  TemporaryDirectory outer;
  outer.Write("secret.safetensors", SmallFile({"a"}));
  outer.Write("model/sub/s.safetensors", SmallFile({"a"}));
  const std::string names[] = {"../secret.safetensors",
                               outer / "secret.safetensors",
                               "a/../../secret.safetensors",
                               "sub/s.safetensors",
                               "./s.safetensors",
                               "C:\\\\s.safetensors",
                               "",
                               ".",
                               "..",
                               ".safetensors",
                               ".hidden.safetensors",
                               "-rf.safetensors",
                               "a\\u0000.safetensors",
                               "a\\n.safetensors",
                               std::string(300, 'a') + ".safetensors",
                               "model.bin",
                               "config.json"};
  for (const std::string& name : names) {
    outer.Write(std::string("model/") + kIndex, Index({{"a", name}}));
    ExpectRefused(outer / "model", ErrorCode::kBadInput, "is not the plain name of a .safetensors file");
  }
}

TEST(OpenCheckpoint, RefusesLinksThatLeaveTheModel) {
  TemporaryDirectory outer;
  std::string secret = outer.Write("secret.safetensors", SmallFile({"a", "b"}));
  WriteSharded(outer);
  TemporaryDirectory model;
  WriteSharded(model);
  std::filesystem::remove(model / "x.safetensors");
  model.Link(secret, "x.safetensors");
  ExpectRefused(model.path(), ErrorCode::kBadInput, "outside of the model");

  // A link that stays inside is followed, and so is a link to the whole model.
  std::filesystem::remove(model / "x.safetensors");
  model.Write("files/x", SmallFile({"a", "b"}));
  model.Link("files/x", "x.safetensors");
  outer.Link(model.path(), "linked");
  EXPECT_EQ(OpenCheckpoint(outer / "linked").tensors.size(), 4u);

  model.Link(outer.Write("config.json", "{}"), "config.json");
  ExpectRefused(model.path(), ErrorCode::kBadInput, "outside of the model");
}

TEST(OpenCheckpoint, DoesNotHangOnAFifo) {
  TemporaryDirectory directory;
  ASSERT_EQ(::mkfifo((directory / "model.safetensors").c_str(), 0600), 0);
  EXPECT_EQ(ErrorOf([&] { OpenCheckpoint(directory.path()); }).code(), ErrorCode::kBadInput);
}

TEST(OpenCheckpoint, RefusesQuantisedWeights) {
  for (const char* name : {"a.weight_scale_inv", "a.weight_scale", "a.weight_packed", "a.qweight", "a.qzeros",
                           "a.SCB", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4"}) {
    TemporaryDirectory directory;
    directory.Write("model.safetensors", SmallFile({"norm.weight", name}));
    ExpectRefused(directory.path(), ErrorCode::kIncompatible, "quantised");
    EXPECT_EQ(OpenCheckpointForReading(directory.path()).tensors.size(), 2u);
  }
  TemporaryDirectory directory;
  directory.Write("model.safetensors",
                  SafetensorsFile(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2));
  ExpectRefused(directory.path(), ErrorCode::kIncompatible, "F8_E4M3");
  EXPECT_NO_THROW(OpenCheckpointForReading(directory.path()));

  directory.Write("model.safetensors", SmallFile({"a", "a.logit_scale", "scale_inv_freq"}));
  EXPECT_NO_THROW(OpenCheckpoint(directory.path()));
  for (const char* config : {R"({"quantization_config":{"quant_method":"gptq"}})",
                             R"({"text_config":{"quantization_config":{"quant_method":"gptq","bits":4}}})"}) {
    directory.Write("config.json", config);
    ExpectRefused(directory.path(), ErrorCode::kIncompatible, "(gptq)");
    EXPECT_EQ(OpenCheckpointForReading(directory.path()).config.quantisation, "gptq");
  }
}

TEST(OpenCheckpoint, RefusesAdapters) {
  TemporaryDirectory directory;
  directory.Write("adapter_config.json", R"({"peft_type":"LORA","base_model_name_or_path":"org/base"})");
  std::string file =
      directory.Write("adapter_model.safetensors", SmallFile({"base_model.model.q.lora_A.weight"}));
  ExpectRefused(directory.path(), ErrorCode::kIncompatible, "adapter (LoRA) of org/base");
  ExpectRefused(file, ErrorCode::kIncompatible, "adapter");
  EXPECT_EQ(OpenCheckpointForReading(directory.path()).shards[0].name, "adapter_model.safetensors");

  directory.Write("model.safetensors", SmallFile({"q.weight"}));
  Checkpoint whole = OpenCheckpoint(directory.path());
  ASSERT_EQ(whole.warnings.size(), 1u);
  EXPECT_NE(whole.warnings[0].find("adapter"), std::string::npos);
}

TEST(OpenCheckpoint, SaysWhatADirectoryHoldsInPlaceOfWeights) {
  struct Case {
    std::vector<std::string> files;
    ErrorCode code;
    std::string text;
  };
  const Case cases[] = {
      {{}, ErrorCode::kUsage, "empty"},
      {{"config.json", "notes.txt"}, ErrorCode::kUsage, "no weights here, only config.json, notes.txt"},
      {{"pytorch_model.bin"}, ErrorCode::kIncompatible, "PyTorch weights here (pytorch_model.bin)"},
      {{"pytorch_model-00001-of-00002.bin", "a.pt"}, ErrorCode::kIncompatible, "save_pretrained"},
      {{"adapter_model.bin"}, ErrorCode::kIncompatible, "adapter"},
      {{"q4.gguf"}, ErrorCode::kIncompatible, "GGUF"},
      {{"consolidated.safetensors", "q4.gguf"}, ErrorCode::kIncompatible, "give that file itself"},
      {{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
       ErrorCode::kIncompatible,
       "index"},
  };
  for (const Case& c : cases) {
    TemporaryDirectory directory;
    for (const std::string& file : c.files) directory.Write(file, "{}");
    ExpectRefused(directory.path(), c.code, c.text);
  }
  TemporaryDirectory directory;
  for (const char* file : {"m.gguf", "m.bin", "m.pt", "m.json"})
    ExpectRefused(directory.Write(file, "x"), ErrorCode::kIncompatible, "this is");
}

TEST(OpenCheckpoint, NamesTheNeighbourOfAMissingPath) {
  TemporaryDirectory directory;
  std::filesystem::create_directories(directory / "llama-math");
  ExpectRefused(directory / "llama-mth", ErrorCode::kUsage,
                "did you mean '" + (directory / "llama-math") + "'?");
  ExpectRefused(directory / "llama-mth/", ErrorCode::kUsage, "did you mean");
  EXPECT_EQ(ErrorOf([] { OpenCheckpoint("/nowhere/at/all"); }).code(), ErrorCode::kUsage);
  EXPECT_EQ(ErrorOf([] { OpenCheckpoint(""); }).code(), ErrorCode::kUsage);
}

// A cache with org/name at `main` and at `refs/pr/1`.
class HfCache : public testing::Test {
 protected:
  HfCache() : hub_("HF_HUB_CACHE", cache_.path().c_str()) {
    cache_.Write("models--org--name/blobs/b1", SmallFile({"a"}));
    cache_.Write("models--org--name/blobs/b2", R"({"model_type":"llama"})");
    cache_.Write("models--org--name/refs/main", kCommit);
    cache_.Write("models--org--name/refs/refs/pr/1", kCommit);
    cache_.Link("../../blobs/b1", Snapshot() + "model.safetensors");
    cache_.Link("../../blobs/b2", Snapshot() + "config.json");
  }
  static std::string Snapshot() { return std::string("models--org--name/snapshots/") + kCommit + "/"; }

  TemporaryDirectory cache_;
  ScopedEnvironment hub_;
};

TEST_F(HfCache, ResolvesIds) {
  for (const std::string& id : {std::string("org/name"), std::string("org/name@main"),
                                std::string("org/name@refs/pr/1"), std::string("org/name@") + kCommit}) {
    Checkpoint checkpoint = OpenCheckpoint(id);
    EXPECT_EQ(checkpoint.reference, id);
    EXPECT_EQ(checkpoint.cache_id, "org/name");
    EXPECT_EQ(checkpoint.revision, kCommit);
    EXPECT_EQ(checkpoint.config.model_type, "llama");
    EXPECT_EQ(checkpoint.tensors.size(), 1u);
  }
  // The snapshot given as a directory has links that leave it, but not the model.
  EXPECT_EQ(OpenCheckpoint(cache_ / Snapshot()).tensors.size(), 1u);
}

TEST_F(HfCache, NamesTheCommandThatDownloadsAMissingModel) {
  const std::pair<std::string, std::string> cases[] = {
      {"org/other", "hf download org/other --revision main"},
      {"org/name@v2", "hf download org/name --revision v2"},
      {"org/name@fedcba9876543210fedcba9876543210fedcba98",
       "hf download org/name --revision fedcba9876543210fedcba9876543210fedcba98"},
  };
  for (const auto& [id, command] : cases) {
    Error error = ErrorOf([&, &reference = id] { OpenCheckpoint(reference); });
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_EQ(error.hint(), command);
  }
  std::filesystem::remove(cache_ / (Snapshot() + "model.safetensors"));
  EXPECT_EQ(ErrorOf([] { OpenCheckpoint("org/name"); }).hint(), "hf download org/name --revision main");
  cache_.Write(Snapshot() + kIndex, Index({{"a", "gone.safetensors"}}));
  EXPECT_EQ(ErrorOf([] { OpenCheckpoint("org/name"); }).hint(), "hf download org/name --revision main");
}

TEST_F(HfCache, RefusesLinksThatLeaveTheModel) {
  std::filesystem::remove(cache_ / (Snapshot() + "model.safetensors"));
  cache_.Write("models--org--private/blobs/b1", SmallFile({"a"}));
  cache_.Link("../../../models--org--private/blobs/b1", Snapshot() + "model.safetensors");
  ExpectRefused("org/name", ErrorCode::kBadInput, "outside of the model");
}

TEST_F(HfCache, RejectsADamagedRef) {
  for (const char* ref : {"", "../../../etc", "main", "0123"}) {
    cache_.Write("models--org--name/refs/main", ref);
    EXPECT_EQ(ErrorOf([] { OpenCheckpoint("org/name"); }).code(), ErrorCode::kBadInput) << ref;
  }
}

TEST(HfCacheDirectory, FollowsTheEnvironment) {
  ScopedEnvironment home("HOME", "/h"), xdg("XDG_CACHE_HOME", nullptr), hf("HF_HOME", nullptr),
      hub("HF_HUB_CACHE", nullptr);
  EXPECT_EQ(HfCacheDirectory(), "/h/.cache/huggingface/hub");
  ScopedEnvironment with_xdg("XDG_CACHE_HOME", "/x");
  EXPECT_EQ(HfCacheDirectory(), "/x/huggingface/hub");
  ScopedEnvironment with_hf("HF_HOME", "~/hf");
  EXPECT_EQ(HfCacheDirectory(), "/h/hf/hub");
  ScopedEnvironment with_hub("HF_HUB_CACHE", "/c");
  EXPECT_EQ(HfCacheDirectory(), "/c");
  ScopedEnvironment empty_hub("HF_HUB_CACHE", "");
  EXPECT_EQ(HfCacheDirectory(), "/h/hf/hub");
}

TEST(ParseModelId, AcceptsWhatTheHubAccepts) {
  for (const char* id : {"org/name", "gpt2", "Org-1/Name_2.5-x", "o/n@main", "o/n@refs/pr/1", "o/n@v1.0+b"})
    EXPECT_TRUE(ParseModelId(id)) << id;
  for (const char* id : {"",       "/",      "a/b/c",    "/a",     "a/",      "./a",      "../a",
                         "a/..",   "a--b/c", "a/-b",     "a/b.",   "a b/c",   "a/b@",     "a/b@../x",
                         "a/b@/x", "a/b@x/", "a/b@x//y", "a/b@-x", "a/b@x;y", "a/b@.git", "a/b@x/.y"})
    EXPECT_FALSE(ParseModelId(id)) << id;
  EXPECT_FALSE(ParseModelId("a/" + std::string(95, 'b')));
}

}  // namespace
}  // namespace braid
