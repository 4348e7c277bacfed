// Files that ranks leave each other in a directory of a shared file system. They appear complete, by a rename; several
// processes may leave the same one at the same time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_stream.h"
#include "io/error.h"
#include "io/os.h"
#include "pipeline/share.h"

namespace braid {

// Not thread-safe; several at once for different paths are fine. Throws Error.
class RankFile {
 public:
  explicit RankFile(const std::string& path);
  ~RankFile();   // without Commit nothing is left
  RankFile(const RankFile&) = delete;
  void Append(const void* data, size_t bytes);
  // Without `durable`, a crash of the machine may leave a file that is not what was appended.
  void Commit(bool durable = true);

 private:
  const std::string path_, temporary_;
  Fd fd_;
  uint64_t bytes_ = 0;
};

// The same for a file of any size: under `path` once it is finished, and durable then. What processes that died have
// left of it is removed. Adds to `count` what it has written. Throws Error.
std::unique_ptr<ByteStream> NewRankStream(const std::string& path, std::atomic<uint64_t>* count);

// The directory is gone: its job is published.
class RankFilesGone : public Error {
 public:
  explicit RankFilesGone(const std::string& directory);
};

// The two numbers of "12-20", the end of a file's name.
std::optional<UnitRun> ParseRun(std::string_view text);

// Names of all files there, as they are now. A network file system may show a listing that is a minute old, unless its
// own machine has changed the directory: so this does. Throws Error(kIo); RankFilesGone where there is no directory.
std::vector<std::string> ListRankFiles(const std::string& directory);

}  // namespace braid
