// A shard of any kind as its plain bytes, from the first to the last: what `braid cat` writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>

namespace braid {

// `path`: a plain or compressed shard, or a stream of one (input_stream.h). Calls `write` with one piece after the other.
// The memory of a few frames. A file with a seek table is checked as a whole before its first byte is written: table,
// header and layout; the content of a frame, as of a stream, when its turn comes. `interrupt` as of InputStream. Throws
// Error: kBadInput naming the tensor, where that is known, for what is truncated, damaged or longer than it says.
void ReadPlainShard(const std::string& path, const std::atomic<int>* interrupt,
                    const std::function<void(const std::byte*, size_t)>& write);

}  // namespace braid
