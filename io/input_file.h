// An opened input file that must stay the file it was planned with. How its bytes are read is up to MappedFile and
// DirectFile. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "io/error.h"
#include "io/os.h"

namespace braid {

class InputFile {
 public:
  enum class Caching { kUse, kBypass };  // the page cache; bypassed with O_DIRECT, if the file system lets us

  // Opens the file, which must still be the one that `expected` describes, otherwise Error(kInputChanged).
  InputFile(const std::string& path, const FileIdentity& expected, Caching caching = Caching::kUse);

  uint64_t size() const { return identity_.size; }
  const std::string& path() const { return path_; }

  // Takes the range out of the page cache. Works in whole large folios only: use multiples of kEvictWindow.
  void Evict(uint64_t offset, uint64_t bytes) const;

  // Throws Error(kInputChanged) when it is no longer the file that was opened.
  void CheckUnchanged() const;

  static constexpr uint64_t kEvictWindow = 8 << 20;

 protected:
  int fd() const { return fd_.get(); }
  bool bypasses_cache() const { return bypasses_cache_; }  // when it was opened

 private:
  const std::string& path_;   // interned: SIGBUS may be looked into after this object is gone
  FileIdentity identity_;
  bool bypasses_cache_ = false;
  Fd fd_;
};

// The same for a file that is not open (any more). Throws Error.
void CheckUnchanged(const std::string& path, const FileIdentity& expected);

// Error(kInputChanged) for this file, with a hint.
Error InputChanged(const std::string& path, const char* what);

}  // namespace braid
