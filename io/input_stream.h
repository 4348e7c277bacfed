// An input that comes once and in order: standard input (`-`), a FIFO, or a descriptor that the program was started
// with (`/dev/fd/N`). Opened only where the user names it: a FIFO inside of a model is no regular file, and refused.
// When it begins as a zstd stream does, it is one, and what is read is what it holds. So a zstd file without a seek
// table is read, too; unlike the others it can be put aside and opened again.
//
// Reading waits for whoever writes, as long as it takes; Cancel, or the interrupt that was given, ends the waiting
// within 50 ms. A stream that ends too early or goes on too long is for the reader to judge, who knows what should
// come. For one thread at a time, except for Cancel.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "io/os.h"

namespace braid {

class InputStream {
 public:
  // Whether a path is that of a stream. Throws Error when the system does not say.
  static bool IsNamedBy(const std::string& path);

  // Opens it without waiting for anybody to write. `interrupt` may be null, and must outlive the stream. Throws Error:
  // kUsage for a terminal or a stream that is being read already.
  explicit InputStream(const std::string& path, const std::atomic<int>* interrupt = nullptr);
  InputStream(const InputStream&) = delete;
  ~InputStream();

  // For messages: "standard input", or the path.
  const std::string& name() const { return name_; }
  std::string_view kind() const { return kind_; }   // "standard input", "FIFO", "descriptor", "file"
  bool is_file() const { return kind_ == "file"; }

  // Bytes read so far; of a zstd stream, of its content.
  uint64_t position() const { return position_; }

  // Of the decoder of a zstd stream, once something has been read.
  uint64_t MemoryBytes() const;

  // Reads so many bytes, fewer only where the stream ends. Throws Error: kIo; kInterrupted when cancelled.
  size_t Read(std::byte* to, size_t bytes);

  // Of a file: gives descriptor and decoder back until the next Read. Others stay as they are.
  void Park();

  // Throws Error(kInputChanged) for a file that is not what it was.
  void CheckUnchanged() const;

  // Ends the waiting for good. Any thread.
  void Cancel() { cancelled_ = true; }

 private:
  struct Device;
  struct Chain;

  void WaitForData();
  size_t ReadRaw(char* to, size_t bytes);
  void LookAtStart();
  void Resume();
  size_t ReadContent(char* to, size_t bytes);

  // That nobody else reads it: neither another stream of this process nor, as far as it asks, another one.
  class Claim {
   public:
    Claim() = default;
    ~Claim();
    bool Take(int fd, const struct stat& status);   // false: somebody does

   private:
    uint64_t device_ = 0, inode_ = 0;
    bool taken_ = false;
  };

  std::string name_, kind_;
  Fd fd_;
  Claim claim_;
  const std::atomic<int>* interrupt_;
  std::atomic<bool> cancelled_{false};
  FileIdentity identity_;         // of a file
  uint64_t position_ = 0, decoder_bytes_ = 0;
  std::string start_;             // bytes that were looked at, and are still to be read
  bool looked_ = false, ended_ = false;
  std::unique_ptr<Chain> chain_;  // of a zstd stream
};

}  // namespace braid
