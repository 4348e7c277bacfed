// braid-limit: how fast this machine could merge if merging cost nothing.
//
//     braid-limit --read mapped|direct --write dontcache|window|direct --output FILE --bytes N INPUT...
//
// Reads every byte of the inputs and adds it up, while one more thread writes N bytes with the durability of
// a merge: blocks reserved first, fdatasync, rename, fsync of the directory. Prints one JSON object with the
// seconds that took. tools/bench runs it with each method and compares `braid merge` with the fastest.
//
// --read-bytes asks for more than every byte once: the inputs are then read again from the start, as a merge
// does whose rounds find nothing in the page cache.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/error.h"
#include "io/huge_pages.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint64_t kMappedBlock = 8u << 20;  // large enough for posix_fadvise(DONTNEED) to give pages back
constexpr uint64_t kDirectBlock = 4u << 20;  // as large as a request to the disk gets
constexpr uint64_t kWriteBlock = 8u << 20;
constexpr size_t kPage = 4096;
constexpr int kDontCache = 0x80;  // RWF_DONTCACHE, which the C library's headers do not have yet

struct Options {
  std::string read_method = "mapped", write_method = "dontcache", output;
  int readers = 1;
  bool keep_cached = false;
  uint64_t bytes = 0;
  uint64_t read_bytes = 0;  // 0: every byte of the inputs once
  std::vector<std::string> inputs;
};

uint64_t Sum(const char* bytes, uint64_t n) {
  uint64_t sum = 0, word;
  for (uint64_t i = 0; i + sizeof(word) <= n; i += sizeof(word)) {
    std::memcpy(&word, bytes + i, sizeof(word));
    sum += word;
  }
  for (uint64_t i = n / sizeof(word) * sizeof(word); i < n; ++i) sum += static_cast<unsigned char>(bytes[i]);
  return sum;
}

// --- reading ----------------------------------------------------------------------------------------------

// One input, by either method.
class Input {
 public:
  Input(const std::string& path, bool direct) : path_(path) {
    FileIdentity identity;
    fd_ = OpenForReading(path, &identity);
    size_ = identity.size;
    if (direct) {
      fd_ = Fd(TheOs().Open(path.c_str(), O_RDONLY | O_DIRECT));
      if (!fd_) throw SystemError(errno, "open it for direct reading", path);
    } else if (size_ > 0) {
      void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_.get(), 0);
      if (map == MAP_FAILED) throw SystemError(errno, "map it", path);
      map_ = static_cast<char*>(map);
    }
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() {
    if (map_ != nullptr) ::munmap(map_, size_);
  }

  uint64_t size() const { return size_; }

  // Pages that stay in the page cache may stay mapped too: two readers of 1.28 GB took 0.040 s with unmapping
  // and 0.032 s without.
  uint64_t SumMapped(uint64_t offset, uint64_t bytes, bool keep_cached) const {
    const uint64_t sum = Sum(map_ + offset, bytes);
    if (keep_cached) return sum;
    TheOs().Madvise(map_ + offset, bytes, MADV_DONTNEED);
    TheOs().Fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
    return sum;
  }

  // `buffer` holds a whole block: direct reads ask for whole pages, also at the end of the file.
  uint64_t SumDirect(uint64_t offset, uint64_t bytes, char* buffer) const {
    uint64_t got = 0;
    while (got < bytes) {
      const auto at = static_cast<off_t>(offset + got);
      const ssize_t n = TheOs().Pread(fd_.get(), buffer + got, kDirectBlock - got, at);
      if (n <= 0) throw SystemError(n < 0 ? errno : EIO, "read it", path_);
      got += static_cast<uint64_t>(n);
    }
    return Sum(buffer, bytes);
  }

 private:
  std::string path_;
  Fd fd_;
  uint64_t size_ = 0;
  char* map_ = nullptr;
};

struct Block {
  const Input* input;
  uint64_t offset, bytes;
};

// The blocks of the inputs, in order and from the start again until enough was read; readers take the next one
// that is left.
class Reader {
 public:
  explicit Reader(const Options& options)
      : options_(options),
        direct_(options.read_method == "direct"),
        block_bytes_(direct_ ? kDirectBlock : kMappedBlock) {
    uint64_t all = 0;
    for (const std::string& path : options.inputs) {
      inputs_.push_back(std::make_unique<Input>(path, direct_));
      all += inputs_.back()->size();
    }
    const uint64_t wanted = options.read_bytes > 0 && all > 0 ? options.read_bytes : all;
    while (total_ < wanted)
      for (const auto& input : inputs_) AddBlocks(*input, wanted);
  }

  void ReadUntilDone() {
    HugePages buffer(kDirectBlock);
    char* const bytes = reinterpret_cast<char*>(buffer.data());
    uint64_t sum = 0;
    for (size_t i = next_++; i < blocks_.size(); i = next_++) {
      const Block& block = blocks_[i];
      sum += direct_ ? block.input->SumDirect(block.offset, block.bytes, bytes)
                     : block.input->SumMapped(block.offset, block.bytes, options_.keep_cached);
    }
    sum_ += sum;
  }

  uint64_t total() const { return total_; }
  uint64_t sum() const { return sum_; }

 private:
  void AddBlocks(const Input& input, uint64_t wanted) {
    for (uint64_t at = 0; at < input.size() && total_ < wanted; at += block_bytes_) {
      const uint64_t bytes = std::min({block_bytes_, input.size() - at, wanted - total_});
      blocks_.push_back({&input, at, bytes});
      total_ += bytes;
    }
  }

  const Options& options_;
  bool direct_;
  uint64_t block_bytes_;
  std::vector<std::unique_ptr<Input>> inputs_;
  std::vector<Block> blocks_;
  uint64_t total_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<uint64_t> sum_{0};
};

// --- writing ----------------------------------------------------------------------------------------------

class Writer {
 public:
  explicit Writer(const Options& options) : options_(options), partial_(options.output + ".partial") {}

  void Write() {
    const bool direct = options_.write_method == "direct";
    fd_ = Fd(TheOs().Open(partial_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | (direct ? O_DIRECT : 0), 0666));
    if (!fd_) throw SystemError(errno, "create it", partial_);
    if (options_.bytes > 0 && TheOs().Fallocate(fd_.get(), static_cast<off_t>(options_.bytes)) < 0)
      throw SystemError(errno, "reserve its blocks", partial_);
    HugePages buffer(kWriteBlock);
    char* const bytes = reinterpret_cast<char*>(buffer.data());
    for (uint64_t i = 0; i < kWriteBlock; ++i) bytes[i] = static_cast<char>(i * 167 + (i >> 9));
    for (uint64_t at = 0; at < options_.bytes; at += kWriteBlock)
      WriteBlock(bytes, at, std::min(kWriteBlock, options_.bytes - at));
    // Direct writes are of whole pages; this cuts the last one.
    if (direct && TheOs().Ftruncate(fd_.get(), static_cast<off_t>(options_.bytes)) < 0)
      throw SystemError(errno, "cut it", partial_);
    Publish();
  }

 private:
  void WriteBlock(const char* buffer, uint64_t at, uint64_t bytes) {
    if (options_.write_method == "dontcache") return WriteDontCache(buffer, at, bytes);
    if (options_.write_method == "direct")
      return WriteExactly(fd_.get(), buffer, (bytes + kPage - 1) / kPage * kPage, at, partial_);
    WriteExactly(fd_.get(), buffer, bytes, at, partial_);
    TheOs().SyncFileRange(fd_.get(), static_cast<off_t>(at), kWriteBlock, SYNC_FILE_RANGE_WRITE);
    if (at < kWriteBlock) return;
    const auto before = static_cast<off_t>(at - kWriteBlock);
    TheOs().SyncFileRange(fd_.get(), before, kWriteBlock,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    TheOs().Fadvise(fd_.get(), before, kWriteBlock, POSIX_FADV_DONTNEED);
  }

  void WriteDontCache(const char* buffer, uint64_t at, uint64_t bytes) {
    while (bytes > 0) {
      const iovec vector{const_cast<char*>(buffer), bytes};
      const ssize_t n = ::pwritev2(fd_.get(), &vector, 1, static_cast<off_t>(at), kDontCache);
      if (n <= 0) throw SystemError(n < 0 ? errno : ENOSPC, "write it around the page cache", partial_);
      buffer += n, at += static_cast<uint64_t>(n), bytes -= static_cast<uint64_t>(n);
    }
  }

  void Publish() {
    if (TheOs().Fdatasync(fd_.get()) < 0) throw SystemError(errno, "flush it", partial_);
    if (TheOs().Rename(partial_.c_str(), options_.output.c_str(), 0) < 0)
      throw SystemError(errno, "name it", options_.output);
    const size_t slash = options_.output.rfind('/');
    const std::string directory = slash == std::string::npos ? "." : options_.output.substr(0, slash + 1);
    Fd fd(TheOs().Open(directory.c_str(), O_RDONLY | O_DIRECTORY));
    if (!fd || TheOs().Fsync(fd.get()) < 0) throw SystemError(errno, "flush it", directory);
  }

  const Options& options_;
  std::string partial_;
  Fd fd_;
};

// --- the measurement --------------------------------------------------------------------------------------

void Measure(const Options& options) {
  std::mutex mutex;
  std::exception_ptr failure;
  auto guarded = [&](auto work) {
    return [&mutex, &failure, work] {
      try {
        work();
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    };
  };

  const auto start = std::chrono::steady_clock::now();
  Reader reader(options);
  Writer writer(options);
  {
    std::vector<std::jthread> threads;
    threads.emplace_back(guarded([&] { writer.Write(); }));
    for (int i = 0; i < options.readers; ++i) threads.emplace_back(guarded([&] { reader.ReadUntilDone(); }));
  }
  if (failure) std::rethrow_exception(failure);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{{\"seconds\": {:.6f}, \"bytes_read\": {}, \"bytes_written\": {}, \"method\": \"{} x{} + {}\", "
             "\"sum\": {}}}\n", seconds, reader.total(), options.bytes, options.read_method, options.readers,
             options.write_method, reader.sum());
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  braid::Options options;
  CLI::App app("Measures how fast inputs can be read while an output is written");
  app.add_option("--read", options.read_method, "How to read")->check(CLI::IsMember({"mapped", "direct"}));
  app.add_option("--write", options.write_method, "How to write")
      ->check(CLI::IsMember({"dontcache", "window", "direct"}));
  app.add_option("--readers", options.readers, "Threads that read")->check(CLI::Range(1, 64));
  app.add_option("--read-bytes", options.read_bytes, "How much to read; from the start again when the inputs end");
  app.add_flag("--keep-cached", options.keep_cached, "Leave the inputs in the page cache");
  app.add_option("--output", options.output, "File to write")->required();
  app.add_option("--bytes", options.bytes, "How much to write")->required();
  app.add_option("INPUT", options.inputs, "Files to read")->required();
  CLI11_PARSE(app, argc, argv);
  try {
    braid::Measure(options);
  } catch (const braid::Error& error) {
    fmt::print(stderr, "braid-limit: {}\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
