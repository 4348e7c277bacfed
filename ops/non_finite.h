// Counts NaN and infinite elements as they are encoded, for what is copied and never decoded. Pure; thread-safe.
#pragma once

#include <cstddef>

#include "ops/dtype.h"
#include "ops/kernels.h"

namespace braid {

// Adds to *counts. `type` is a lane type; `bytes` may be unaligned.
void CountNonFinite(DType type, const void* bytes, size_t n, NonFinite* counts);

}  // namespace braid
