#include "io/model_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "io/error.h"
#include "io/os.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

fs::path RootOf(const fs::path& directory) {
  fs::path snapshots = directory.parent_path(), model = snapshots.parent_path();
  bool cached = snapshots.filename() == "snapshots" && model.filename().string().starts_with("models--");
  return cached ? model : directory;
}

}  // namespace

ModelDirectory::ModelDirectory(std::string path) : path_(std::move(path)) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  std::error_code error;
  fs::path resolved = fs::canonical(path_, error);
  if (error) throw SystemError(error.value(), "open this directory", path_);
  root_ = RootOf(resolved).string();
}

std::vector<std::string> ModelDirectory::Names(const std::string& subdirectory) const {
  std::string where = subdirectory.empty() ? path_ : path_ + "/" + subdirectory;
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(where, error), end; !error && entry != end; entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) throw SystemError(error.value(), "list this directory", where);
  std::sort(names.begin(), names.end());
  return names;
}

bool ModelDirectory::Has(const std::string& name) const { return FileExists(path_ + "/" + name); }

std::string ModelDirectory::FilePath(const std::string& name) const {
  std::string path = path_ + "/" + name;
  std::error_code error;
  std::string resolved = fs::canonical(path, error).string();
  if (error) throw SystemError(error.value(), "open it", path);
  if (!Contains(resolved))
    throw Error(ErrorCode::kBadInput, fmt::format("this is a link to {}, outside of the model", resolved))
        .Path(path)
        .Hint(fmt::format("links may not leave {}: put the file itself there, or a hard link to it", root_));
  return path;
}

bool ModelDirectory::IsOwnFile(const std::string& name) const { return IsOwn(name, S_IFREG); }
bool ModelDirectory::IsOwnDirectory(const std::string& name) const { return IsOwn(name, S_IFDIR); }

bool ModelDirectory::IsOwn(const std::string& name, unsigned type) const {
  std::string path = path_ + "/" + name;
  struct stat status;
  if (TheOs().Stat(path.c_str(), &status) < 0 || (status.st_mode & S_IFMT) != type) return false;
  std::error_code error;
  std::string resolved = fs::canonical(path, error).string();
  return !error && Contains(resolved);
}

bool ModelDirectory::Contains(const std::string& canonical) const {
  if (root_ == "/") return true;
  return canonical.size() > root_.size() && canonical.starts_with(root_) && canonical[root_.size()] == '/';
}

bool IsPlainFileName(std::string_view name, std::string_view suffix) {
  if (name.size() > 255 || name.size() <= suffix.size() || !name.ends_with(suffix)) return false;
  if (name[0] == '.' || name[0] == '-') return false;
  return std::none_of(name.begin(), name.end(), [](unsigned char c) {
    return c == '/' || c == '\\' || c == ':' || c < 0x20 || c == 0x7f;
  });
}

std::string ListedNames(const std::vector<std::string>& names, size_t most) {
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), most); ++i) out += (i == 0 ? "" : ", ") + Printable(names[i]);
  if (names.size() > most) out += fmt::format(" and {} more", names.size() - most);
  return out;
}

}  // namespace braid
