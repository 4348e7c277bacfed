// A shard of any kind as its plain bytes, from the first to the last: what `braid cat` writes.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <string>

namespace braid {

// `path`: a plain or compressed shard, or a stream of one (input_stream.h). Calls `write` with one piece after the
// other, on the calling thread. A compressed shard with a seek table is decoded by so many threads, within
// FrameDecompressor::kMostMemory; the table is checked as a whole before the first byte is written. Anything else is
// read from its beginning by the calling thread, in the memory of a few frames and of the header; `interrupt` as of
// InputStream. Throws Error: kBadInput, naming the tensor, for what is truncated, damaged, longer than its header says,
// or no safetensors at all.
void ReadPlainShard(const std::string& path, size_t threads, const std::atomic<int>* interrupt,
                    const std::function<void(const std::byte*, size_t)>& write);

}  // namespace braid
