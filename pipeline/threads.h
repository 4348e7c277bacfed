// Threads that the system may not grant: in a container, or by `ulimit -u`.
#pragma once

#include <cstddef>

namespace braid {

// Before TBB is used, which does not survive it when one of its threads is refused: throws std::system_error unless so
// many more can be started. Takes some 20 microseconds for each.
void CheckThreads(size_t count);

}  // namespace braid
