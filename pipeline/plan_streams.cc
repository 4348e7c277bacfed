// What of a stream has to wait on the disk. The graph's order of reading is gone through once, without reading: a
// tensor that is wanted when the stream is already behind it must have been spooled. Scopes are independent of each
// other, so they are processed in the order in which a stream has their tensors, where that spools the least. Stages
// that are merged first read the same streams, before.

#include <algorithm>
#include <numeric>

#include "pipeline/plan_internal.h"
#include "pipeline/plan_lent.h"
#include "pipeline/shard_output.h"
#include "pipeline/stream_reader.h"

namespace braid {
namespace {

// A tensor of a stream, by its place in both.
struct StreamTensor {
  uint32_t stream = 0, tensor = 0;
  auto operator<=>(const StreamTensor&) const = default;
};

// What the tiles of one output tensor read of streams in one round, in the order of the streams.
struct ReadTensor {
  std::vector<StreamTensor> from;
  bool rows = false;   // gathered from anywhere in the tensor
};
using ReadRound = std::vector<ReadTensor>;   // in the order of the scope's tensors

// The rounds of a scope in which anything is read: those before the merge, if they come apart from it, and the merge. A
// front has none.
struct ScopeReads {
  std::vector<ReadRound> statistics;
  ReadRound merge;
  StreamTensor first = {UINT32_MAX, UINT32_MAX};   // that any round reads
};

class ReadsOfScope {
 public:
  ReadsOfScope(const Plan& plan, const PlannedScope& scope) : plan_(plan), scope_(scope) {
    if (plan.tensors[scope.tensors.front()].action == TensorAction::kMerge)
      merger_ = plan.MakeMerger(scope, scope.approach);
  }

  ScopeReads Find() const {
    ScopeReads reads;
    const size_t merge = merger_ == nullptr ? 0 : merger_->statistics_rounds();
    if (scope_.resident) {
      reads.merge = Round(0, merge);
      if (plan_.measured || plan_.IsFront(scope_)) reads.statistics.push_back(reads.merge);
    } else {
      for (size_t r = 0; r < merge; ++r) reads.statistics.push_back(Round(r, r));
      reads.merge = Round(merge, merge);
    }
    const auto see = [&](const ReadRound& round) {
      for (const ReadTensor& tensor : round) reads.first = std::min(reads.first, tensor.from.front());
    };
    std::for_each(reads.statistics.begin(), reads.statistics.end(), see);
    see(reads.merge);
    return reads;
  }

 private:
  // What rounds [first, last] read when they are read at once.
  ReadRound Round(size_t first, size_t last) const {
    ReadRound round;
    for (uint32_t t : scope_.tensors) {
      const PlannedTensor& tensor = plan_.tensors[t];
      bool any = merger_ == nullptr || last == merger_->statistics_rounds();
      ReadTensor read{.from = {}, .rows = !tensor.rows.empty()};
      for (size_t m = 0; m < tensor.models.size(); ++m) {
        if (!tensor.models[m].present() || !ReadsModel(first, last, m, tensor)) continue;
        any = true;
        Add(tensor.models[m], &read);
      }
      if (any && tensor.base.present()) Add(tensor.base, &read);
      std::sort(read.from.begin(), read.from.end());
      read.from.erase(std::unique(read.from.begin(), read.from.end()), read.from.end());
      if (!read.from.empty()) round.push_back(std::move(read));
    }
    return round;
  }

  bool ReadsModel(size_t first, size_t last, size_t model, const PlannedTensor& tensor) const {
    if (merger_ == nullptr) return true;
    for (size_t r = first; r <= last; ++r)
      if (merger_->Reads(r, model, plan_.coefficients[tensor.coefficients])) return true;
    return false;
  }

  void Add(const TensorSource& source, ReadTensor* read) const {
    const int32_t stream = plan_.StreamOf(source);
    if (stream < 0 || plan_.Info(source).bytes == 0) return;
    const auto s = static_cast<uint32_t>(stream);
    read->from.push_back({s, source.tensor - plan_.streams[s].first});
  }

  const Plan& plan_;
  const PlannedScope& scope_;
  std::unique_ptr<Merger> merger_;
};

// Goes through the reads of a plan in some order of its scopes.
class Spooling {
 public:
  explicit Spooling(const Plan& plan) : plan_(plan), streams_(plan.streams), next_(plan.streams.size()) {
    for (const PlannedStream& stream : streams_) was_read_.emplace_back(stream.tensors.size());
  }

  void Visit(const ReadRound& round) {
    for (const ReadTensor& tensor : round) Visit(tensor);
  }

  std::vector<PlannedStream> Take() && {
    for (PlannedStream& stream : streams_) {
      const Checkpoint& checkpoint = plan_.checkpoints[stream.checkpoint];
      stream.spooled = 0;
      for (size_t i = 0; i < stream.tensors.size(); ++i)
        if (stream.tensors[i] != SpoolReason::kNone) stream.spooled += checkpoint.tensors[stream.first + i].info.bytes;
    }
    return std::move(streams_);
  }

 private:
  // Tile by tile, so that of several tensors of one stream only the last can be read as it comes.
  void Visit(const ReadTensor& read) {
    for (size_t i = 0; i < read.from.size(); ++i) {
      const auto [s, tensor] = read.from[i];
      const bool last = i + 1 == read.from.size() || read.from[i + 1].stream != s;
      SpoolReason reason = SpoolReason::kNone;
      if (read.rows) reason = SpoolReason::kRows;
      else if (tensor < next_[s]) reason = was_read_[s][tensor] ? SpoolReason::kReadAgain : SpoolReason::kOutOfOrder;
      else if (!last) reason = SpoolReason::kOutOfOrder;
      SpoolReason& noted = streams_[s].tensors[tensor];
      if (noted == SpoolReason::kNone) noted = reason;
      next_[s] = std::max(next_[s], tensor + 1);
      was_read_[s][tensor] = true;
    }
  }

  const Plan& plan_;
  std::vector<PlannedStream> streams_;
  std::vector<uint32_t> next_;                 // of each stream: the first tensor that has not come yet
  std::vector<std::vector<bool>> was_read_;
};

uint64_t Spooled(const std::vector<PlannedStream>& streams) {
  return std::accumulate(streams.begin(), streams.end(), uint64_t{0},
                         [](uint64_t sum, const PlannedStream& stream) { return sum + stream.spooled; });
}

// A plan's scopes, and their order.
struct RunReads {
  Plan* plan = nullptr;
  std::vector<ScopeReads> fronts, reads;
  std::vector<uint32_t> order;
};

// As GraphRun::ReadAll, ReadFronts and MeasureAll go, in one run after the other.
std::vector<PlannedStream> SpooledIn(const std::vector<RunReads>& runs) {
  Spooling spooling(*runs.back().plan);
  for (const RunReads& run : runs) {
    for (const ScopeReads& front : run.fronts)
      for (const ReadRound& round : front.statistics) spooling.Visit(round);
    const auto statistics = [&](uint32_t s) {
      for (const ReadRound& round : run.reads[s].statistics) spooling.Visit(round);
    };
    if (run.plan->measured) std::for_each(run.order.begin(), run.order.end(), statistics);
    for (const uint32_t s : run.order) {
      if (!run.plan->measured) statistics(s);
      spooling.Visit(run.reads[s].merge);
    }
  }
  return std::move(spooling).Take();
}

// Scopes in the order of what comes of a checkpoint's streams; one that reads nothing of them stays behind the one
// before it.
std::vector<uint32_t> OrderOf(const Plan& plan, uint32_t checkpoint, const std::vector<ScopeReads>& reads) {
  std::vector<StreamTensor> keys;
  StreamTensor key;
  for (const ScopeReads& scope : reads) {
    const bool reads_it = scope.first.stream < plan.streams.size() &&
                          plan.streams[scope.first.stream].checkpoint == checkpoint;
    if (reads_it) key = scope.first;
    keys.push_back(key);
  }
  std::vector<uint32_t> order(reads.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return keys[a] < keys[b]; });
  return order;
}

void Reorder(Plan* plan, const std::vector<uint32_t>& order) {
  std::vector<PlannedScope> scopes;
  for (uint32_t s : order) scopes.push_back(std::move(plan->scopes[s]));
  plan->scopes = std::move(scopes);
}

// Bytes that go to a temporary file on their way in, or on their way out.
uint64_t Waiting(const RunReads& last, const std::vector<PlannedStream>& streams) {
  if (!last.plan->in_order) return Spooled(streams);
  std::vector<uint32_t> back(last.order.size());
  for (uint32_t i = 0; i < last.order.size(); ++i) back[last.order[i]] = i;
  Reorder(last.plan, last.order);
  const uint64_t early = BytesThatComeEarly(*last.plan);
  Reorder(last.plan, back);
  return Spooled(streams) + early;
}

RunReads ReadsOf(Plan* plan) {
  RunReads run{.plan = plan, .fronts = {}, .reads = {}, .order = std::vector<uint32_t>(plan->scopes.size())};
  const auto reads = [&](const PlannedScope& scope) {
    return ReadsStream(*plan, scope) ? ReadsOfScope(*plan, scope).Find() : ScopeReads();
  };
  std::transform(plan->fronts.begin(), plan->fronts.end(), std::back_inserter(run.fronts), reads);
  std::transform(plan->scopes.begin(), plan->scopes.end(), std::back_inserter(run.reads), reads);
  std::iota(run.order.begin(), run.order.end(), 0);
  return run;
}

}  // namespace

std::string_view SpoolReasonName(SpoolReason reason) {
  switch (reason) {
    case SpoolReason::kNone: return "";
    case SpoolReason::kReadAgain: return "read again";
    case SpoolReason::kOutOfOrder: return "out of order";
    case SpoolReason::kRows: return "rows of another vocabulary";
  }
  return "";
}

int32_t Plan::StreamOf(const TensorSource& source) const {
  const auto checkpoint = static_cast<uint32_t>(source.checkpoint);
  for (size_t s = 0; s < streams.size(); ++s)
    if (streams[s].checkpoint == checkpoint && source.tensor >= streams[s].first &&
        source.tensor - streams[s].first < streams[s].tensors.size())
      return static_cast<int32_t>(s);
  return -1;
}

void FindStreams(Plan* plan) {
  for (uint32_t c = 0; c < plan->checkpoints.size(); ++c) {
    const Checkpoint& checkpoint = plan->checkpoints[c];
    uint32_t tensor = 0;
    for (uint32_t s = 0; s < checkpoint.shards.size(); ++s) {
      const uint32_t first = tensor;
      while (tensor < checkpoint.tensors.size() && checkpoint.tensors[tensor].shard == s) ++tensor;
      if (checkpoint.shards[s].stream == nullptr) continue;
      plan->streams.push_back({.checkpoint = c, .shard = s, .first = first});
      plan->streams.back().tensors.resize(tensor - first);
    }
  }
}

bool ReadsStream(const Plan& plan, const PlannedScope& scope) {
  if (plan.streams.empty()) return false;
  return std::any_of(scope.tensors.begin(), scope.tensors.end(), [&](uint32_t t) {
    const PlannedTensor& tensor = plan.tensors[t];
    for (size_t slot = 0; slot <= tensor.models.size(); ++slot)
      if (tensor.SourceAt(slot).present() && plan.StreamOf(tensor.SourceAt(slot)) >= 0) return true;
    return false;
  });
}

void PlanStreams(Plan* plan) {
  if (plan->streams.empty()) return;
  std::vector<RunReads> runs;
  for (const SpilledStage& spill : plan->spills) {
    const LentCheckpoints lent(plan, spill.plan.get());
    runs.push_back(ReadsOf(spill.plan.get()));
  }
  runs.push_back(ReadsOf(plan));
  std::vector<PlannedStream> best = SpooledIn(runs);
  const auto orders = [&] {
    std::vector<std::vector<uint32_t>> its;
    for (const RunReads& run : runs) its.push_back(run.order);
    return its;
  };
  std::vector<std::vector<uint32_t>> best_orders = orders();
  uint64_t waiting = Waiting(runs.back(), best);
  for (size_t s = 0; s < plan->streams.size(); ++s) {
    if (s > 0 && plan->streams[s].checkpoint == plan->streams[s - 1].checkpoint) continue;
    for (RunReads& run : runs) run.order = OrderOf(*plan, plan->streams[s].checkpoint, run.reads);
    std::vector<PlannedStream> then = SpooledIn(runs);
    const uint64_t waiting_then = Waiting(runs.back(), then);
    if (waiting_then < waiting) waiting = waiting_then, best = std::move(then), best_orders = orders();
  }
  for (size_t r = 0; r < runs.size(); ++r) Reorder(runs[r].plan, best_orders[r]);
  for (PlannedStream& stream : best) stream.spool = std::make_shared<StreamSpool>();
  plan->streams = std::move(best);
  for (const SpilledStage& spill : plan->spills) {
    spill.plan->streams = plan->streams;
    for (PlannedStream& stream : spill.plan->streams) stream.finishes = false;
  }
  plan->totals.bytes_spooled = Spooled(plan->streams);
  if (plan->in_order) plan->totals.bytes_spilled = BytesThatComeEarly(*plan);
}

}  // namespace braid
