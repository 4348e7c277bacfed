#include "io/sigbus_guard.h"

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <mutex>

namespace braid {

// Slots are never freed, only reused, so that the handler can walk the list without a lock.
struct GuardedRegion::Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  // begin 0: free
  std::atomic<bool> tripped{false};
  Slot* next = nullptr;
};

struct SigbusHandler {
  static inline std::atomic<GuardedRegion::Slot*> slots{nullptr};
  static inline std::atomic<bool> any_tripped{false};
  static inline std::mutex mutex;  // registration only

  static void Handle(int, siginfo_t* info, void*) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (auto* slot = slots.load(std::memory_order_acquire); slot != nullptr; slot = slot->next) {
      const uintptr_t begin = slot->begin.load(), end = slot->end.load();
      if (begin == 0 || address < begin || address >= end) continue;
      const uintptr_t page = address & ~static_cast<uintptr_t>(getpagesize() - 1);
      // To the end of the region, so that one cut costs one signal.
      void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                         MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (zeros == MAP_FAILED) break;
      slot->tripped.store(true);
      any_tripped.store(true);
      return;
    }
    signal(SIGBUS, SIG_DFL);  // not ours: the access repeats and ends the process as it would have
  }

  static void Install() {
    struct sigaction action = {};
    action.sa_sigaction = Handle;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, nullptr);
  }
};

GuardedRegion::GuardedRegion(void* address, size_t bytes) {
  std::lock_guard lock(SigbusHandler::mutex);
  if (SigbusHandler::slots.load() == nullptr) SigbusHandler::Install();
  for (slot_ = SigbusHandler::slots.load(); slot_ != nullptr && slot_->begin.load() != 0;) slot_ = slot_->next;
  if (slot_ == nullptr) {
    slot_ = new Slot;
    slot_->next = SigbusHandler::slots.load();
    SigbusHandler::slots.store(slot_, std::memory_order_release);
  }
  const auto page = static_cast<uintptr_t>(getpagesize());
  const auto begin = reinterpret_cast<uintptr_t>(address);
  slot_->tripped.store(false);
  slot_->end.store((begin + bytes + page - 1) / page * page);
  slot_->begin.store(begin);
}

GuardedRegion::~GuardedRegion() { slot_->begin.store(0); }

bool GuardedRegion::tripped() const { return slot_->tripped.load(); }
bool GuardedRegion::AnyTripped() { return SigbusHandler::any_tripped.load(std::memory_order_relaxed); }

}  // namespace braid
