#include "io/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace braid {

std::string_view ErrorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage: return "usage";
    case ErrorCode::kBadInput: return "bad_input";
    case ErrorCode::kInputChanged: return "input_changed";
    case ErrorCode::kIo: return "io";
    case ErrorCode::kMemory: return "memory";
    case ErrorCode::kIncompatible: return "incompatible";
    case ErrorCode::kInterrupted: return "interrupted";
    case ErrorCode::kInternal: break;
  }
  return "internal";
}

Error::Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) { Compose(); }

Error& Error::Path(std::string path) { path_ = std::move(path); Compose(); return *this; }
Error& Error::Tensor(std::string name) { tensor_ = std::move(name); Compose(); return *this; }
Error& Error::Offset(uint64_t file_offset) { offset_ = file_offset; Compose(); return *this; }
Error& Error::At(int line, int column) { line_ = line, column_ = column; Compose(); return *this; }
Error& Error::AskedForAt(std::string recipe, int line, int column) {
  asked_for_at_ = fmt::format("{}:{}:{}: ", Printable(recipe), line, column);
  Compose();
  return *this;
}
Error& Error::Hint(std::string what_to_do) { hint_ = std::move(what_to_do); Compose(); return *this; }

void Error::Compose() {
  std::string where;
  if (!path_.empty()) where = Printable(path_);
  if (line_ > 0) where += fmt::format("{}{}:{}", where.empty() ? "" : ":", line_, column_);
  if (!where.empty()) where += ": ";
  if (!tensor_.empty()) where += fmt::format("tensor '{}': ", Printable(tensor_));
  if (offset_) where += fmt::format("at byte {}: ", *offset_);
  text_ = asked_for_at_ + where + Printable(message_);
  if (!hint_.empty()) text_ += "; " + Printable(hint_);
}

Error SystemError(int error_number, std::string_view doing, std::string path) {
  Error error(error_number == ENOENT ? ErrorCode::kUsage : ErrorCode::kIo,
              fmt::format("could not {}: {}", doing, std::strerror(error_number)));
  error.Path(std::move(path));
  if (error_number == ENOSPC || error_number == EDQUOT)
    error.Hint("free some space or choose an output on another disk");
  else if (error_number == EFBIG)
    error.Hint("the file size limit (ulimit -f) is too low for a shard; raise it or use --shard-size");
  else if (error_number == EMFILE)
    error.Hint("raise the limit on open files (ulimit -n)");
  return error;
}

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (unsigned char c : text) {
    if (c < 0x20 || c == 0x7f) out += fmt::format("\\x{:02x}", c);
    else out += static_cast<char>(c);
  }
  return out;
}

std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t substitute = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

}  // namespace braid
