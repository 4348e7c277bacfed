// Chat templates that a recipe can name: the names that mergekit knows, the text that its templates make of a
// conversation, to the last space.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

namespace braid {

const std::vector<std::string_view>& ChatTemplateNames();

// Jinja as transformers runs it (trim_blocks, lstrip_blocks). Nothing: there is none of that name.
std::optional<std::string_view> NamedChatTemplate(std::string_view name);

}  // namespace braid
