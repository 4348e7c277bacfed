// What keeps a shrinking input from killing the process. Touching a mapped page whose file no longer reaches it, or
// whose disk fails, raises SIGBUS; the guard's handler puts zero pages in its place and remembers the file, so that
// the thread goes on and the run can end with an error that names it. The zeros never get published: whoever uses
// guarded memory asks TrippedPath() before trusting what it computed.
#pragma once

#include <cstddef>
#include <string>

namespace braid {

class GuardedRegion {
 public:
  GuardedRegion() = default;  // guards nothing
  // Guards [address, address + bytes) while this object lives. The first one installs the handler. `path` must
  // outlive the process's last look at TrippedPath(). Thread-safe; constant time.
  GuardedRegion(const void* address, size_t bytes, const std::string* path);
  ~GuardedRegion();
  GuardedRegion(GuardedRegion&& other) noexcept;
  GuardedRegion& operator=(GuardedRegion&& other) noexcept;

  // The file behind the first guarded access that failed, or nullptr. Cheap enough to ask after every tile.
  static const std::string* TrippedPath();

 private:
  struct Slot;
  friend struct SigbusHandler;
  Slot* slot_ = nullptr;
};

}  // namespace braid
