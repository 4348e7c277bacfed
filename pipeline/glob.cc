#include "pipeline/glob.h"

namespace braid {
namespace {

constexpr std::string_view kSpecial = "*?\\";

bool IsEscape(std::string_view glob) {
  return glob.size() >= 2 && glob[0] == '\\' && kSpecial.find(glob[1]) != std::string_view::npos;
}

// Bytes at the start of `glob`, which is no star there, that `c` matches; 0 when it does not.
size_t MatchOne(std::string_view glob, char c) {
  if (glob.empty()) return 0;
  if (IsEscape(glob)) return glob[1] == c ? 2 : 0;
  return glob[0] == '?' || glob[0] == c ? 1 : 0;
}

}  // namespace

// Goes back to the last star only, which is enough: an earlier one could not help.
bool GlobMatches(std::string_view glob, std::string_view text) {
  size_t g = 0, t = 0;
  size_t star = std::string_view::npos, star_text = 0;
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      star_text = t;
    } else if (const size_t matched = MatchOne(glob.substr(g), text[t]); matched > 0) {
      g += matched, ++t;
    } else if (star != std::string_view::npos) {
      g = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  return glob.find_first_not_of('*', g) == std::string_view::npos;
}

std::string GlobOfSubstring(std::string_view text) {
  std::string glob = "*";
  for (char c : text) {
    if (kSpecial.find(c) != std::string_view::npos) glob += '\\';
    glob += c;
  }
  return glob + "*";
}

std::optional<std::string> SubstringOf(std::string_view glob) {
  if (glob.size() < 3 || glob.front() != '*' || glob.back() != '*') return std::nullopt;
  std::string text;
  for (size_t i = 1; i + 1 < glob.size(); ++i) {
    if (IsEscape(glob.substr(i))) ++i;
    else if (kSpecial.find(glob[i]) != std::string_view::npos) return std::nullopt;
    text += glob[i];
  }
  // "*a\*" ends in an escaped star.
  if (GlobOfSubstring(text) != glob) return std::nullopt;
  return text;
}

}  // namespace braid
