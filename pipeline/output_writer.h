// The writer threads: take merged tiles in any order, write them where they belong, and keep each tensor's checksum,
// for which they put a scope's tiles back into order. There are two, so that the disk has its next write while one of
// them adds up a checksum. Of a plan that several ranks share, they write what their share has, and say which units of
// it are done. An output whose bytes leave in order gets a scope's tiles in order, too.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/checksum.h"
#include "io/huge_pages.h"
#include "pipeline/plan.h"
#include "pipeline/progress.h"
#include "pipeline/shard_output.h"
#include "pipeline/share.h"

namespace braid {

class ScopeRun;

// A token: room for one merged tile.
struct OutputTile {
  std::byte* buffer = nullptr;  // of MemoryPlan::buffer_bytes
  std::byte* data = nullptr;    // the tile's bytes, within it
  ScopeRun* scope = nullptr;
  uint32_t tensor = 0;
  uint64_t order = 0;        // among the scope's tiles
  uint64_t begin = 0;        // within the tensor's bytes
  uint64_t bytes = 0;
  bool draft = false;        // one of those that wait for thresholds
};

class OutputWriter {
 public:
  // As MakeShardOutput. Throws Error.
  OutputWriter(const Plan& plan, const Share& share, const std::vector<std::string>& shard_paths, Progress* progress);
  ~OutputWriter();

  std::vector<OutputTile>& tiles() { return tiles_; }

  // Sets `data`, from the tile's tensor and range, to where in the buffer the bytes can be written from directly.
  void Place(OutputTile* tile) const;

  // `fail` gets an exception of a writer thread; `retire` a scope whose last tile was written; `units_done`, on a
  // writer thread, units of the share when they are durable: from time to time, and the last of them in Finish.
  void Start(std::function<void(std::exception_ptr)> fail, std::function<void(ScopeRun*)> retire,
             std::function<void(WrittenUnits)> units_done);

  // Hands a tile over; `done` is called on a writer thread when it is free again. Any thread.
  void Submit(OutputTile* tile, std::function<void(OutputTile*)> done);

  // From now on tiles are only handed back.
  void Abandon();

  void Stop();  // joins the threads; everything submitted has been handed back

  // Every shard that the share has is complete and durable then. Throws Error.
  void Finish(const std::string& fingerprint, const std::atomic<int>& interrupt);

  const std::vector<XXH128_hash_t>& sums() const { return sums_; }
  const ShardOutput& output() const { return *output_; }

 private:
  struct Submitted {
    OutputTile* tile;
    std::function<void(OutputTile*)> done;
  };
  // A scope's tiles that were written too early for its running checksum.
  struct Sequence {
    uint64_t next = 0;
    std::map<uint64_t, Submitted> early;
  };

  void Loop();
  void HandBackAll();
  void WriteTile(const OutputTile& tile);
  void AddInOrder(Submitted submitted);
  void AddToChecksum(const OutputTile& tile);
  template <typename Visit>
  void ForEachOwn(const PlannedTensor& tensor, const OutputTile& tile, Visit visit) const;
  void CountUnits(uint32_t shard, uint64_t begin, uint64_t end);
  void FinishUnits(std::unique_lock<std::mutex>* lock, bool all);

  const Plan& plan_;
  const Share& share_;
  Progress& progress_;
  std::atomic<bool> abandoned_{false};
  std::unique_ptr<ShardOutput> output_;
  std::vector<XXH128_hash_t> sums_;
  HugePages memory_;
  std::vector<OutputTile> tiles_;
  std::function<void(std::exception_ptr)> fail_;
  std::function<void(ScopeRun*)> retire_;
  std::function<void(WrittenUnits)> units_done_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Submitted> inbox_;
  bool stop_ = false;
  std::vector<std::thread> threads_;

  std::mutex order_mutex_;  // guards what follows
  std::map<ScopeRun*, Sequence> sequences_;
  std::map<uint32_t, Checksum> checksums_;  // of tensors that are not all there yet
  std::vector<uint64_t> unit_missing_;      // bytes per unit of the share
  std::vector<uint32_t> units_finished_;    // and not told yet
  uint64_t bytes_finished_ = 0;             // of them
  std::chrono::steady_clock::time_point told_ = std::chrono::steady_clock::now();
  std::vector<std::pair<uint32_t, XXH128_hash_t>> new_sums_;
};

}  // namespace braid
