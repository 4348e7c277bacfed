#include "io/byte_stream.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/compose.hpp>
#include <boost/iostreams/write.hpp>
#include <cerrno>

#include "io/os.h"
#include "io/page_writer.h"

namespace braid {
namespace {

namespace bio = boost::iostreams;

constexpr const char* kName = "standard output";
constexpr int kLookUp = 100;   // milliseconds after which a writer that waits looks whether it should go on
constexpr uint64_t kWindow = 8 << 20;
constexpr int kPipeBytes = 1 << 20;   // what an unprivileged process may ask for

// --- filters ----------------------------------------------------------------------------------------------

class CountingFilter {
 public:
  using char_type = char;
  struct category : bio::output_filter_tag, bio::multichar_tag {};

  explicit CountingFilter(std::atomic<uint64_t>* count) : count_(count) {}

  template <typename Sink>
  std::streamsize write(Sink& sink, const char* data, std::streamsize bytes) {
    const std::streamsize put = bio::write(sink, data, bytes);
    *count_ += static_cast<uint64_t>(put);
    return put;
  }

 private:
  std::atomic<uint64_t>* count_;
};

class HashingFilter {
 public:
  using char_type = char;
  struct category : bio::output_filter_tag, bio::multichar_tag {};

  explicit HashingFilter(Checksum* sum) : sum_(sum) {}

  template <typename Sink>
  std::streamsize write(Sink& sink, const char* data, std::streamsize bytes) {
    const std::streamsize put = bio::write(sink, data, bytes);
    sum_->Add(data, static_cast<size_t>(put));
    return put;
  }

 private:
  Checksum* sum_;
};

// --- files that grow --------------------------------------------------------------------------------------

// Has dirty pages written out, and dropped once they are, in windows, so that they never pile up. Failures here are not
// lost: fsync reports them.
class Writeback {
 public:
  explicit Writeback(uint64_t begin = 0) : first_(begin / kWindow), window_(first_) {}

  // The file has grown to `end`.
  void Grew(int fd, uint64_t end) {
    for (; end / kWindow > window_; ++window_) {
      Sync(fd, window_, SYNC_FILE_RANGE_WRITE);
      if (window_ < first_ + 2) continue;
      Sync(fd, window_ - 2, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
      TheOs().Fadvise(fd, static_cast<off_t>((window_ - 2) * kWindow), kWindow, POSIX_FADV_DONTNEED);
    }
  }

 private:
  static void Sync(int fd, uint64_t window, unsigned flags) {
    TheOs().SyncFileRange(fd, static_cast<off_t>(window * kWindow), kWindow, flags);
  }

  uint64_t first_, window_;   // the first one; behind the last one whose writeback has begun
};

// --- sinks: handles that are copied -----------------------------------------------------------------------

// Waiting for a reader must be able to end before the reader goes on. Whether a descriptor blocks is shared with every
// process that has it from the same place, so a pipe is opened once more for ourselves, and a socket is told with each
// call.
class StandardOutputSink {
 public:
  using char_type = char;
  using category = bio::sink_tag;

  explicit StandardOutputSink(const std::atomic<bool>* cancelled) : state_(std::make_shared<State>()) {
    State& s = *state_;
    s.cancelled = cancelled;
    struct stat status;
    if (TheOs().Fstat(STDOUT_FILENO, &status) < 0) throw SystemError(errno, "look at it", kName);
    s.is_socket = S_ISSOCK(status.st_mode);
    if (S_ISFIFO(status.st_mode)) {
      s.own = Fd(TheOs().Open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK));
      TheOs().SetPipeSize(STDOUT_FILENO, kPipeBytes);
    }
    s.is_file = S_ISREG(status.st_mode);
    // Where others append, too, only the system knows where that is.
    if (!s.is_file || (TheOs().Flags(STDOUT_FILENO) & O_APPEND) != 0) return;
    const off_t place = TheOs().Lseek(STDOUT_FILENO, 0, SEEK_CUR);
    if (place < 0) throw SystemError(errno, "look at it", kName);
    s.end = static_cast<uint64_t>(place);
    s.writeback = Writeback(s.end);
    s.pages = std::make_unique<PageWriter>(STDOUT_FILENO, kName);
  }

  std::streamsize write(const char* data, std::streamsize bytes) {
    State& s = *state_;
    if (s.pages) {
      s.pages->Write(s.end, data, static_cast<size_t>(bytes));
      s.end += static_cast<uint64_t>(bytes);
      s.writeback.Grew(STDOUT_FILENO, s.end);
      return bytes;
    }
    for (std::streamsize left = bytes; left > 0;) {
      const ssize_t put = Put(data, static_cast<size_t>(left));
      if (put < 0 && errno == EAGAIN) {
        if (*s.cancelled) throw Error(ErrorCode::kInternal, "cancelled");   // not the first error, so nobody sees it
        TheOs().WaitToWrite(fd(), kLookUp);
        continue;
      }
      if (put < 0 && (errno == EPIPE || (s.is_socket && errno == ECONNRESET))) throw ReaderGone();
      if (put <= 0) throw SystemError(put < 0 ? errno : ENOSPC, "write to it", kName);
      data += put, left -= put;
    }
    return bytes;
  }

  // Whoever writes to a file next goes on behind us. What a network file system finds out late is found out here.
  void Finish() {
    State& s = *state_;
    if (s.pages && TheOs().Lseek(STDOUT_FILENO, static_cast<off_t>(s.end), SEEK_SET) < 0)
      throw SystemError(errno, "go to its end", kName);
    if (s.is_file && TheOs().Fsync(fd()) < 0 && errno != EINVAL) throw SystemError(errno, "make it durable", kName);
    s.own.Reset();
  }

 private:
  struct State {
    const std::atomic<bool>* cancelled = nullptr;
    Fd own;
    bool is_socket = false, is_file = false;
    std::unique_ptr<PageWriter> pages;   // of a file,
    uint64_t end = 0;                    // whose next byte goes here
    Writeback writeback;
  };

  int fd() const { return state_->own ? state_->own.get() : STDOUT_FILENO; }
  ssize_t Put(const char* data, size_t bytes) {
    return state_->is_socket ? TheOs().SendNow(fd(), data, bytes) : TheOs().Write(fd(), data, bytes);
  }

  std::shared_ptr<State> state_;
};

class AppendingSink {
 public:
  using char_type = char;
  using category = bio::sink_tag;

  explicit AppendingSink(const std::string& path) : state_(std::make_shared<State>()) {
    state_->path = path;
    state_->fd = Fd(TheOs().Open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0666));
    if (!state_->fd) throw SystemError(errno, "create it", path);
  }

  std::streamsize write(const char* data, std::streamsize bytes) {
    State& s = *state_;
    WriteExactly(s.fd.get(), data, static_cast<size_t>(bytes), s.end, s.path);
    s.end += static_cast<uint64_t>(bytes);
    s.writeback.Grew(s.fd.get(), s.end);
    return bytes;
  }

  void Finish() {
    if (TheOs().Fsync(state_->fd.get()) < 0) throw SystemError(errno, "make it durable", state_->path);
    TheOs().Fadvise(state_->fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    state_->fd.Reset();
  }

 private:
  struct State {
    std::string path;
    Fd fd;
    uint64_t end = 0;   // bytes written
    Writeback writeback;
  };

  std::shared_ptr<State> state_;
};

// Filters in front of a sink, the outermost first.
template <typename Sink, typename Chain>
class FilteredStream : public ByteStream {
 public:
  FilteredStream(const Sink& sink, const Chain& chain) : sink_(sink), chain_(chain) {}

  void Write(const void* data, size_t bytes) override {
    bio::write(chain_, static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }
  void Finish() override { sink_.Finish(); }

 private:
  Sink sink_;
  Chain chain_;
};

template <typename Sink, typename Chain>
std::unique_ptr<ByteStream> Stream(const Sink& sink, const Chain& chain) {
  return std::make_unique<FilteredStream<Sink, Chain>>(sink, chain);
}

}  // namespace

std::unique_ptr<ByteStream> StandardOutputStream(std::atomic<uint64_t>* count, Checksum* sum,
                                                 const std::atomic<bool>* cancelled) {
  const StandardOutputSink sink(cancelled);
  return Stream(sink, bio::compose(HashingFilter(sum), bio::compose(CountingFilter(count), sink)));
}

std::unique_ptr<ByteStream> AppendingStream(const std::string& path, std::atomic<uint64_t>* count) {
  const AppendingSink sink(path);
  return Stream(sink, bio::compose(CountingFilter(count), sink));
}

void CheckStandardOutput(const std::vector<std::string>& inputs) {
  const auto refused = [](std::string why, std::string hint) {
    return Error(ErrorCode::kUsage, std::move(why)).Path(kName).Hint(std::move(hint));
  };
  if (::isatty(STDOUT_FILENO) != 0)
    throw refused("it is a terminal, and a checkpoint is no text", "pipe it to a program, or name a directory as OUT");
  struct stat out, in;
  if (TheOs().Fstat(STDOUT_FILENO, &out) < 0) throw SystemError(errno, "look at it", kName);
  for (const std::string& input : inputs)
    if (TheOs().Stat(input.c_str(), &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
      throw refused(fmt::format("it is the input {}", Printable(input)), "write to another file");
}

}  // namespace braid
