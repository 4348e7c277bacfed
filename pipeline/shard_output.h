// The end of the pipeline: where merged bytes go. There are two kinds.
//
//   positioned   the shards of a directory, or one file: every byte is written at its place, whenever it comes
//                (io/shard_writer.h)
//   ordered      standard output, or compressed shards: bytes leave in the order of the files, one shard after the
//                other. What comes too early waits in a temporary file
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checksum.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/share.h"

namespace braid {

// In place of a shard's path.
inline constexpr const char* kStandardOutput = "-";

class ShardOutput {
 public:
  virtual ~ShardOutput() = default;

  // Whether Write may be called by any thread, several at once, in any order, at no cost. Otherwise one thread at a
  // time, and the nearer to the order of the file the better.
  virtual bool any_order() const = 0;

  // Every byte behind a shard's header is written by exactly one call; `offset` is from the start of the file. Throws
  // Error.
  virtual void Write(uint32_t shard, uint64_t offset, const void* data, size_t bytes) = 0;

  // Of a share, a shard whose bytes have all been written: whether they have left, too. Under the rules of Write.
  // Throws Error.
  virtual bool HasLeft(uint32_t shard) = 0;

  // Of a share: what is written of a shard so far is durable; of an ordered output, a shard that has left, once. Any
  // thread. Throws Error.
  virtual void Sync(uint32_t shard) = 0;

  // Once all are written: every shard is complete, and durable where it is a file. Throws Error.
  virtual void Finish(const std::string& fingerprint, const std::vector<XXH128_hash_t>& sums,
                      const std::atomic<int>& interrupt) = 0;

  virtual uint64_t bytes_written() const = 0;   // as they are stored
  virtual uint64_t bytes_spilled() const { return 0; }
  // Of all that left through standard output, once finished.
  virtual std::optional<XXH128_hash_t> stream_sum() const { return std::nullopt; }
};

// Creates the shard files that the share has, and reserves their space; of an ordered one, whose share is of whole
// shards, only the first. `paths` are those of the plan's shards; those of an ordered share appear one by one, complete
// and durable. `cancelled`: once it is true, nobody waits for a reader any more. All of them must outlive it. Throws
// Error.
std::unique_ptr<ShardOutput> MakeShardOutput(const Plan& plan, const Share& share,
                                             const std::vector<std::string>& paths, Progress* progress,
                                             const std::atomic<bool>* cancelled);
std::unique_ptr<ShardOutput> MakeOrderedOutput(const Plan& plan, const Share& share,
                                               const std::vector<std::string>& paths, Progress* progress,
                                               const std::atomic<bool>* cancelled);

// Of a plan whose bytes leave in order: how many of them come before their turn, if all goes as planned.
uint64_t BytesThatComeEarly(const Plan& plan);

// What an ordered output takes of the budget, with so many threads that compress.
uint64_t OrderingBytes(const Plan& plan, uint32_t encoders);

// The directory of the temporary file.
std::string SpillDirectory(const std::vector<std::string>& paths);

}  // namespace braid
