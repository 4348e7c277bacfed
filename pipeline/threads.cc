#include "pipeline/threads.h"

#include <mutex>
#include <thread>
#include <vector>

namespace braid {

void CheckThreads(size_t count) {
  std::mutex mutex;
  std::vector<std::jthread> threads;
  const std::lock_guard all_at_once(mutex);   // let go before they are waited for
  while (threads.size() < count) threads.emplace_back([&] { std::lock_guard wait(mutex); });
}

}  // namespace braid
