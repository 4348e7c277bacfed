#include "io/input_stream.h"

#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <boost/iostreams/compose.hpp>
#include <cerrno>
#include <charconv>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "io/error.h"
#include "io/input_file.h"
#include "io/planes_filter.h"
#include "io/zstd_filter.h"

namespace braid {
namespace {

constexpr int kPipeBytes = 1 << 20;   // what an unprivileged process may ask for; 64 KiB are usual, and half as fast
constexpr int kPatience = 50;         // milliseconds between looks at the interrupt

// The descriptor that a path names, which is duplicated: opening the path anew would not work for a socket.
std::optional<int> DescriptorOf(std::string_view path) {
  if (path == "-" || path == "/dev/stdin") return 0;
  for (const std::string_view directory : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!path.starts_with(directory)) continue;
    const std::string_view digits = path.substr(directory.size());
    int number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error == std::errc() && end == digits.data() + digits.size() && number >= 0) return number;
  }
  return std::nullopt;
}

bool IsStream(mode_t mode) { return S_ISFIFO(mode) || S_ISSOCK(mode); }

Error NoStream(const std::string& name, const char* message, const char* hint) {
  return Error(ErrorCode::kUsage, message).Path(name).Hint(hint);
}

}  // namespace

// Descriptors of regular files are read as these files.
bool InputStream::IsNamedBy(const std::string& path) {
  if (path == "-") return true;
  struct stat status;
  if (path.find('\0') != std::string::npos || TheOs().Stat(path.c_str(), &status) < 0) return false;
  return IsStream(status.st_mode) || (S_ISCHR(status.st_mode) && DescriptorOf(path));
}

InputStream::InputStream(const std::string& path, const std::atomic<int>* interrupt)
    : name_(path == "-" ? "standard input" : path), kind_("FIFO"), interrupt_(interrupt) {
  const std::optional<int> descriptor = DescriptorOf(path);
  if (descriptor) kind_ = *descriptor == 0 ? "standard input" : "descriptor";
  // O_NONBLOCK: a FIFO that nobody writes to yet opens at once.
  fd_ = Fd(descriptor ? TheOs().Duplicate(*descriptor) : TheOs().Open(path.c_str(), O_RDONLY | O_NONBLOCK));
  if (!fd_) throw SystemError(errno, "open it", name_);
  struct stat status;
  if (TheOs().Fstat(fd_.get(), &status) < 0) throw SystemError(errno, "look at it", name_);
  if (S_ISDIR(status.st_mode)) throw NoStream(name_, "this is a directory", "name the directory in the recipe");
  if (::isatty(fd_.get()) == 1)
    throw NoStream(name_, "this is a terminal", "pipe a safetensors file into it: cat model.safetensors | braid ...");
  if (S_ISREG(status.st_mode) && !descriptor) kind_ = "file", identity_ = IdentityOf(status);
  if (!IsStream(status.st_mode)) return;
  if (!claim_.Take(fd_.get(), status))   // two readers would get pieces of it each
    throw NoStream(name_, "it is being read already, by another source of this merge or by another program",
                   "a stream can be read once: give each reader one of its own, with tee or mkfifo");
  if (S_ISFIFO(status.st_mode)) TheOs().SetPipeSize(fd_.get(), kPipeBytes);
}

namespace {

std::mutex g_mutex;
std::set<std::pair<uint64_t, uint64_t>> g_claimed;   // device and inode

}  // namespace

bool InputStream::Claim::Take(int fd, const struct stat& status) {
  if (TheOs().Flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) return false;
  device_ = status.st_dev, inode_ = status.st_ino;
  std::lock_guard lock(g_mutex);
  return taken_ = g_claimed.emplace(device_, inode_).second;
}

InputStream::Claim::~Claim() {
  std::lock_guard lock(g_mutex);
  if (taken_) g_claimed.erase({device_, inode_});
}

// A FIFO that nobody has opened for writing yet would read as one that has ended; it polls as one without data.
void InputStream::WaitForData() {
  for (;;) {
    if (cancelled_ || (interrupt_ != nullptr && *interrupt_ != 0))
      throw Error(ErrorCode::kInterrupted, "interrupted; nothing was published");
    const int ready = TheOs().Poll(fd_.get(), kPatience);
    if (ready < 0) throw SystemError(errno, "wait for it", name_);
    if (ready > 0) return;
  }
}

// What comes next, at least one byte of it; 0: the end.
size_t InputStream::ReadRaw(char* to, size_t bytes) {
  if (!start_.empty()) {
    const size_t had = start_.copy(to, bytes);
    start_.erase(0, had);
    return had;
  }
  for (;;) {
    WaitForData();
    const ssize_t got = TheOs().Read(fd_.get(), to, bytes);
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EAGAIN) throw SystemError(errno, "read it", name_);
  }
}

struct InputStream::Device {
  using char_type = char;
  using category = boost::iostreams::source_tag;
  InputStream* stream;
  std::streamsize read(char* to, std::streamsize bytes) {
    const size_t got = stream->ReadRaw(to, static_cast<size_t>(bytes));
    return got == 0 ? -1 : static_cast<std::streamsize>(got);
  }
};

struct InputStream::Chain {
  explicit Chain(InputStream* stream)
      : filter(stream->name_), planes(stream->name_),
        decoded(boost::iostreams::compose(planes, boost::iostreams::compose(filter, Device{stream}))) {}
  uint64_t Bytes() const { return filter.MemoryBytes() + planes.MemoryBytes(); }

  ZstdFilter filter;
  PlanesFilter planes;   // passes on what is none
  boost::iostreams::composite<PlanesFilter, boost::iostreams::composite<ZstdFilter, Device>> decoded;
};

InputStream::~InputStream() = default;

uint64_t InputStream::MemoryBytes() const { return chain_ == nullptr ? decoder_bytes_ : chain_->Bytes(); }

void InputStream::Park() {
  if (!is_file()) return;
  decoder_bytes_ = MemoryBytes();
  chain_.reset(), fd_.Reset(), start_.clear();
  looked_ = false;
}

// To where it was, from the beginning.
void InputStream::Resume() {
  FileIdentity now;
  fd_ = OpenForReading(name_, &now);
  if (now != identity_) throw InputChanged(name_, "the file changed after it was first looked at");
  const uint64_t place = std::exchange(position_, 0);
  std::vector<char> passed(std::min<uint64_t>(place, 256 << 10));
  while (position_ < place && !ended_) ReadContent(passed.data(), std::min<uint64_t>(place - position_, passed.size()));
}

void InputStream::CheckUnchanged() const {
  if (is_file()) braid::CheckUnchanged(name_, identity_);
}

void InputStream::LookAtStart() {
  std::string start;
  char bytes[4];
  while (start.size() < sizeof(bytes)) {
    const size_t got = ReadRaw(bytes, sizeof(bytes) - start.size());
    if (got == 0) break;
    start.append(bytes, got);
  }
  start_ = std::move(start);
  if (ZstdFilter::Recognises(start_)) chain_ = std::make_unique<Chain>(this);
}

size_t InputStream::Read(std::byte* to, size_t bytes) {
  if (!fd_ && !ended_) Resume();
  return ReadContent(reinterpret_cast<char*>(to), bytes);
}

size_t InputStream::ReadContent(char* to, size_t bytes) {
  if (!std::exchange(looked_, true)) LookAtStart();
  size_t done = 0;
  while (done < bytes && !ended_) {
    char* const at = to + done;
    const auto left = static_cast<std::streamsize>(bytes - done);
    const std::streamsize got =
        chain_ != nullptr ? boost::iostreams::read(chain_->decoded, at, left) : Device{this}.read(at, left);
    ended_ = got < 0;
    if (!ended_) done += static_cast<size_t>(got), position_ += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace braid
