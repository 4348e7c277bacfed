// A shard of any kind as its plain bytes, from the first to the last: what `braid cat` writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>

namespace braid {

// `path`: a plain or compressed shard, or a stream of one (input_stream.h). Calls `write` with one piece after the other.
// The memory of a few frames and of the header. A seek table is checked as a whole before the first byte is written; the
// content of frames, and where a stream ends, when its turn comes. `interrupt` as of InputStream. Throws Error: kBadInput,
// naming the tensor, for what is truncated, damaged, longer than its header says, or no safetensors at all.
void ReadPlainShard(const std::string& path, const std::atomic<int>* interrupt,
                    const std::function<void(const std::byte*, size_t)>& write);

}  // namespace braid
