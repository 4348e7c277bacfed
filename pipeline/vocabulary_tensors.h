// Which tensors have a row per token, by the names that architectures give them. A checkpoint's catalogue is all they
// look at; no table of architectures.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "io/checkpoint.h"

namespace braid {

// "lm_head.weight", also as a part of a larger model.
bool IsOutputHead(std::string_view name);

// An input embedding, and the first of a checkpoint: the one that a tied head shares.
bool IsEmbedding(std::string_view name);
std::optional<uint32_t> FindEmbedding(const Checkpoint& checkpoint);

// A head or its bias by a name that others have, too: it has a row per token if its first axis is as long as the
// vocabulary.
bool MayBeOutputHead(std::string_view name);

// Rows of the embedding; without one, vocab_size of config.json; 0 when there is neither.
uint64_t VocabularyRows(const Checkpoint& checkpoint);

}  // namespace braid
