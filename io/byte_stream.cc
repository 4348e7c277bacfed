#include "io/byte_stream.h"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/iostreams/categories.hpp>
#include <boost/iostreams/compose.hpp>
#include <boost/iostreams/write.hpp>
#include <cerrno>
#include <deque>

#include "io/os.h"

namespace braid {
namespace {

namespace bio = boost::iostreams;

constexpr const char* kName = "standard output";
constexpr int kLookUp = 100;   // milliseconds after which a writer that waits looks whether it should go on
constexpr uint64_t kWindow = 8 << 20;

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

// --- sinks: handles that are copied -----------------------------------------------------------------------

// A pipe is opened once more for ourselves, so that waiting for its reader can end before the reader goes on: whether a
// descriptor blocks is shared with every process that has it from the same place.
class StandardOutputSink {
 public:
  using char_type = char;
  using category = bio::sink_tag;

  explicit StandardOutputSink(const std::atomic<bool>* cancelled) : cancelled_(cancelled) {
    struct stat status;
    if (TheOs().Fstat(STDOUT_FILENO, &status) < 0) throw SystemError(errno, "look at it", kName);
    is_file_ = S_ISREG(status.st_mode);
    if (S_ISFIFO(status.st_mode))
      own_ = std::make_shared<Fd>(TheOs().Open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK));
  }

  std::streamsize write(const char* data, std::streamsize bytes) {
    for (std::streamsize left = bytes; left > 0;) {
      const ssize_t put = TheOs().Write(fd(), data, static_cast<size_t>(left));
      if (put < 0 && errno == EAGAIN) {
        if (*cancelled_) throw Error(ErrorCode::kInternal, "cancelled");   // not the first error, so nobody sees it
        TheOs().WaitToWrite(fd(), kLookUp);
        continue;
      }
      if (put < 0 && errno == EPIPE) throw ReaderGone();
      if (put <= 0) throw SystemError(put < 0 ? errno : ENOSPC, "write to it", kName);
      data += put, left -= put;
    }
    return bytes;
  }

  // What a network file system finds out late.
  void Finish() {
    if (is_file_ && TheOs().Fsync(fd()) < 0 && errno != EINVAL) throw SystemError(errno, "make it durable", kName);
    own_.reset();
  }

 private:
  int fd() const { return own_ && *own_ ? own_->get() : STDOUT_FILENO; }

  const std::atomic<bool>* cancelled_;
  std::shared_ptr<Fd> own_;
  bool is_file_ = false;
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
    for (; s.end - s.window >= kWindow; s.window += kWindow) {
      Sync(s.window, SYNC_FILE_RANGE_WRITE);
      if (s.window >= 2 * kWindow) Clean(s.window - 2 * kWindow);
    }
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
    uint64_t end = 0, window = 0;   // bytes written; of them, those whose writeback has begun
  };

  // Failures here are not lost: fsync reports them.
  void Sync(uint64_t window, unsigned flags) {
    TheOs().SyncFileRange(state_->fd.get(), static_cast<off_t>(window), kWindow, flags);
  }
  void Clean(uint64_t window) {
    Sync(window, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    TheOs().Fadvise(state_->fd.get(), static_cast<off_t>(window), kWindow, POSIX_FADV_DONTNEED);
  }

  std::shared_ptr<State> state_;
};

template <typename Sink>
class CountedStream : public ByteStream {
 public:
  CountedStream(std::atomic<uint64_t>* count, const Sink& sink) : sink_(sink), counted_(CountingFilter(count), sink) {}

  void Write(const void* data, size_t bytes) override {
    bio::write(counted_, static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }
  void Finish() override { sink_.Finish(); }

 private:
  Sink sink_;
  bio::composite<CountingFilter, Sink> counted_;
};

}  // namespace

std::unique_ptr<ByteStream> StandardOutputStream(std::atomic<uint64_t>* count, const std::atomic<bool>* cancelled) {
  return std::make_unique<CountedStream<StandardOutputSink>>(count, StandardOutputSink(cancelled));
}

std::unique_ptr<ByteStream> AppendingStream(const std::string& path, std::atomic<uint64_t>* count) {
  return std::make_unique<CountedStream<AppendingSink>>(count, AppendingSink(path));
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
