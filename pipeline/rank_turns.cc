#include "pipeline/rank_turns.h"

#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <thread>

#include "io/error.h"
#include "pipeline/interrupt.h"
#include "pipeline/rank_files.h"

namespace braid {
namespace {

std::string ClaimPath(const RankMarks& marks, UnitRun part) {
  return fmt::format("{}/claim-{}-{}", marks.directory(), part.first, part.last);
}

// False where another process has the lock.
bool Lock(const Fd& claim) { return TheOs().Flock(claim.get(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

struct Claim {
  Fd lock;
  bool used;   // somebody has had it before
};

std::optional<Claim> Take(const RankMarks& marks, UnitRun part) {
  const std::string path = ClaimPath(marks, part);
  Claim claim{Fd(TheOs().Open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0666)), false};
  if (!claim.lock && errno == ENOENT) throw RankFilesGone(marks.directory());
  if (!claim.lock) throw SystemError(errno, "create it", path);
  if (!Lock(claim.lock)) return std::nullopt;
  struct stat status;
  if (TheOs().Fstat(claim.lock.get(), &status) < 0) throw SystemError(errno, "look at it", path);
  claim.used = status.st_size > 0;
  if (!claim.used) WriteExactly(claim.lock.get(), "x", 1, 0, path);
  return claim;
}

bool IsTaken(const RankMarks& marks, UnitRun part) {
  const Fd claim(TheOs().Open(ClaimPath(marks, part).c_str(), O_RDWR | O_NOFOLLOW));
  return claim && !Lock(claim);
}

std::vector<uint32_t> MissingNow(const RankMarks& marks) {
  auto missing = marks.Missing();
  if (!missing) throw RankFilesGone(marks.directory());
  return std::move(*missing);
}

std::vector<uint32_t> Within(const std::vector<uint32_t>& units, UnitRun run) {
  return {std::lower_bound(units.begin(), units.end(), run.first),
          std::lower_bound(units.begin(), units.end(), run.last)};
}

class Turns {
 public:
  Turns(const Plan& plan, const RankMarks& marks, const RankOptions& rank, const std::atomic<int>& interrupt,
        const MergeUnits& merge)
      : marks_(marks), rank_(rank.rank), interrupt_(interrupt), merge_(merge) {
    for (UnitRun run : RunsOfRanks(marks.units(), rank.of)) parts_.push_back(PartsOfRun(plan, marks.units(), run));
  }

  // From the first part on. What a helper has taken is waited for: it may die, and leave it to us.
  void Own() {
    auto pause = std::chrono::milliseconds(10);
    for (;;) {
      const std::vector<uint32_t> missing = MissingNow(marks_);
      bool left = false, merged = false;
      for (UnitRun part : parts_[rank_]) {
        ThrowIfInterrupted(interrupt_);
        left = left || !Within(missing, part).empty();
        if (MergeInTurn(marks_, missing, part, merge_)) merged = true;
      }
      if (!left) return;
      if (merged) continue;
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds(500));
    }
  }

  // Of the rank that has most to do, the last part that it has not come to.
  bool Help() {
    ThrowIfInterrupted(interrupt_);
    const std::vector<uint32_t> missing = MissingNow(marks_);
    std::vector<std::pair<uint64_t, uint32_t>> slow;   // by bytes, negated
    for (uint32_t rank = 0; rank < parts_.size(); ++rank) {
      uint64_t bytes = 0;
      for (UnitRun part : parts_[rank])
        for (uint32_t u : Within(missing, part)) bytes += marks_.units()[u].bytes();
      if (rank != rank_ && bytes > 0) slow.emplace_back(~bytes, rank);
    }
    std::sort(slow.begin(), slow.end());
    return std::any_of(slow.begin(), slow.end(), [&](const auto& who) { return Help(parts_[who.second], missing); });
  }

 private:
  bool Help(const std::vector<UnitRun>& parts, const std::vector<uint32_t>& missing) {
    const bool at_work = std::any_of(parts.begin(), parts.end(), [&](UnitRun part) {
      return !Within(missing, part).empty() && IsTaken(marks_, part);
    });
    return at_work && std::any_of(parts.rbegin(), parts.rend(), [&](UnitRun part) {
      return MergeInTurn(marks_, missing, part, merge_);
    });
  }

  const RankMarks& marks_;
  const uint32_t rank_;
  const std::atomic<int>& interrupt_;
  const MergeUnits& merge_;
  std::vector<std::vector<UnitRun>> parts_;   // by rank
};

}  // namespace

bool MergeInTurn(const RankMarks& marks, const std::vector<uint32_t>& missing, UnitRun part, const MergeUnits& merge) {
  std::vector<uint32_t> units = Within(missing, part);
  if (units.empty()) return false;
  const std::optional<Claim> claim = Take(marks, part);
  if (!claim) return false;
  if (claim->used) units = Within(MissingNow(marks), part);   // perhaps all of it is done
  if (units.empty()) return false;
  merge(units);
  return true;
}

void MergeAndHelp(const Plan& plan, const RankMarks& marks, const RankOptions& rank, const std::atomic<int>& interrupt,
                  const MergeUnits& merge) {
  Turns turns(plan, marks, rank, interrupt, merge);
  turns.Own();
  while (turns.Help()) {}
}

}  // namespace braid
