// The memory budget: one number of bytes, taken from before a buffer is filled or a range is mapped, and given back
// when it is free or unmapped. Taking blocks until enough has come back.
//
// Only the I/O thread takes; any thread gives. What is taken never exceeds the total, so it bounds memory whatever
// the threads do. Cancel wakes everyone up for good.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "io/error.h"

namespace braid {

class Budget {
 public:
  explicit Budget(uint64_t total) : total_(total), free_(total) {}

  // False when cancelled. More than the total is Error(kInternal): waiting for it would never end.
  bool Take(uint64_t bytes);
  void Give(uint64_t bytes);
  uint64_t Free() const;  // at this moment
  void Cancel();

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  const uint64_t total_;
  uint64_t free_;
  bool cancelled_ = false;
};

// Memory that new work can use: the smaller of MemAvailable and what the control group (v1 or v2) leaves.
uint64_t AvailableMemory();

// A quarter of the available memory, at least 256 MiB, at most 4 GiB.
uint64_t DefaultMemory();

// Cores that this process may use.
int DefaultThreads();

// Peak resident memory of this process so far (VmHWM), and the present one (VmRSS).
struct ResidentMemory {
  uint64_t peak = 0, now = 0;
};
ResidentMemory ReadResidentMemory();

// "256MiB", "1.5GB", "4096" (bytes): KB, MB, GB, TB are decimal, KiB, MiB, GiB, TiB binary; a bare K, M, G, B as
// mergekit writes them is decimal. Throws Error(kUsage) naming `option`.
uint64_t ParseSize(const std::string& text, const std::string& option);

// The Error(kMemory) of a budget that is smaller than the least that works.
Error DoesNotFit(uint64_t budget, uint64_t least);

// Gives the memory that was freed so far back to the system, which the library keeps for later otherwise.
void ReturnFreedMemory();

// "1.07 GB", for people.
std::string SizeText(uint64_t bytes);

}  // namespace braid
