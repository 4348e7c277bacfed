// Which module of a recipe a tensor belongs to, told from names alone. mergekit has a table of architectures for that;
// its module names are understood here by what the parts of models are called.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace braid {

// The index of the module that takes a tensor (or a stack's prefix): the one whose name, or one of the words that stand
// for it, is the longest run of whole components in front of the tensor's layer number. What none matches is for
// `default`, else for the language part (text_decoder, decoder). Nothing when there is neither.
std::optional<size_t> OwnerOf(std::string_view tensor, const std::vector<std::string_view>& modules);

}  // namespace braid
