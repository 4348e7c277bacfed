#include "io/json_events.h"

#include <fmt/format.h>

#include <cstddef>
#include <iterator>

namespace braid {
namespace {

// Reads the text byte by byte and leaves its position where the events can see it: the SAX interface tells
// the position of syntax errors only.
class TrackingIterator {
 public:
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackingIterator(std::string_view text, size_t at, size_t* position)
      : text_(text.data()), at_(at), position_(position) {}
  reference operator*() const { return text_[at_]; }
  TrackingIterator& operator++() {
    *position_ = ++at_;
    return *this;
  }
  bool operator==(const TrackingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const TrackingIterator& other) const { return at_ != other.at_; }

 private:
  const char* text_;
  size_t at_;
  size_t* position_;
};

// The part of nlohmann's message that is about the text, without the token itself: that may be a hundred
// megabytes long, and need not be UTF-8.
std::string SyntaxMessage(std::string_view what) {
  size_t start = what.find("syntax error");
  if (start == std::string_view::npos) return "this is not valid JSON: a number is out of range";
  what.remove_prefix(start);
  return "this is not valid JSON: " + std::string(what.substr(0, what.find("; last read")));
}

}  // namespace

void JsonEvents::Walk(std::string_view text) {
  depth_ = 0, position_ = 0, size_ = text.size();
  // The lexer takes a NUL for the end of the text, and would never look at what follows.
  if (size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw FaultAt(nul, "there is a NUL byte in this JSON text");
  if (text.starts_with("\xEF\xBB\xBF"))
    throw FaultAt(0, "the JSON text begins with a byte order mark").Hint("save it as plain UTF-8");
  nlohmann::json::sax_parse(TrackingIterator(text, 0, &position_),
                            TrackingIterator(text, text.size(), nullptr),
                            static_cast<nlohmann::json_sax<nlohmann::json>*>(this));
}

Error JsonEvents::FaultAt(size_t position, std::string message) const {
  Error error(ErrorCode::kBadInput, std::move(message));
  error.Path(path_).Offset(FileOffset(position)).Hint("correct the file, or download it again");
  return error;
}

void JsonEvents::Descend() {
  if (++depth_ > max_depth_) throw Fault(fmt::format("this JSON is nested more than {} deep", max_depth_));
}

bool JsonEvents::parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) {
  size_t last_read = position_ == 0 ? 0 : position_ - 1;
  std::string message = SyntaxMessage(error.what());
  if (position_ == size_ && message.find("unexpected end of input") != std::string::npos) last_read = size_;
  throw FaultAt(last_read, std::move(message));
}

}  // namespace braid
