// Compression, measured beside the kernels: frames of 2 MiB of weights and of a trimmed task vector, compressed and
// decoded by one core, in both modes of Braid and as zstd -1 and -3 would.
#pragma once

namespace braid::bench {

void RegisterFrames();

}  // namespace braid::bench
