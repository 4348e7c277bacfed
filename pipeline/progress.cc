#include "pipeline/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "pipeline/budget.h"

namespace braid {
namespace {

uint64_t ThreadCpuNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

std::string DurationText(double seconds) {
  const auto whole = static_cast<uint64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace

void PrintToStderr(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

std::string_view StageName(Stage stage) {
  constexpr std::array<std::string_view, 4> kNames = {"read", "statistics", "merge", "write"};
  return kNames[static_cast<size_t>(stage)];
}

StageTimer::StageTimer(StageCounters& counters)
    : counters_(counters), wall_(std::chrono::steady_clock::now()), cpu_(ThreadCpuNanoseconds()) {}

StageTimer::~StageTimer() {
  counters_.cpu_ns += ThreadCpuNanoseconds() - cpu_;
  counters_.wall_ns += static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - wall_).count());
}

ProgressReporter::ProgressReporter(Progress* progress, bool quiet) : progress_(*progress), quiet_(quiet) {
  if (!progress_.start) progress_.start = progress_.shown = std::chrono::steady_clock::now();
  const char* term = std::getenv("TERM");
  terminal_ = isatty(STDERR_FILENO) != 0 && term != nullptr && std::string_view(term) != "dumb";
}

void ProgressReporter::Tick() {
  if (progress_.of_all_ranks)
    of_all_ranks_ = progress_.of_all_ranks(progress_.of(Stage::kRead).bytes + progress_.of(Stage::kWrite).bytes);
  if (quiet_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - progress_.shown < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(5000))) return;
  progress_.shown = now;
  const std::string line = Line(std::chrono::duration<double>(now - *progress_.start).count());
  PrintToStderr(terminal_ ? "\r\x1b[K" + line : line + "\n");
}

void ProgressReporter::Finish() {
  if (!quiet_ && terminal_) PrintToStderr("\r\x1b[K");
}

std::string ProgressReporter::Line(double seconds) const {
  const uint64_t read = progress_.of(Stage::kRead).bytes, written = progress_.of(Stage::kWrite).bytes;
  const uint64_t total = progress_.bytes_to_read + progress_.bytes_to_write;
  const uint64_t done = progress_.of_all_ranks ? of_all_ranks_ : read + written;
  const double share =
      total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  std::string bar;
  if (terminal_) {
    constexpr int kWidth = 24;
    const int filled = static_cast<int>(share * kWidth);
    bar = "[" + std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(kWidth - filled), '.') +
          "] ";
  }
  return fmt::format("{}{:3.0f} %  {} of {}  in {}/s  out {}/s  left {}  memory {}", bar, share * 100,
                     SizeText(done), SizeText(total),
                     SizeText(static_cast<uint64_t>(static_cast<double>(read) / seconds)),
                     SizeText(static_cast<uint64_t>(static_cast<double>(written) / seconds)),
                     share > 0.01 ? DurationText(seconds / share - seconds) : "?", SizeText(ReadResidentMemory().now));
}

}  // namespace braid
