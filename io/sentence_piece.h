// The vocabulary of a SentencePiece model: a protobuf message (sentencepiece_model.proto) whose field 1 lists the
// pieces, each with its text (1) and score (2); a piece's place is its id. Everything else is passed over. The file is
// untrusted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer.h"

namespace braid {

// Throws Error(kBadInput), naming `path`, for bytes that are no such message (files of that name hold other things,
// too).
std::vector<Token> ParseSentencePieces(std::string_view bytes, const std::string& path);

}  // namespace braid
