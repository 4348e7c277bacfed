// XXH3-128 of bytes that come in pieces, as fast as this processor can. Not thread-safe.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <memory>

namespace braid {

class Checksum {
 public:
  Checksum();
  void Add(const void* data, size_t bytes);
  void Reset();
  XXH128_hash_t Take();  // of everything added since the last Take; begins anew

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace braid
