// The small files around the weights of a Hugging Face directory: which of them belong to a model, and the
// one edit that a merge makes to config.json. Copies are byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_config.h"
#include "ops/dtype.h"

namespace braid {

// The side files of `directory` to carry into a merge, relative to it, sorted: generation config, tokenizer,
// chat templates, preprocessor configs, sentence-transformers files (modules.json,
// sentence_bert_config.json, config_sentence_transformers.json, 1_Pooling/config.json and the like, and the
// weights of modules such as 2_Dense as they are), licence and notice. An allow-list: code, pickles, hidden
// files and links that leave the model are not carried. config.json and README.md are not among them: a merge
// writes its own. Throws Error when the directory cannot be read.
std::vector<std::string> SideFiles(const std::string& directory);

// Whether a side file belongs to the tokenizer, chat templates included; and whether it holds a form of its vocabulary
// that a client takes only where there is no tokenizer.json.
bool IsTokenizerFile(std::string_view name);
bool IsVocabularyFile(std::string_view name);

// A config.json with another vocab_size, at the top level and in text_config, wherever there is one.
std::string WithVocabularySize(std::string config, uint64_t size);

// config.json for the merge, every byte that is not named here as the donor wrote it; "" when the donor has
// none.
//   dtype, torch_dtype     the output's type, whichever of them the donor has; `dtype` is added when it has
//   neither tie_word_embeddings    false when `untie` _name_or_path          taken out: a path on the donor's
//   machine
// Parts of multimodal models (text_config, vision_config, audio_config, llm_config, language_config) get the
// same edits, but nothing is added to them and a tie_word_embeddings in them changes only in text_config.
std::string MergedConfig(const ModelConfig& donor, DType output_type, bool untie);

}  // namespace braid
