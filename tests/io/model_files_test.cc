#include "io/model_files.h"

#include <gtest/gtest.h>

#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

using fixture::TemporaryDirectory;

TEST(SideFiles, CarriesAnAllowList) {
  TemporaryDirectory directory;
  const std::vector<std::string> carried = {"1_Pooling/config.json",
                                            "2_Dense/config.json",
                                            "2_Dense/model.safetensors",
                                            "LICENSE",
                                            "License.txt",
                                            "NOTICE.md",
                                            "USE_POLICY.md",
                                            "additional_chat_templates/tools.jinja",
                                            "chat_template.jinja",
                                            "config_sentence_transformers.json",
                                            "generation_config.json",
                                            "merges.txt",
                                            "modules.json",
                                            "preprocessor_config.json",
                                            "qwen.tiktoken",
                                            "sentence_bert_config.json",
                                            "sentencepiece.bpe.model",
                                            "spiece.model",
                                            "tekken.json",
                                            "tokenizer.json",
                                            "tokenizer.model",
                                            "tokenizer_config.json",
                                            "vocab.json",
                                            "vocab.txt"};
  const std::vector<std::string> left = {"config.json",
                                         "README.md",
                                         "model.safetensors",
                                         "modeling_x.py",
                                         "license.py",
                                         "training_args.bin",
                                         "optimizer.pt",
                                         ".gitattributes",
                                         ".LICENSE",
                                         "1_Pooling/code.py",
                                         "1_Pooling/pytorch_model.bin",
                                         "2_Dense/sub/config.json",
                                         "additional_chat_templates/evil.py",
                                         "other/config.json",
                                         "NOTICE.so",
                                         "word2vec.model"};
  for (const std::string& name : carried) directory.Write(name, "x");
  for (const std::string& name : left) directory.Write(name, "x");
  std::filesystem::create_directories(directory / "tokenizer.model.v3");  // no regular file
  EXPECT_EQ(SideFiles(directory.path()), carried);
}

TEST(SideFiles, FollowsLinksOnlyInsideTheModel) {
  TemporaryDirectory outer, model;
  outer.Write("key", "secret");
  outer.Write("module/config.json", "{}");
  model.Write("files/t", "x");
  model.Link("files/t", "tokenizer.json");
  model.Link(outer / "key", "LICENSE");
  model.Link(outer / "module", "1_Pooling");
  model.Link("nowhere", "vocab.txt");
  EXPECT_EQ(SideFiles(model.path()), std::vector<std::string>{"tokenizer.json"});
}

std::string Merged(const std::string& config, bool untie = false) {
  return MergedConfig(ParseModelConfig(config, "config.json"), DType::kBF16, untie);
}

TEST(MergedConfig, ChangesOnlyWhatTheMergeChanges) {
  const std::pair<std::string, std::string> cases[] = {
      {"{\n  \"_name_or_path\": \"/home/x\",\n  \"big\": 1e-05,\n  \"inf\": -Infinity,\n  \"torch_dtype\": "
       "\"float32\"\n}\n",
       "{\n  \"big\": 1e-05,\n  \"inf\": -Infinity,\n  \"torch_dtype\": \"bfloat16\"\n}\n"},
      {R"({"dtype":"float16","x":{"dtype":"kept"},"s":"\"dtype\":\"kept\""})",
       R"({"dtype":"bfloat16","x":{"dtype":"kept"},"s":"\"dtype\":\"kept\""})"},
      {R"({"dtype":"float16","torch_dtype":"float16"})", R"({"dtype":"bfloat16","torch_dtype":"bfloat16"})"},
      {"{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\n  \"dtype\": \"bfloat16\"\n}\n"},
      {"{}", R"({"dtype": "bfloat16"})"},
      {R"({"text_config":{"torch_dtype":"float32","n":{"torch_dtype":1}},"torch_dtype":"float32"})",
       R"({"text_config":{"torch_dtype":"bfloat16","n":{"torch_dtype":1}},"torch_dtype":"bfloat16"})"},
      {R"({"text_config":null,"dtype":"float32"})", R"({"text_config":null,"dtype":"bfloat16"})"},
  };
  for (const auto& [config, expected] : cases) EXPECT_EQ(Merged(config), expected);
  EXPECT_EQ(MergedConfig(ModelConfig{}, DType::kBF16, true), "");
}

TEST(MergedConfig, UntiesWhereverTheDonorTies) {
  EXPECT_EQ(Merged(R"({"tie_word_embeddings": true,"dtype":"bfloat16"})", true),
            R"({"tie_word_embeddings": false,"dtype":"bfloat16"})");
  EXPECT_EQ(
      Merged(R"({"dtype":"bfloat16","text_config":{"tie_word_embeddings":true}})", true),
      R"({"dtype":"bfloat16","text_config":{"tie_word_embeddings":false},"tie_word_embeddings": false})");
  EXPECT_EQ(Merged(R"({"tie_word_embeddings": true,"dtype":"bfloat16"})"),
            R"({"tie_word_embeddings": true,"dtype":"bfloat16"})");
}

}  // namespace
}  // namespace braid
