// A FIFO, and a thread that writes into it what a test wants, in pieces, while the object lives.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace braid::fixture {

class Feeder {
 public:
  // `piece`: bytes of one write. `stays`: the end does not come while the object lives.
  Feeder(std::string path, std::string bytes, size_t piece = 100'000, bool stays = false)
      : path_(std::move(path)), bytes_(std::move(bytes)) {
    std::signal(SIGPIPE, SIG_IGN);
    ::unlink(path_.c_str());
    if (::mkfifo(path_.c_str(), 0600) != 0) throw std::runtime_error("mkfifo failed");
    thread_ = std::thread([this, piece, stays] { Write(piece, stays); });
  }
  Feeder(const Feeder&) = delete;
  ~Feeder() {
    done_ = true;
    const int reader = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK);   // if nobody has read, the thread still waits
    thread_.join();
    ::close(reader);
  }

  size_t written() const { return written_; }

 private:
  void Write(size_t piece, bool stays) {
    const int fd = ::open(path_.c_str(), O_WRONLY);
    ::fcntl(fd, F_SETFL, O_NONBLOCK);
    while (written_ < bytes_.size() && !done_) {
      const ssize_t put = ::write(fd, bytes_.data() + written_, std::min(piece, bytes_.size() - written_));
      if (put < 0 && errno != EAGAIN) break;
      if (put < 0) ::usleep(100);
      else written_ += static_cast<size_t>(put);
    }
    while (stays && !done_) ::usleep(1000);
    ::close(fd);
  }

  const std::string path_, bytes_;
  std::atomic<size_t> written_{0};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace braid::fixture
