// The smallest tokenizer that is one: every byte is a token, after <unk>, <s> and </s>. Synthetic
// checkpoints carry it so that clients load them as whole models.
#pragma once

#include <string>

namespace braid {

std::string TokenizerText();        // tokenizer.json
std::string TokenizerConfigText();  // tokenizer_config.json

}  // namespace braid
