// The operating system, made to fail on purpose: counts calls, fails the nth of them, writes less than asked, or runs
// something of the test's own between two calls. In use while the object lives; make it before any thread starts.
#pragma once

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <limits>

#include "io/os.h"

namespace braid::fixture {

class FaultyOs : public Os {
 public:
  enum Call { kPwrite, kDirectPwrite, kFsync, kFallocate, kFtruncate, kRename, kMkdir, kFlock, kOpenDirect, kCalls };
  static constexpr int kNever = std::numeric_limits<int>::max();

  FaultyOs() { SetOsForTesting(this); }
  ~FaultyOs() override { SetOsForTesting(nullptr); }
  FaultyOs(const FaultyOs&) = delete;

  // Calls number `first` to `last`, counted from 1, fail.
  void Fail(Call call, int error_number, int first, int last = kNever) {
    faults_[call] = {error_number, first, last};
  }
  int calls(Call call) const { return counts_[call]; }

  std::function<size_t(size_t)> shorten;    // bytes asked for -> bytes written
  std::function<void(int)> before_pwrite;   // gets the number of the call

  int Open(const char* path, int flags, mode_t mode) override {
    return (flags & O_DIRECT) != 0 && Fails(kOpenDirect) ? Refuse(kOpenDirect) : Os::Open(path, flags, mode);
  }
  // Every write is a kPwrite; those around the page cache are counted as kDirectPwrite as well.
  ssize_t Pwrite(int fd, const void* buffer, size_t bytes, off_t offset) override {
    const bool direct = (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
    const int n = ++counts_[kPwrite];
    const bool fails_direct = direct && Fails(kDirectPwrite);
    if (before_pwrite) before_pwrite(n);
    if (fails_direct) return Refuse(kDirectPwrite);
    if (faults_[kPwrite].Covers(n)) return Refuse(kPwrite);
    return Os::Pwrite(fd, buffer, shorten ? shorten(bytes) : bytes, offset);
  }
  int Fsync(int fd) override { return Fails(kFsync) ? Refuse(kFsync) : Os::Fsync(fd); }
  int Fallocate(int fd, off_t bytes) override {
    return Fails(kFallocate) ? Refuse(kFallocate) : Os::Fallocate(fd, bytes);
  }
  int Ftruncate(int fd, off_t bytes) override {
    return Fails(kFtruncate) ? Refuse(kFtruncate) : Os::Ftruncate(fd, bytes);
  }
  int Rename(const char* from, const char* to, unsigned flags) override {
    return Fails(kRename) ? Refuse(kRename) : Os::Rename(from, to, flags);
  }
  int Mkdir(const char* path, mode_t mode) override {
    return Fails(kMkdir) ? Refuse(kMkdir) : Os::Mkdir(path, mode);
  }
  int Flock(int fd, int operation) override {
    return Fails(kFlock) ? Refuse(kFlock) : Os::Flock(fd, operation);
  }

 private:
  struct Fault {
    int error_number = 0, first = kNever, last = 0;
    bool Covers(int n) const { return n >= first && n <= last; }
  };
  bool Fails(Call call) { return faults_[call].Covers(++counts_[call]); }
  int Refuse(Call call) const {
    errno = faults_[call].error_number;
    return -1;
  }

  std::array<Fault, kCalls> faults_;
  std::array<std::atomic<int>, kCalls> counts_{};
};

}  // namespace braid::fixture
