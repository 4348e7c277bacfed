#include "pipeline/budget.h"

#include <fmt/format.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <sched.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <fstream>
#include <string>

#include "io/error.h"

namespace braid {

bool Budget::Take(uint64_t bytes) {
  if (bytes > total_)
    throw Error(ErrorCode::kInternal, fmt::format("{} bytes are more than the budget's {}", bytes, total_));
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return cancelled_ || free_ >= bytes; });
  if (cancelled_) return false;
  free_ -= bytes;
  return true;
}

void Budget::Give(uint64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    free_ += bytes;
  }
  changed_.notify_one();
}

uint64_t Budget::Free() const {
  std::lock_guard lock(mutex_);
  return free_;
}

void Budget::Cancel() {
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  changed_.notify_all();
}

namespace {

// The number after `key` in a /proc file of "Key:   123 kB" lines, in bytes; 0 when it is not there.
uint64_t KilobytesOf(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  return 0;
}

uint64_t NumberIn(const std::string& file) {  // "max" and absent files: no limit
  std::ifstream in(file);
  uint64_t value = 0;
  return in >> value ? value : UINT64_MAX;
}

// What one control group leaves: its limit less what it uses, not counting page cache that can be reclaimed.
uint64_t GroupLeaves(const std::string& directory, const char* limit_file, const char* usage_file) {
  const uint64_t limit = NumberIn(directory + limit_file);
  if (limit >= (uint64_t{1} << 60)) return UINT64_MAX;
  const uint64_t usage = NumberIn(directory + usage_file);
  uint64_t reclaimable = 0;
  std::ifstream stat(directory + "/memory.stat");
  for (std::string key; stat >> key;) {
    uint64_t value = 0;
    stat >> value;
    if (key == "inactive_file" || key == "active_file") reclaimable += value;
  }
  if (usage == UINT64_MAX) return limit;
  const uint64_t used = usage - std::min(usage, reclaimable);
  return limit - std::min(limit, used);
}

// The limits of this process's control group and of all above it.
uint64_t ControlGroupLeaves() {
  uint64_t leaves = UINT64_MAX;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v1 = controllers.find("memory") != std::string::npos;
    if (!v1 && !controllers.empty()) continue;
    const std::string root = v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    for (;;) {
      leaves = std::min(leaves, v1 ? GroupLeaves(root + path, "/memory.limit_in_bytes", "/memory.usage_in_bytes")
                                   : GroupLeaves(root + path, "/memory.max", "/memory.current"));
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/'));
    }
  }
  return leaves;
}

}  // namespace

uint64_t AvailableMemory() { return std::min(KilobytesOf("/proc/meminfo", "MemAvailable:"), ControlGroupLeaves()); }

uint64_t DefaultMemory() {
  return std::clamp<uint64_t>(AvailableMemory() / 4, uint64_t{256} << 20, uint64_t{4} << 30);
}

int DefaultThreads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ResidentMemory ReadResidentMemory() {
  return {KilobytesOf("/proc/self/status", "VmHWM:"), KilobytesOf("/proc/self/status", "VmRSS:")};
}

uint64_t ParseSize(const std::string& text, const std::string& option) {
  struct Unit { std::string_view name; double factor; };
  constexpr std::array<Unit, 15> kUnits{{{"", 1}, {"B", 1}, {"K", 1e3}, {"KB", 1e3}, {"M", 1e6}, {"MB", 1e6},
      {"G", 1e9}, {"GB", 1e9}, {"T", 1e12}, {"TB", 1e12}, {"KIB", 1024.0}, {"MIB", 1048576.0},
      {"GIB", 1073741824.0}, {"TIB", 1099511627776.0}, {"BYTES", 1}}};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, text.data() + text.size());
  unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const auto found = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& u) { return u.name == unit; });
  if (error != std::errc() || found == kUnits.end() || !(number > 0) || number * found->factor > 9e18)
    throw Error(ErrorCode::kUsage, fmt::format("{} '{}' is not a size", option, text))
        .Hint("write it as 512MiB, 4GB or 1.5GiB");
  return static_cast<uint64_t>(number * found->factor);
}

std::string SizeText(uint64_t bytes) {
  constexpr std::array kUnits = {"B", "KB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) value /= 1000, ++unit;
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : value < 100 ? 1 : 0, kUnits[unit]);
}

Error DoesNotFit(uint64_t budget, uint64_t least) {
  constexpr uint64_t kMebibyte = 1 << 20;
  return Error(ErrorCode::kMemory, fmt::format("this merge does not fit in {} MiB of memory", budget / kMebibyte))
      .Hint(fmt::format("the smallest --memory that works is {}MiB", (least + kMebibyte - 1) / kMebibyte));
}

void ReturnFreedMemory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace braid
