// What a running merge tells about itself: counters that the graph's threads add to, stage by stage, and a reporter
// that shows them on stderr.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace braid {

enum class Stage : size_t { kRead, kStatistics, kMerge, kWrite, kCount };
std::string_view StageName(Stage stage);

struct StageCounters {
  std::atomic<uint64_t> bytes{0};
  std::atomic<uint64_t> wall_ns{0};   // summed over the threads at work
  std::atomic<uint64_t> cpu_ns{0};
  std::atomic<uint64_t> stall_ns{0};  // waiting for memory, for a round to end, or for something to write
};

struct Progress {
  uint64_t bytes_to_read = 0, bytes_to_write = 0;
  std::optional<std::chrono::steady_clock::time_point> start = {};   // of the first of several runs
  std::chrono::steady_clock::time_point shown = {};
  // Of ranks, for which the numbers above are set once for all that they do: gets how many bytes this one has read and
  // written; says how many all of them have that were started together, as far as it knows.
  std::function<uint64_t(uint64_t)> of_all_ranks = {};
  std::array<StageCounters, static_cast<size_t>(Stage::kCount)> stages;
  StageCounters& of(Stage stage) { return stages[static_cast<size_t>(stage)]; }
  const StageCounters& of(Stage stage) const { return stages[static_cast<size_t>(stage)]; }
};

// Adds the wall and CPU time of its scope to a stage.
class StageTimer {
 public:
  explicit StageTimer(StageCounters& counters);
  ~StageTimer();
  StageTimer(const StageTimer&) = delete;

 private:
  StageCounters& counters_;
  std::chrono::steady_clock::time_point wall_;
  uint64_t cpu_;
};

// Adds its scope to a stage's stall time.
class StallTimer {
 public:
  explicit StallTimer(StageCounters& counters) : counters_(counters), start_(std::chrono::steady_clock::now()) {}
  ~StallTimer() {
    counters_.stall_ns += static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count());
  }
  StallTimer(const StallTimer&) = delete;

 private:
  StageCounters& counters_;
  std::chrono::steady_clock::time_point start_;
};

// Prints; a stderr that is full or has gone away is no reason to fail.
void PrintToStderr(const std::string& text);

// Prints progress to stderr: a bar that redraws on a terminal, otherwise a line every few seconds. Call Tick often;
// it decides when to print. Not thread-safe.
class ProgressReporter {
 public:
  ProgressReporter(Progress* progress, bool quiet);
  void Tick();
  void Finish();  // takes the bar away

 private:
  std::string Line(double seconds) const;

  Progress& progress_;
  bool quiet_, terminal_;
  uint64_t of_all_ranks_ = 0;
};

}  // namespace braid
