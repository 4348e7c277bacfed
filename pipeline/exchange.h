// How ranks take the statistics of one scope together: each counts a part, a run of the output's units, and adds what
// the others have counted. All of it is exact (integers, and sums that are kept per block and added in order at the
// end), so it makes no difference who counted what.
//
// By files (FileExchange): for processes that share nothing but a file system, at once or one after another. A part
// that is there is used; one that is not is counted by whoever needs it, unless a living process holds its claim. By
// messages (GroupExchange): for processes that were started together.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/merger.h"
#include "pipeline/share.h"

namespace braid {

// What is exchanged: of a round of a scope, its statistics, or the claims on its quotas (ops/merger.h); or norms of
// many scopes (scope == kNorms).
struct SharedRound {
  static constexpr uint32_t kNorms = UINT32_MAX;
  uint32_t scope = 0, round = 0;
  bool claims = false;
  UnitRun units;   // that it has elements in
};

// The one that counts.
class Counter {
 public:
  using Put = Accumulator::Put;
  using Get = Accumulator::Get;
  virtual ~Counter() = default;
  virtual bool Count(UnitRun part) = 0;                     // adds to what it has; false: the run has failed
  virtual void Save(UnitRun part, const Put& put) = 0;      // all that it has of a part
  virtual void Load(UnitRun part, const Get& get) = 0;      // adds
  virtual void Clear() = 0;                                 // has nothing any more
  virtual bool failed() const = 0;
};

// For the I/O thread of one run.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // Whether a scope's statistics are taken together.
  virtual bool Shares(const Plan& plan, const Share& share, const PlannedScope& scope) const = 0;
  // Afterwards the counter has everything. False: the run has failed. Throws Error.
  virtual bool Take(const SharedRound& round, Counter* counter) = 0;
};

// `directory`: of the ranks. `parts`: the runs of units by rank; ours is the one at `rank`.
std::unique_ptr<Exchange> NewFileExchange(std::string directory, std::vector<UnitRun> parts, uint32_t rank);

// Processes that were started together. All of them call the same functions in the same order, from one thread at a
// time. What fails ends all of them.
class Group {
 public:
  virtual ~Group() = default;
  virtual uint32_t rank() const = 0;
  virtual uint32_t of() const = 0;
  virtual void Send(uint32_t to, const void* data, size_t bytes) = 0;
  virtual void Receive(uint32_t from, void* data, size_t bytes) = 0;
  virtual void Broadcast(uint32_t from, void* data, size_t bytes) = 0;
  virtual void Wait() = 0;   // until all of them are here
  virtual uint64_t Sum(uint64_t value) = 0;
  // Deals the numbers below `end`, each to whoever asks first; then `end` to every rank, once. Rank 0 gets that when
  // all others have. The next deal begins anew.
  virtual uint64_t Next(uint64_t end) = 0;
  // Any thread: how far this rank is, in bytes. On rank 0 the sum of what the others have told, and its own.
  virtual uint64_t Progress(uint64_t bytes) = 0;
};

// `part`: what this rank counts; those of all ranks cover all units. `group` must outlive it.
std::unique_ptr<Exchange> NewGroupExchange(Group* group, UnitRun part);

}  // namespace braid
