// How a run is asked to stop: a signal handler sets a number, and the run looks at it between its steps.
#pragma once

#include <atomic>

#include "io/error.h"

namespace braid {

inline void ThrowIfInterrupted(const std::atomic<int>& interrupt) {
  if (interrupt != 0) throw Error(ErrorCode::kInterrupted, "interrupted; nothing was published");
}

}  // namespace braid
