// Objects that threads borrow, so that none is made per tile.
#pragma once

#include <list>
#include <mutex>
#include <vector>

namespace braid {

// Made when none is free, so there are never more than were used at once. Thread-safe; the shelf owns them.
template <typename T>
class Shelf {
 public:
  template <typename... Args>
  T* Take(Args... args) {
    std::lock_guard lock(mutex_);
    if (free_.empty()) return &all_.emplace_back(args...);
    T* object = free_.back();
    free_.pop_back();
    return object;
  }
  void Give(T* object) {
    std::lock_guard lock(mutex_);
    free_.push_back(object);
  }

 private:
  std::mutex mutex_;
  std::list<T> all_;
  std::vector<T*> free_;
};

}  // namespace braid
