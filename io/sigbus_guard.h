// What keeps a shrinking input from killing the process. Touching a mapped page whose file no longer reaches it
// raises SIGBUS; the guard's handler puts zero pages in its place and marks the region, so that the thread goes on
// and the run can end with an error that names the file. The zeros never get published: whoever uses a guarded
// region asks tripped() before it trusts what it computed.
#pragma once

#include <atomic>
#include <cstddef>

namespace braid {

class GuardedRegion {
 public:
  // Guards [address, address + bytes) while this object lives. The first one installs the handler. Thread-safe.
  GuardedRegion(void* address, size_t bytes);
  ~GuardedRegion();
  GuardedRegion(const GuardedRegion&) = delete;
  GuardedRegion& operator=(const GuardedRegion&) = delete;

  bool tripped() const;

  // Whether any region of the process was ever tripped: cheap enough to ask after every tile.
  static bool AnyTripped();

 private:
  struct Slot;
  friend struct SigbusHandler;
  Slot* slot_;
};

}  // namespace braid
