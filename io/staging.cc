#include "io/staging.h"

#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <regex>

#include "io/error.h"
#include "io/shard_frames.h"
#include "io/shard_writer.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";  // the staged name of a single-file output

struct Inode {
  dev_t device = 0;
  ino_t number = 0;
  bool operator==(const Inode&) const = default;
};

std::optional<Inode> InodeOf(const std::string& path) {
  struct stat status;
  if (TheOs().Stat(path.c_str(), &status) < 0) return std::nullopt;
  return Inode{status.st_dev, status.st_ino};
}

// Whether `path` is `place` or lies below it, by inode, so that links and bind mounts do not hide it.
bool LiesIn(const std::string& path, Inode place) {
  std::error_code ignored;
  for (fs::path p = fs::canonical(path, ignored); !p.empty(); p = p.parent_path()) {
    if (InodeOf(p.string()) == place) return true;
    if (p == p.root_path()) break;
  }
  return false;
}

bool IsMountPoint(const std::string& path) {
  const auto here = InodeOf(path), above = InodeOf(path + "/..");
  return here && above && (here->device != above->device || here->number == above->number);
}

// Whether a checkpoint directory may hold something of this name.
bool BelongsToACheckpoint(const std::string& name, bool is_directory) {
  static const std::regex directories(R"(\d+_\w+|additional_chat_templates|\.cache)");
  static const std::regex files(
      R"((.+\.(safetensors|safetensors(\.planes)?\.zst|json|jinja|model|tiktoken|txt|md|yml|toml|py)|)"
      R"(pytorch_model.*\.bin|)"
      R"((LICENSE|LICENCE|NOTICE|USE_POLICY).*|\.gitattributes|\.gitignore))",
      std::regex::icase);
  return std::regex_match(name, is_directory ? directories : files);
}

// What several processes leave each other.
bool IsShared(const std::string& name) {
  static const std::regex shared(R"(ranks-[0-9a-f]{32}(\.removed)?)");
  return std::regex_match(name, shared);
}

std::string RemovedName(const std::string& shared) { return shared + ".removed"; }

// A directory that begins with scratch_directory().
bool IsScratch(const std::string& name) {
  static const std::regex scratch(R"(\.scratch-\w{6})");
  return std::regex_match(name, scratch);
}

// As they are now: who removes some of them meanwhile does no harm.
std::vector<fs::directory_entry> EntriesOf(const std::string& directory, std::error_code* error) {
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator entry(directory, *error), end; !*error && entry != end; entry.increment(*error))
    entries.push_back(*entry);
  return entries;
}

std::vector<fs::directory_entry> EntriesOf(const std::string& directory) {
  std::error_code error;
  std::vector<fs::directory_entry> entries = EntriesOf(directory, &error);
  if (error) throw SystemError(error.value(), "list it", directory);
  return entries;
}

// The first entry of a directory, or of those in it, that no checkpoint would hold, or "". What a downloader keeps
// in .cache is nobody's work.
std::string AlienIn(const fs::path& directory, const std::string& prefix = "") {
  for (const auto& entry : EntriesOf(directory)) {
    const std::string name = entry.path().filename().string();
    const bool is_directory = entry.is_directory() && !entry.is_symlink();
    if (!BelongsToACheckpoint(name, is_directory)) return prefix + name;
    if (!is_directory || name == ".cache") continue;
    if (std::string alien = AlienIn(entry.path(), prefix + name + "/"); !alien.empty()) return alien;
  }
  return "";
}

bool HoldsWeights(const std::string& directory) {
  for (const auto& entry : EntriesOf(directory)) {
    const std::string name = entry.path().filename().string();
    if (IsShardFile(name) || name.ends_with(".bin")) return true;
  }
  return false;
}

bool IsEmptyDirectory(const std::string& path) {
  for (const auto& entry : EntriesOf(path))
    if (entry.path().filename() != "lost+found") return false;  // a fresh ext4 mount has one
  return true;
}

// Removes a directory and what is in it; links are removed, not followed.
void RemoveTree(const std::string& path) {
  std::error_code ignored;
  for (const auto& entry : EntriesOf(path, &ignored)) {
    if (entry.is_directory() && !entry.is_symlink()) RemoveTree(entry.path().string());
    else TheOs().Unlink(entry.path().c_str());
  }
  TheOs().Rmdir(path.c_str());
}

void MakeDirectories(const std::string& path) {
  if (path.empty() || FileExists(path)) return;
  MakeDirectories(fs::path(path).parent_path().string());
  if (TheOs().Mkdir(path.c_str(), 0777) < 0 && errno != EEXIST) throw SystemError(errno, "create it", path);
}

Error Refused(const std::string& out, std::string why, std::string hint) {
  return Error(ErrorCode::kUsage, std::move(why)).Path(out).Hint(std::move(hint));
}

// An OUT written as it is meant: absolute, links resolved as far as it exists, no trailing slash.
std::string Resolve(const std::string& out) {
  if (out.empty()) throw Error(ErrorCode::kUsage, "no output path was given");
  std::error_code error;
  fs::path path = fs::weakly_canonical(fs::absolute(out), error);
  if (error) throw SystemError(error.value(), "resolve it", out);
  std::string text = path.string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

// Throws when an existing directory must not be replaced by the output.
void CheckReplaceable(const std::string& out, bool force, const std::vector<std::string>& inputs) {
  const Inode place = *InodeOf(out);
  const char* home = std::getenv("HOME");
  const std::string elsewhere = "choose another output path";
  for (const std::string& input : inputs)
    if (LiesIn(input, place)) throw Refused(out, fmt::format("it is, or holds, the input {}", input), elsewhere);
  if (LiesIn(".", place)) throw Refused(out, "it is, or holds, the current directory", elsewhere);
  if (home != nullptr && LiesIn(home, place)) throw Refused(out, "it is, or holds, a home directory", elsewhere);
  if (IsMountPoint(out)) throw Refused(out, "it is a mount point that is not empty", "empty it, or " + elsewhere);
  if (!force) throw Refused(out, "it exists already", "use --force to replace it, or " + elsewhere);
  std::string alien = AlienIn(out);
  if (alien.empty() && !HoldsWeights(out)) alien = "no weights";
  if (!alien.empty())
    throw Refused(out, fmt::format("it does not look like a checkpoint (found: {}), so --force does not replace it",
                                   Printable(alien)),
                  "remove it yourself, or " + elsewhere);
}

struct Target {
  std::string out;
  bool single_file, exists, inside;
};

Target Examine(const std::string& given, bool force, const std::vector<std::string>& inputs) {
  Target target{Resolve(given), IsShardFile(given), false, false};
  struct stat status;
  if (TheOs().Stat(target.out.c_str(), &status) < 0) {
    if (errno != ENOENT && errno != ENOTDIR) throw SystemError(errno, "look at it", target.out);
    if (TheOs().Lstat(target.out.c_str(), &status) == 0)
      throw Refused(given, "it is a link to something that does not exist",
                    "remove the link, or choose another output path");
    return target;
  }
  target.exists = true;
  if (target.single_file) {
    if (!S_ISREG(status.st_mode)) throw Refused(given, "it exists and is not a regular file", "choose another name");
    for (const std::string& input : inputs)
      if (InodeOf(input) == InodeOf(target.out)) throw Refused(given, "it is an input", "choose another name");
    if (!force) throw Refused(given, "it exists already", "use --force to replace it");
    return target;
  }
  if (!S_ISDIR(status.st_mode))
    throw Refused(given, "it exists and is not a directory",
                  "choose another name; one that ends in .safetensors is written as a single file");
  if (IsEmptyDirectory(target.out)) {
    target.inside = IsMountPoint(target.out);
    return target;
  }
  CheckReplaceable(target.out, force, inputs);
  return target;
}

}  // namespace

void CheckOutputPath(const std::string& out, bool force, const std::vector<std::string>& inputs) {
  Examine(out, force, inputs);
}

Staging::Staging(const std::string& out, bool force, const std::vector<std::string>& inputs) {
  const Target target = Examine(out, force, inputs);
  out_ = target.out, single_file_ = target.single_file, exists_ = target.exists, inside_ = target.inside;
  parent_ = fs::path(out_).parent_path().string();
  staging_ = inside_ ? out_ + "/.partial" : out_ + ".partial";
  MakeDirectories(parent_);
  TakeLock();
}

Staging::Staging(const std::string& out, bool force, const std::vector<std::string>& inputs, const std::string& key) {
  const Target target = Examine(out, force, inputs);
  if (target.inside)
    throw Refused(out, "it is a mount point, which no rename can replace", "choose a directory in it");
  out_ = target.out, single_file_ = target.single_file, exists_ = target.exists;
  parent_ = fs::path(out_).parent_path().string();
  partial_ = out_ + ".partial";
  shared_ = fmt::format("{}/ranks-{}", partial_, key);
  staging_ = shared_ + "/checkpoint";
  MakeDirectories(parent_);
  Share(key);
  // Perhaps the others published it just now; then this is a new, empty place.
  try {
    Examine(out, force, inputs);
  } catch (...) {
    RemoveIfEmpty();
    throw;
  }
}

void Staging::RemoveIfEmpty() {
  for (const std::string& made : {staging_, shared_, partial_}) TheOs().Rmdir(made.c_str());
}

// The name of the directory is the agreement: whoever comes with another key sees it. No lock is needed, which not
// every shared file system has; the one on OUT.partial is for a merge without ranks on this machine.
void Staging::Share(const std::string& key) {
  const auto make = [](const std::string& path) {
    if (TheOs().Mkdir(path.c_str(), 0777) == 0) return true;
    if (errno != EEXIST) throw SystemError(errno, "create it", path);
    return false;
  };
  make(partial_);
  lock_ = Fd(TheOs().Open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (!lock_) throw SystemError(errno, "open it", partial_);
  if (TheOs().Flock(lock_.get(), LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK)
    throw Error(ErrorCode::kIo, "a merge without --rank is writing here").Path(partial_)
        .Hint("wait for it, or choose another output path");
  const bool made = make(shared_);
  for (const auto& entry : EntriesOf(partial_)) {
    const std::string name = entry.path().filename().string();
    if (name == "ranks-" + key) continue;
    if (IsShared(name) && name.ends_with(RemovedName(""))) {   // by a process that died at it
      RemoveTree(entry.path().string());
      continue;
    }
    if (made) TheOs().Rmdir(shared_.c_str());
    if (IsShared(name))
      throw Refused(partial_,
                    "it holds the work of ranks of another merge: another recipe, other sources or options, or "
                    "another version of braid",
                    "run all ranks alike; or remove it, if nobody needs it, or choose another output path");
    throw Refused(partial_, fmt::format("it holds {}, which ranks do not leave there", Printable(name)),
                  "remove it, or choose another output path");
  }
  make(staging_);
}

void Staging::RemoveLeftovers(const std::string& out, const std::string& key) {
  const std::string partial = Resolve(out) + ".partial", shared = fmt::format("{}/ranks-{}", partial, key);
  if (FileExists(shared) && !FileExists(shared + "/checkpoint")) RemoveTree(shared);
  RemoveTree(RemovedName(shared));
  TheOs().Rmdir(partial.c_str());
}

void Staging::KeepOnly(const std::vector<std::string>& names) {
  for (const auto& entry : EntriesOf(staging_)) {
    const std::string name = entry.path().filename().string();
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    if (entry.is_directory() && !entry.is_symlink()) RemoveTree(entry.path().string());
    else TheOs().Unlink(entry.path().c_str());
  }
}

void Staging::TakeLock() {
  const bool made = TheOs().Mkdir(staging_.c_str(), 0777) == 0;
  if (!made && errno != EEXIST) throw SystemError(errno, "create it", staging_);
  lock_ = Fd(TheOs().Open(staging_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (!lock_) throw SystemError(errno, "open it", staging_);
  const Error busy = Error(ErrorCode::kIo, "another merge is writing here").Path(staging_)
                         .Hint("wait for it, or choose another output path");
  if (TheOs().Flock(lock_.get(), LOCK_EX | LOCK_NB) < 0) {
    lock_.Reset();
    published_ = true;  // not ours to remove
    throw busy;
  }
  struct stat status;
  TheOs().Fstat(lock_.get(), &status);
  if (InodeOf(staging_) != Inode{status.st_dev, status.st_ino}) throw busy;  // its owner published it just now
  if (made) return;
  for (const auto& entry : EntriesOf(staging_)) {
    const std::string name = entry.path().filename().string();
    const bool is_directory = entry.is_directory() && !entry.is_symlink();
    if (!BelongsToACheckpoint(name, is_directory) && !(is_directory && (IsShared(name) || IsScratch(name))))
      throw Refused(staging_, fmt::format("it holds {}, which no merge leaves there", Printable(name)),
                    "remove it, or choose another output path");
  }
  for (const auto& entry : EntriesOf(staging_)) {
    if (entry.is_directory() && !entry.is_symlink()) RemoveTree(entry.path().string());
    else TheOs().Unlink(entry.path().c_str());
  }
  notes_.push_back(fmt::format("removed what an interrupted merge had left in {}", staging_));
}

Staging::~Staging() {
  if (published_ || !lock_) return;
  if (shared_.empty()) RemoveTree(staging_);
  else if (!FileExists(staging_)) HideShared(), RemoveHidden();   // another process has published it
}

// In one step: who looked at what is done while it is removed would take the rest for all that is done.
void Staging::HideShared() {
  const std::string removed = RemovedName(shared_);
  RemoveTree(removed);   // of a process that died at it
  TheOs().Rename(shared_.c_str(), removed.c_str(), 0);
}

// What others have just begun beside it stays.
void Staging::RemoveHidden() {
  RemoveTree(RemovedName(shared_));
  TheOs().Rmdir(partial_.c_str());
}

std::string Staging::PathFor(const std::string& name) {
  const std::string relative = single_file_ ? kSingle : name;
  files_.push_back(relative);
  const fs::path path = fs::path(staging_) / relative;
  MakeDirectories(path.parent_path().string());
  return path.string();
}

void Staging::Publish(const std::string& last) {
  for (const std::string& file : files_)
    if (file.find('/') != std::string::npos) SyncDirectory((fs::path(staging_) / file).parent_path().string());
  SyncDirectory(staging_);
  const auto rename = [&](const std::string& from, const std::string& to, unsigned flags) {
    int result = TheOs().Rename(from.c_str(), to.c_str(), flags);
    if (result < 0 && errno == EINVAL && flags == RENAME_NOREPLACE)
      result = TheOs().Rename(from.c_str(), to.c_str(), 0);
    if (result < 0) throw SystemError(errno, fmt::format("rename {} to it", from), to);
  };
  if (inside_) {
    PublishInside(last);
  } else if (single_file_) {
    rename(staging_ + "/" + kSingle, out_, exists_ ? 0 : RENAME_NOREPLACE);
    if (shared_.empty()) TheOs().Rmdir(staging_.c_str());
  } else if (!exists_ || IsEmptyDirectory(out_)) {
    rename(staging_, out_, exists_ ? 0 : RENAME_NOREPLACE);
  } else if (TheOs().Rename(staging_.c_str(), out_.c_str(), RENAME_EXCHANGE) == 0) {
    if (shared_.empty()) RemoveTree(staging_);   // otherwise it goes with all that is shared
  } else {  // a file system without exchange: two renames
    if (errno != EINVAL) throw SystemError(errno, "replace it", out_);
    const std::string old = out_ + ".replaced";
    rename(out_, old, RENAME_NOREPLACE);
    rename(staging_, out_, RENAME_NOREPLACE);
    RemoveTree(old);
  }
  published_ = true;
  if (!shared_.empty()) HideShared();
  SyncDirectory(inside_ ? out_ : parent_);
  if (!shared_.empty()) RemoveHidden();
}

void Staging::PublishInside(const std::string& last) {
  const auto move = [&](const std::string& file) {
    MakeDirectories((fs::path(out_) / file).parent_path().string());
    const std::string from = staging_ + "/" + file, to = out_ + "/" + file;
    if (TheOs().Rename(from.c_str(), to.c_str(), 0) < 0) throw SystemError(errno, "move it into place", to);
  };
  for (const std::string& file : files_)
    if (file != last) move(file);
  SyncDirectory(out_);
  move(last);
  RemoveTree(staging_);
}

uint64_t FreeSpace(const std::string& path) {
  struct statfs status;
  std::string existing = fs::absolute(path).string();
  while (!existing.empty() && existing != "/" && TheOs().Statfs(existing.c_str(), &status) < 0)
    existing = fs::path(existing).parent_path().string();
  if (TheOs().Statfs(existing.c_str(), &status) < 0) throw SystemError(errno, "look at its file system", path);
  return static_cast<uint64_t>(status.f_bavail) * static_cast<uint64_t>(status.f_bsize);
}

// Opened first: a network file system may tell a size that is a minute old of a file that is not.
uint64_t AllocatedBytes(const std::string& path) {
  const Fd fd(TheOs().Open(path.c_str(), O_RDONLY | O_NOFOLLOW));
  struct stat status;
  if (!fd && errno == ENOENT) return 0;
  if (!fd || TheOs().Fstat(fd.get(), &status) < 0) throw SystemError(errno, "look at it", path);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

}  // namespace braid
