// Partial statistics as messages: up a tree of ranks, each adding what its two children have, and the total back to
// all. Nobody holds more than its own statistics and a buffer.
#include <algorithm>
#include <cstring>
#include <vector>

#include "pipeline/exchange.h"

namespace braid {
namespace {

constexpr size_t kBuffer = 1 << 20;

// A stream in messages of one size; `pass` sends one, or receives it.
template <typename Pass>
class Messages {
 public:
  explicit Messages(Pass pass, bool out) : pass_(pass), buffer_(kBuffer), next_(out ? 0 : kBuffer) {}
  void Put(const void* data, size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const size_t n = std::min(bytes, kBuffer - next_);
      std::memcpy(buffer_.data() + next_, from, n);
      from += n, bytes -= n, next_ += n;
      if (next_ == kBuffer) Flush();
    }
  }
  void Flush() {
    if (next_ > 0) pass_(buffer_.data(), kBuffer);
    next_ = 0;
  }
  void Get(void* data, size_t bytes) {
    auto* to = static_cast<char*>(data);
    while (bytes > 0) {
      if (next_ == kBuffer) pass_(buffer_.data(), kBuffer), next_ = 0;
      const size_t n = std::min(bytes, kBuffer - next_);
      std::memcpy(to, buffer_.data() + next_, n);
      to += n, bytes -= n, next_ += n;
    }
  }

 private:
  Pass pass_;
  std::vector<char> buffer_;
  size_t next_;
};

template <typename Pass>
void SaveTo(Counter* counter, UnitRun units, Pass pass) {
  Messages<Pass> messages(pass, true);
  counter->Save(units, [&](const void* data, size_t bytes) { messages.Put(data, bytes); });
  messages.Flush();
}

template <typename Pass>
void LoadFrom(Counter* counter, UnitRun units, Pass pass) {
  Messages<Pass> messages(pass, false);
  counter->Load(units, [&](void* data, size_t bytes) { messages.Get(data, bytes); });
}

class GroupExchange : public Exchange {
 public:
  GroupExchange(Group* group, UnitRun part) : group_(*group), part_(part) {}

  // All ranks must take part, so tensors that only some of them have are left to these.
  bool Shares(const Plan& plan, const Share&, const PlannedScope& scope) const override {
    return plan.tensors[scope.tensors.front()].action == TensorAction::kMerge && plan.IsWhole(scope);
  }

  bool Take(const SharedRound& round, Counter* counter) override {
    const UnitRun part{std::max(part_.first, round.units.first), std::min(part_.last, round.units.last)};
    if (part.first < part.last && !counter->Count(part)) return false;
    const uint32_t rank = group_.rank(), of = group_.of();
    for (uint32_t child : {2 * rank + 1, 2 * rank + 2})
      if (child < of)
        LoadFrom(counter, round.units, [&](void* data, size_t bytes) { group_.Receive(child, data, bytes); });
    if (rank > 0) {
      const uint32_t parent = (rank - 1) / 2;
      SaveTo(counter, round.units, [&](void* data, size_t bytes) { group_.Send(parent, data, bytes); });
      counter->Clear();
    }
    const auto broadcast = [&](void* data, size_t bytes) { group_.Broadcast(0, data, bytes); };
    if (rank == 0) SaveTo(counter, round.units, broadcast);
    else LoadFrom(counter, round.units, broadcast);
    return !counter->failed();
  }

 private:
  Group& group_;
  const UnitRun part_;
};

}  // namespace

std::unique_ptr<Exchange> NewGroupExchange(Group* group, UnitRun part) {
  return std::make_unique<GroupExchange>(group, part);
}

}  // namespace braid
