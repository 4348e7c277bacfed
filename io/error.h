// The one error type. Whatever goes wrong, a user reads: what, where, why, and what to do.
//
//   throw Error(ErrorCode::kBadInput, "the header says 812 bytes, the file has 640 left")
//       .Path(path).Tensor(name).Offset(8).Hint("download the file again");
//
// A code is also the program's exit status. Errors are values: copyable, and safe to carry across threads.
// what() is the one-line text; control characters of names that came out of files are escaped in it.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace braid {

enum class ErrorCode : int {
  kUsage = 2,           // the command line, the recipe, or a source that does not exist
  kBadInput = 3,        // a file that is not what it claims to be
  kInputChanged = 4,    // an input changed during the run
  kIo = 5,              // the system refused to read or write; no space
  kMemory = 6,          // the budget is too small for the plan
  kIncompatible = 7,    // models that do not fit together
  kInternal = 70,       // a fault of ours
  kInterrupted = 130,   // SIGINT (143 for SIGTERM and SIGHUP, set by the command line)
};

// "usage", "bad_input", ...: the `code` of --json.
std::string_view ErrorCodeName(ErrorCode code);

class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message);

  Error& Path(std::string path);
  Error& Tensor(std::string name);
  Error& Offset(uint64_t file_offset);
  Error& At(int line, int column);  // 1-based; of a recipe
  // The place in a recipe that asked for what went wrong. It is shown in front of everything else; path() stays.
  Error& AskedForAt(std::string recipe, int line, int column);
  Error& Hint(std::string what_to_do);

  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& path() const { return path_; }
  const std::string& tensor() const { return tensor_; }
  const std::string& hint() const { return hint_; }

  // "recipe:line:column: path:line:column: tensor 'name' (offset n): message; hint"
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  void Compose();

  ErrorCode code_;
  std::string message_, path_, tensor_, hint_, asked_for_at_, text_;
  std::optional<uint64_t> offset_;
  int line_ = 0, column_ = 0;
};

// An Error for the errno of a system call that failed on `path`; ENOSPC, EDQUOT and EFBIG explain themselves.
Error SystemError(int error_number, std::string_view doing, std::string path);

// Makes bytes that came from a file safe for a terminal: control characters become \xNN.
std::string Printable(std::string_view text);

// The candidate nearest to `word` by edit distance, or "" when none is near. For "did you mean".
template <typename Range>
std::string NearestName(std::string_view word, const Range& candidates);
std::size_t EditDistance(std::string_view a, std::string_view b);

template <typename Range>
std::string NearestName(std::string_view word, const Range& candidates) {
  std::string best;
  std::size_t best_distance = word.size() / 3 + 2;  // one slip in a short word, more in a long one
  for (const auto& candidate : candidates) {
    std::size_t distance = EditDistance(word, candidate);
    if (distance < best_distance) best_distance = distance, best = std::string(candidate);
  }
  return best;
}

}  // namespace braid
