// A model's directory as untrusted ground. Names that come out of files never become paths unless they are
// plain, and a link inside the directory may not lead out of the model: otherwise a downloaded model could
// have any file that its user can read copied into a merge and published with it.
//
// The root of a model is its directory; for a snapshot in the Hugging Face cache it is the models--org--name
// directory two levels up, because every file of a snapshot is a link to ../../blobs. The directory that the
// user names may itself be a link.
//
// Immutable; any thread may use it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace braid {

class ModelDirectory {
 public:
  // Throws Error when it is no directory.
  explicit ModelDirectory(std::string path);

  const std::string& path() const { return path_; }

  // Everything in it, or in a subdirectory given as a relative path, sorted by name. Throws Error.
  std::vector<std::string> Names(const std::string& subdirectory = "") const;

  // Whether it has a file, directory or link to one of that name.
  bool Has(const std::string& name) const;

  // The path of one of its files; Error(kBadInput) when that is a link out of the model.
  std::string FilePath(const std::string& name) const;

  // Whether it is a regular file or directory of the model, perhaps behind a link that stays inside.
  bool IsOwnFile(const std::string& name) const;
  bool IsOwnDirectory(const std::string& name) const;

 private:
  bool IsOwn(const std::string& name, unsigned type) const;
  bool Contains(const std::string& canonical) const;

  std::string path_, root_;  // as given; resolved
};

// Whether a name from a file can be used as a file name: one visible component with this suffix.
bool IsPlainFileName(std::string_view name, std::string_view suffix);

// "a, b, c and 4 more", for messages; control characters are escaped.
std::string ListedNames(const std::vector<std::string>& names, size_t most = 5);

}  // namespace braid
