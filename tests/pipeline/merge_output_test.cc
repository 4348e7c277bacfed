// What lies in OUT: shards, index, single file, side files, model card, manifest.
#include <gtest/gtest.h>

#include "io/json.h"
#include "pipeline/manifest.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

using fixture::Constant;
using fixture::StoredTensor;

class MergeOutput : public testing::Test {
 protected:
  // Tensors of 400, 800, 4000, 200 and 200 bytes.
  MergeOutput() {
    for (const char* name : {"base", "a"})
      fixture::WriteCheckpoint(place_, name,
                               {Constant("t0", DType::kF32, 100, 1), Constant("t1", DType::kF32, 200, 2),
                                Constant("t2", DType::kF32, 1000, 3), Constant("t3", DType::kF32, 50, 4),
                                Constant("t4", DType::kF32, 50, 5)},
                               2);
  }
  std::string Recipe(const std::string& top = "") {
    return place_.Write("recipe.toml", "method = 'ties'\nbase = '" + place_ / "base" + "'\n" + top +
                                           "[[models]]\npath = '" + place_ / "a" + "'\n");
  }
  std::string out() const { return place_ / "out"; }
  std::string Text(const std::string& name) { return fixture::FileText(out() + "/" + name); }
  Json Parsed(const std::string& name) { return ParseJson(Text(name), name); }
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    for (const auto& [name, bytes] : fixture::FilesOf(out())) names.push_back(name);
    return names;
  }

  fixture::TemporaryDirectory place_;
};

TEST_F(MergeOutput, ShardsAreFilledInOrder) {
  fixture::Merge(Recipe(), out(), {.shard_bytes = 1200});
  EXPECT_EQ(Names(), (std::vector<std::string>{
                         "README.md", "braid.json", "braid_recipe.toml", "config.json", "mergekit_config.yml",
                         "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                         "model-00003-of-00003.safetensors", "model.safetensors.index.json"}));
  const Json index = Parsed("model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 5600);
  EXPECT_EQ(index["metadata"]["total_parameters"], 1400);
  EXPECT_EQ(index["weight_map"], Json({{"t0", "model-00001-of-00003.safetensors"},
                                       {"t1", "model-00001-of-00003.safetensors"},
                                       {"t2", "model-00002-of-00003.safetensors"},
                                       {"t3", "model-00003-of-00003.safetensors"},
                                       {"t4", "model-00003-of-00003.safetensors"}}));
  EXPECT_EQ(fixture::ReadTensors(out()), fixture::ReadTensors(place_ / "base"));
}

TEST_F(MergeOutput, AFullShardIsNotOverfilled) {
  fixture::Merge(Recipe(), out(), {.shard_bytes = 1199});
  EXPECT_EQ(Parsed("model.safetensors.index.json")["weight_map"]["t1"], "model-00002-of-00004.safetensors");
}

TEST_F(MergeOutput, NamesThatJsonMustEscape) {
  const std::vector<StoredTensor> tensors = {Constant("b \"quoted\"", DType::kF32, 10, 1),
                                             Constant("zw\xC3\xB6lf", DType::kF32, 20, 2),
                                             Constant("a\\b\n", DType::kF32, 30, 3)};
  for (const char* name : {"base", "a"}) {
    std::filesystem::remove_all(place_ / name);
    fixture::WriteCheckpoint(place_, name, tensors);
  }
  const MergeReport report = fixture::Merge(Recipe(), out(), {.shard_bytes = 100});
  EXPECT_EQ(fixture::ReadTensors(out()), tensors);  // through the index
  const Manifest manifest = ReadManifest(out());
  EXPECT_EQ(manifest.headers.size(), 3u);
  for (const StoredTensor& tensor : tensors) EXPECT_EQ(manifest.tensors.at(tensor.name).bytes, tensor.bytes.size());
  EXPECT_EQ(ParseJson(fixture::PlanText(fixture::PlanOf(Recipe())), "plan")["tensors"][2]["name"], tensors[2].name);
}

TEST_F(MergeOutput, OneShardNeedsNoIndex) {
  fixture::Merge(Recipe(), out());
  EXPECT_EQ(Names(), (std::vector<std::string>{"README.md", "braid.json", "braid_recipe.toml", "config.json",
                                               "mergekit_config.yml", "model.safetensors"}));
  const std::string header = Text("model.safetensors").substr(8, 60);
  EXPECT_NE(header.find("\"__metadata__\":{\"format\":\"pt\"}"), std::string::npos) << header;
}

TEST_F(MergeOutput, ASingleFileCarriesItsManifest) {
  const std::string file = place_ / "merged.safetensors";
  const MergeReport report = fixture::Merge(Recipe(), file, {.shard_bytes = 1000});
  fixture::Merge(Recipe(), out());
  EXPECT_EQ(fixture::ReadTensors(file), fixture::ReadTensors(out()));
  const Manifest of_file = ReadManifest(file), of_directory = ReadManifest(out());
  EXPECT_EQ(of_file.fingerprint, report.fingerprint);
  ASSERT_EQ(of_file.tensors.size(), 5u);
  for (const StoredTensor& tensor : fixture::ReadTensors(file)) {
    const std::string sum = SumText(XXH3_128bits(tensor.bytes.data(), tensor.bytes.size()));
    EXPECT_EQ(of_file.tensors.at(tensor.name).sum, sum);
    EXPECT_EQ(of_directory.tensors.at(tensor.name).sum, sum);
    EXPECT_EQ(of_directory.tensors.at(tensor.name).bytes, tensor.bytes.size());
    EXPECT_EQ(of_directory.tensors.at(tensor.name).file, "model.safetensors");
  }
}

TEST_F(MergeOutput, ChecksumsOfTensorsOfSeveralTilesAndOfNone) {
  const std::vector<StoredTensor> tensors = {Constant("empty", DType::kF32, 0, 0),
                                             Constant("long", DType::kF32, 200'000, 1),
                                             fixture::Integers("ids", std::vector<int64_t>(100'000, 3))};
  for (const char* name : {"base", "a"}) {
    std::filesystem::remove_all(place_ / name);
    fixture::WriteCheckpoint(place_, name, tensors);
  }
  fixture::Merge(Recipe(), out(), {.memory = fixture::kGiB, .threads = 4, .tile_elements = 65'536});
  const Manifest manifest = ReadManifest(out());
  for (const StoredTensor& tensor : tensors)
    EXPECT_EQ(manifest.tensors.at(tensor.name).sum, SumText(XXH3_128bits(tensor.bytes.data(), tensor.bytes.size())));
}

TEST_F(MergeOutput, ConfigNamesTheTypeOfTheOutput) {
  fixture::Merge(Recipe("dtype = 'bfloat16'\n"), out());
  EXPECT_EQ(Parsed("config.json")["torch_dtype"], "bfloat16");
  EXPECT_EQ(Parsed("config.json")["model_type"], "llama");
  EXPECT_EQ(fixture::ReadTensors(out()).at(0).type, DType::kBF16);
}

TEST_F(MergeOutput, SideFilesComeFromTheBase) {
  place_.Write("base/tokenizer.json", "base\n");
  place_.Write("base/1_Pooling/config.json", "{}\n");
  place_.Write("base/modeling_x.py", "evil()");
  place_.Write("a/tokenizer.json", "a\n");
  fixture::Merge(Recipe(), out());
  EXPECT_EQ(Text("tokenizer.json"), "base\n");
  EXPECT_EQ(Text("1_Pooling/config.json"), "{}\n");
  EXPECT_FALSE(std::filesystem::exists(out() + "/modeling_x.py"));
}

TEST_F(MergeOutput, TokenizerFilesComeFromTheModelThatTheRecipeNames) {
  const auto write = [&](const std::string& directory, const std::string& token) {
    place_.Write(directory + "/tokenizer.json", "{\"model\": {\"vocab\": {\"" + token + "\": 0}}}");
    place_.Write(directory + "/generation_config.json", "{\"of\": \"" + directory + "\"}");
  };
  write("base", "x"), write("donor", "y");
  place_.Write("donor/config.json", "{\"model_type\": \"mistral\"}");
  fixture::Merge(Recipe("tokenizer = '" + place_ / "donor" + "'\n"), out());   // it needs no weights
  EXPECT_EQ(Parsed("tokenizer.json")["model"]["vocab"].size(), 1u);
  EXPECT_TRUE(Parsed("tokenizer.json")["model"]["vocab"].contains("y"));
  EXPECT_EQ(Parsed("config.json")["model_type"], "llama");
  EXPECT_EQ(Parsed("generation_config.json")["of"], "base");
  EXPECT_EQ(fixture::ErrorOf([&] {
              fixture::Merge(Recipe("tokenizer = '" + place_ / "nowhere" + "'\n"), out(), {}, true);
            }).code(),
            ErrorCode::kUsage);
  EXPECT_TRUE(Parsed("tokenizer.json")["model"]["vocab"].contains("y")) << "what was there stays";
}

TEST_F(MergeOutput, TheRecipeIsKeptInBothForms) {
  const std::string toml = Recipe("only = 't?'\n");
  fixture::Merge(toml, out());
  EXPECT_EQ(Text("braid_recipe.toml"), fixture::FileText(toml));
  EXPECT_EQ(Text("mergekit_config.yml"), "merge_method: ties\nbase_model: " + place_ / "base" +
                                             "\nonly: [\"t?\"]\nmodels:\n  - model: " + place_ / "a" +
                                             "\nparameters:\n  weight: 1\n");
  const std::string yaml =
      place_.Write("r.yaml", "# mine\nmerge_method: ties\nbase_model: " + place_ / "base" + "\nmodels:\n  - model: " +
                                 place_ / "a" + "\n    parameters: {weight: 1}\n");
  fixture::Merge(yaml, out(), {}, true);
  EXPECT_EQ(Text("mergekit_config.yml"), fixture::FileText(yaml));
  EXPECT_EQ(Text("braid_recipe.toml"), "# mine\nmethod = \"ties\"\nbase = \"" + place_ / "base" +
                                           "\"\n\n[[models]]\npath = \"" + place_ / "a" + "\"\nweight = 1\n");
  EXPECT_NE(Text("README.md").find("# mine\nmerge_method: ties"), std::string::npos);
}

// --- the model card ---------------------------------------------------------------------------------------

class MergeCard : public testing::Test {
 protected:
  // A model in the cache, with this licence in its card.
  void WriteCached(const std::string& org, const std::string& name, const std::string& licence) {
    const std::string model = "cache/models--" + org + "--" + name;
    place_.Write(model + "/refs/main", commit_);
    const std::string snapshot = model + "/snapshots/" + commit_;
    place_.Write(snapshot + "/model.safetensors", fixture::FileOf({Constant("w", DType::kF32, 4, 1)}));
    place_.Write(snapshot + "/config.json", fixture::kPlainConfig);
    place_.Write(snapshot + "/README.md", "---\nlicense: " + licence + "\n---\n# x\n");
  }
  std::string FrontMatter() {
    const std::string recipe = place_.Write(
        "r.toml", "method = 'task_arithmetic'\nbase = 'meta/base'\n[[models]]\npath = 'some-one/math'\n");
    const fixture::ScopedEnvironment cache("HF_HUB_CACHE", (place_ / "cache").c_str());
    fixture::Merge(recipe, place_ / "out", {}, true);
    const std::string card = fixture::FileText(place_ / "out/README.md");
    EXPECT_TRUE(card.starts_with("---\n"));
    return card.substr(0, card.find("\n---\n", 4) + 5);
  }

  fixture::TemporaryDirectory place_;
  const std::string commit_ = std::string(40, 'c');
};

TEST_F(MergeCard, NamesModelsOfTheCacheAndACommonLicence) {
  WriteCached("meta", "base", "apache-2.0");
  WriteCached("some-one", "math", "apache-2.0");
  EXPECT_EQ(FrontMatter(),
            "---\nbase_model:\n- meta/base\n- some-one/math\nbase_model_relation: merge\nlibrary_name: transformers\n"
            "license: apache-2.0\ntags:\n- mergekit\n- merge\n- braid\n---\n");
}

TEST_F(MergeCard, NamesNoLicenceWhenTheyDisagree) {
  WriteCached("meta", "base", "apache-2.0");
  WriteCached("some-one", "math", "mit");
  EXPECT_EQ(FrontMatter().find("license"), std::string::npos);
}

TEST_F(MergeOutput, TheCardOfLocalModelsNamesNoHubModels) {
  fixture::Merge(Recipe(), out());
  EXPECT_EQ(Text("README.md").find("base_model"), std::string::npos);
  EXPECT_NE(Text("README.md").find("`ties`"), std::string::npos);
}

}  // namespace
}  // namespace braid
