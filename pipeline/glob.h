// Globs over whole tensor names: `*` stands for any characters, dots included, `?` for one, and `\` before one of these
// three for itself. Every filter of a recipe is such a glob once it is read: mergekit's substring x is the glob *x*.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace braid {

// O(|glob| |text|) whatever they hold.
bool GlobMatches(std::string_view glob, std::string_view text);

// The glob that matches what contains `text`, in which nothing is special.
std::string GlobOfSubstring(std::string_view text);

// The text x when the glob is GlobOfSubstring(x), whose filter mergekit could write.
std::optional<std::string> SubstringOf(std::string_view glob);

}  // namespace braid
