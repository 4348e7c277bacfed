#include "io/hf_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "io/error.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr size_t kMaxIdBytes = 96;  // the Hub's limit
constexpr size_t kMaxRevisionBytes = 255;
constexpr uint64_t kMaxRefBytes = 4096;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool IsAlphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// One part of an id: letters, digits, '-', '_' and '.'; neither "--" nor "..", nor one of them at an end.
bool IsIdPart(std::string_view part) {
  if (part.empty() || part.front() == '-' || part.front() == '.' || part.back() == '-' || part.back() == '.')
    return false;
  if (part.find("--") != part.npos || part.find("..") != part.npos) return false;
  return std::all_of(part.begin(), part.end(),
                     [](char c) { return IsAlphanumeric(c) || c == '-' || c == '_' || c == '.'; });
}

// A revision becomes a path below refs/, and part of a command that is printed.
bool IsRevision(std::string_view revision) {
  if (revision.empty() || revision.size() > kMaxRevisionBytes || revision.front() == '-') return false;
  if (revision.front() == '/' || revision.back() == '/' || revision.find("//") != revision.npos) return false;
  if (revision.front() == '.' || revision.find("/.") != revision.npos || revision.find("..") != revision.npos)
    return false;
  return std::all_of(revision.begin(), revision.end(), [](char c) {
    return IsAlphanumeric(c) || c == '-' || c == '_' || c == '.' || c == '/' || c == '+';
  });
}

bool IsCommit(std::string_view text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string ModelCacheDirectory(const ModelId& id) {
  std::string name = id.name;
  if (size_t slash = name.find('/'); slash != name.npos) name.replace(slash, 1, "--");
  return HfCacheDirectory() + "/models--" + name;
}

}  // namespace

std::optional<ModelId> ParseModelId(std::string_view reference) {
  ModelId id;
  if (size_t at = reference.find('@'); at != reference.npos) {
    id.revision = reference.substr(at + 1);
    reference = reference.substr(0, at);
  }
  if (reference.size() > kMaxIdBytes || !IsRevision(id.revision)) return std::nullopt;
  size_t slash = reference.find('/');
  if (slash != reference.npos && !IsIdPart(reference.substr(0, slash))) return std::nullopt;
  if (!IsIdPart(slash == reference.npos ? reference : reference.substr(slash + 1))) return std::nullopt;
  id.name = reference;
  return id;
}

std::string ExpandHome(const std::string& path) {
  std::string home = Environment("HOME");
  if (home.empty() || (path != "~" && !path.starts_with("~/"))) return path;
  return home + path.substr(1);
}

std::string HfCacheDirectory() {
  if (std::string hub = Environment("HF_HUB_CACHE"); !hub.empty()) return ExpandHome(hub);
  if (std::string hf = Environment("HF_HOME"); !hf.empty()) return ExpandHome(hf) + "/hub";
  if (std::string xdg = Environment("XDG_CACHE_HOME"); !xdg.empty())
    return ExpandHome(xdg) + "/huggingface/hub";
  if (std::string home = Environment("HOME"); !home.empty()) return home + "/.cache/huggingface/hub";
  return "";
}

std::optional<CachedSnapshot> FindSnapshot(const ModelId& id) {
  if (HfCacheDirectory().empty()) return std::nullopt;
  std::string model = ModelCacheDirectory(id), commit = id.revision;
  if (!IsCommit(commit)) {
    std::string ref = model + "/refs/" + id.revision;
    if (!FileExists(ref)) return std::nullopt;
    commit = ReadSmallFile(ref, kMaxRefBytes);
    while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r')) commit.pop_back();
    if (!IsCommit(commit))
      throw Error(ErrorCode::kBadInput,
                  "this file of the Hugging Face cache should hold a commit of 40 digits")
          .Path(ref)
          .Hint(DownloadCommand(id));
  }
  std::string directory = model + "/snapshots/" + commit;
  if (!FileExists(directory)) return std::nullopt;
  return CachedSnapshot{std::move(directory), std::move(commit)};
}

std::optional<std::string> BlobName(const std::string& path, const FileIdentity& identity) {
  // models--org--name/snapshots/COMMIT/FILE -> ../../blobs/HASH
  const std::filesystem::path file(path), snapshot = file.parent_path(), model = snapshot.parent_path().parent_path();
  if (!IsCommit(snapshot.filename().string()) || snapshot.parent_path().filename() != "snapshots" ||
      !model.filename().string().starts_with("models--"))
    return std::nullopt;
  char target[256];
  const ssize_t bytes = TheOs().Readlink(path.c_str(), target, sizeof(target));
  if (bytes <= 0) return std::nullopt;
  constexpr std::string_view kBlobs = "../../blobs/";
  std::string_view name(target, static_cast<size_t>(bytes));
  if (!name.starts_with(kBlobs)) return std::nullopt;
  name.remove_prefix(kBlobs.size());
  const bool is_hash =
      (name.size() == 40 || name.size() == 64) && name.find_first_not_of("0123456789abcdef") == name.npos;
  struct stat status;
  const std::string blob = (model / "blobs" / name).string();
  if (!is_hash || TheOs().Stat(blob.c_str(), &status) < 0 || IdentityOf(status) != identity) return std::nullopt;
  return std::string(name);
}

std::string DownloadCommand(const ModelId& id) {
  return fmt::format("hf download {} --revision {}", id.name, id.revision);
}

}  // namespace braid
