// What tells the base of a delta from other checkpoints: its headers, and samples of its weights, for a fine-tune has
// the headers of its base. The same files have the same identity wherever they lie, compressed or not.
#pragma once

#include <string>

#include "io/checkpoint.h"

namespace braid {

struct BaseIdentity {
  std::string headers;   // XXH3-128 of all headers, 32 hex digits
  std::string samples;   // the same of bytes from all over the tensors; "" of a stream, which has no second look
};

// Reads a kilobyte at some 64 places. Throws Error.
BaseIdentity IdentityOfBase(const Checkpoint& base);

}  // namespace braid
