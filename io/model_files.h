// The small files around the weights of a Hugging Face directory: which of them belong to a model, and the
// one edit that a merge makes to config.json. Copies are byte for byte.
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "ops/dtype.h"

namespace braid {

// The side files of `directory` to carry into a merge, relative to it, sorted: generation config, tokenizer,
// chat templates, preprocessor configs, sentence-transformers files (modules.json,
// sentence_bert_config.json, config_sentence_transformers.json, 1_Pooling/config.json and the like), licence and notice. An allow-list:
// code, pickles, hidden files and links that leave the model are not carried. config.json and README.md are
// not among them: a merge writes its own.
std::vector<std::string> SideFiles(const std::string& directory);

// config.json for the merge: `dtype` (or `torch_dtype`, whichever the donor has) set to the output's type,
// tie_word_embeddings set to false when `untie`, every other byte as the donor wrote it.
std::string MergedConfig(const ModelConfig& donor, DType output_type, bool untie);

}  // namespace braid
