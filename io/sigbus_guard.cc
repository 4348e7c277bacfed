#include "io/sigbus_guard.h"

#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <mutex>
#include <utility>

namespace braid {

// Slots are never freed, only reused, so that the handler can walk their list without a lock.
struct GuardedRegion::Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  // begin 0: free
  const std::string* path = nullptr;
  Slot* next = nullptr;       // of all slots
  Slot* next_free = nullptr;  // of the free ones; under the mutex
};

struct SigbusHandler {
  static inline std::atomic<GuardedRegion::Slot*> slots{nullptr};
  static inline std::atomic<const std::string*> tripped{nullptr};
  static inline std::mutex mutex;
  static inline GuardedRegion::Slot* free_slots = nullptr;

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
      const std::string* none = nullptr;
      tripped.compare_exchange_strong(none, slot->path);
      return;
    }
    signal(SIGBUS, SIG_DFL);  // not ours: the access repeats and ends the process as it would have
  }

  static GuardedRegion::Slot* TakeSlot() {
    std::lock_guard lock(mutex);
    if (free_slots != nullptr) return std::exchange(free_slots, free_slots->next_free);
    if (slots.load() == nullptr) {
      struct sigaction action = {};
      action.sa_sigaction = Handle;
      action.sa_flags = SA_SIGINFO;
      sigemptyset(&action.sa_mask);
      sigaction(SIGBUS, &action, nullptr);
    }
    auto* slot = new GuardedRegion::Slot;
    slot->next = slots.load();
    slots.store(slot, std::memory_order_release);
    return slot;
  }

  static void GiveSlot(GuardedRegion::Slot* slot) {
    slot->begin.store(0);
    std::lock_guard lock(mutex);
    slot->next_free = std::exchange(free_slots, slot);
  }
};

GuardedRegion::GuardedRegion(const void* address, size_t bytes, const std::string* path)
    : slot_(SigbusHandler::TakeSlot()) {
  const auto page = static_cast<uintptr_t>(getpagesize());
  const auto begin = reinterpret_cast<uintptr_t>(address);
  slot_->path = path;
  slot_->end.store((begin + bytes + page - 1) / page * page);
  slot_->begin.store(begin / page * page);
}

GuardedRegion::~GuardedRegion() {
  if (slot_ != nullptr) SigbusHandler::GiveSlot(slot_);
}

GuardedRegion::GuardedRegion(GuardedRegion&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
GuardedRegion& GuardedRegion::operator=(GuardedRegion&& other) noexcept {
  std::swap(slot_, other.slot_);
  return *this;
}

const std::string* GuardedRegion::TrippedPath() { return SigbusHandler::tripped.load(std::memory_order_relaxed); }

}  // namespace braid
