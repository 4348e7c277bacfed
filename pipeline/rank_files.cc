#include "pipeline/rank_files.h"

#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <filesystem>

#include "io/shard_writer.h"

namespace braid {
namespace {

// That no other process uses.
std::string OwnName(const std::string& path) {
  static std::atomic<uint64_t> count{0};
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  return fmt::format("{}.{}.{}.{}~", path, host, getpid(), count++);
}

Fd Create(const std::string& path) {
  TheOs().Unlink(path.c_str());   // of a process with our number that died
  Fd fd(TheOs().Open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666));
  if (!fd) throw SystemError(errno, "create it", path);
  return fd;
}

// Its lock says that somebody is writing it. Where there are no locks, what is left stays until the job is published.
class RankStream : public ByteStream {
 public:
  RankStream(const std::string& path, std::atomic<uint64_t>* count) : path_(path), temporary_(OwnName(path)) {
    RemoveDead();
    do {
      TheOs().Unlink(temporary_.c_str());   // of a process with our number that died
      stream_ = AppendingStream(temporary_, count);
    } while (!LockIt());
  }
  ~RankStream() override {
    if (stream_ != nullptr) TheOs().Unlink(temporary_.c_str());
  }
  void Write(const void* data, size_t bytes) override { stream_->Write(data, bytes); }
  void Finish() override {
    stream_->Finish();
    if (TheOs().Rename(temporary_.c_str(), path_.c_str(), 0) < 0) throw SystemError(errno, "create it", path_);
    stream_.reset();
    SyncDirectory(std::filesystem::path(path_).parent_path().string());
  }

 private:
  void RemoveDead() const {
    const std::filesystem::path path(path_);
    const std::string begin = path.filename().string() + ".", directory = path.parent_path().string();
    for (const std::string& name : ListRankFiles(directory)) {
      if (!name.starts_with(begin) || !name.ends_with('~')) continue;
      const std::string left = directory + "/" + name;
      const Fd file(TheOs().Open(left.c_str(), O_RDONLY | O_NOFOLLOW));
      if (file && TheOs().Flock(file.get(), LOCK_EX | LOCK_NB) == 0) TheOs().Unlink(left.c_str());
    }
  }

  // False when somebody takes the file for a dead one's, or has: it was there before its lock. It is gone then, or will
  // be.
  bool LockIt() {
    lock_ = Fd(TheOs().Open(temporary_.c_str(), O_RDONLY | O_NOFOLLOW));
    if (!lock_) return errno != ENOENT;
    if (TheOs().Flock(lock_.get(), LOCK_EX | LOCK_NB) < 0) return errno != EWOULDBLOCK;
    return FileExists(temporary_);
  }

  const std::string path_, temporary_;
  std::unique_ptr<ByteStream> stream_;
  Fd lock_;
};

}  // namespace

std::unique_ptr<ByteStream> NewRankStream(const std::string& path, std::atomic<uint64_t>* count) {
  return std::make_unique<RankStream>(path, count);
}

RankFile::RankFile(const std::string& path) : path_(path), temporary_(OwnName(path)), fd_(Create(temporary_)) {}

RankFile::~RankFile() {
  if (fd_) TheOs().Unlink(temporary_.c_str());
}

void RankFile::Append(const void* data, size_t bytes) {
  WriteExactly(fd_.get(), data, bytes, bytes_, temporary_);
  bytes_ += bytes;
}

void RankFile::Commit(bool durable) {
  if (durable && TheOs().Fsync(fd_.get()) < 0) throw SystemError(errno, "make it durable", temporary_);
  if (TheOs().Rename(temporary_.c_str(), path_.c_str(), 0) < 0) throw SystemError(errno, "create it", path_);
  fd_.Reset();
}

RankFilesGone::RankFilesGone(const std::string& directory)
    : Error(ErrorCode::kIo, "the ranks' directory is gone: another rank has published, or somebody removed it") {
  Path(directory);
}

std::optional<UnitRun> ParseRun(std::string_view text) {
  UnitRun run;
  const char* const end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, run.first);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '-') return std::nullopt;
  const auto last = std::from_chars(first.ptr + 1, end, run.last);
  if (last.ec != std::errc() || last.ptr != end || run.last <= run.first) return std::nullopt;
  if (fmt::format("{}-{}", run.first, run.last) != text) return std::nullopt;   // 01-2 is no file that we could open
  return run;
}

std::vector<std::string> ListRankFiles(const std::string& directory) {
  const std::string probe = OwnName(directory + "/look");
  const Fd fd(TheOs().Open(probe.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW, 0666));
  if (!fd && (errno == ENOENT || errno == ENOTDIR)) throw RankFilesGone(directory);
  if (!fd) throw SystemError(errno, "create it", probe);
  TheOs().Unlink(probe.c_str());
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error == std::errc::no_such_file_or_directory) throw RankFilesGone(directory);
  if (error) throw SystemError(error.value(), "list it", directory);
  return names;
}

}  // namespace braid
