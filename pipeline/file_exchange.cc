// Partial statistics in files of the ranks' directory:
//
//   part-SCOPE-ROUND-KIND-FIRST-LAST          of units FIRST up to LAST; XXH3-128 of the rest at the end
//   part-SCOPE-ROUND-KIND-FIRST-LAST.claim    locked by a process that is counting it
//
// Parts of an earlier run with another number of ranks count as far as they fit together; gaps between them are counted
// along the borders of today's ranks.
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "io/checksum.h"
#include "io/error.h"
#include "io/os.h"
#include "pipeline/exchange.h"
#include "pipeline/rank_files.h"

namespace braid {
namespace {

constexpr size_t kBuffer = 256 << 10;

// Collects what is put into a file, and its checksum.
class PartWriter {
 public:
  explicit PartWriter(const std::string& path) : file_(path) { buffer_.reserve(kBuffer); }
  void Put(const void* data, size_t bytes) {
    sum_.Add(data, bytes);
    Append(data, bytes);
  }
  void Finish() {
    const XXH128_hash_t sum = sum_.Take();
    Append(&sum, sizeof sum);
    file_.Append(buffer_.data(), buffer_.size());
    file_.Commit(false);   // it has a checksum
  }

 private:
  void Append(const void* data, size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const size_t n = std::min(bytes, kBuffer - buffer_.size());
      buffer_.insert(buffer_.end(), from, from + n);
      from += n, bytes -= n;
      if (buffer_.size() < kBuffer) continue;
      file_.Append(buffer_.data(), buffer_.size());
      buffer_.clear();
    }
  }

  RankFile file_;
  Checksum sum_;
  std::vector<char> buffer_;
};

// Its checksum is compared before anything of it is used.
class PartReader {
 public:
  explicit PartReader(const std::string& path) : path_(path), buffer_(kBuffer) {
    FileIdentity identity;
    file_ = OpenForReading(path, &identity);
    XXH128_hash_t expected{};
    if (identity.size < sizeof expected) throw Damaged();
    bytes_ = identity.size - sizeof expected;
    Checksum sum;
    for (uint64_t at = 0; at < bytes_; at += kBuffer) {
      const size_t n = std::min<uint64_t>(kBuffer, bytes_ - at);
      ReadExactly(file_.get(), buffer_.data(), n, at, path);
      sum.Add(buffer_.data(), n);
    }
    ReadExactly(file_.get(), &expected, sizeof expected, bytes_, path);
    if (!XXH128_isEqual(sum.Take(), expected)) throw Damaged();
  }
  void Get(void* data, size_t bytes) {
    auto* to = static_cast<char*>(data);
    while (bytes > 0) {
      if (next_ == filled_) Fill();
      const size_t n = std::min(bytes, filled_ - next_);
      std::memcpy(to, buffer_.data() + next_, n);
      to += n, bytes -= n, next_ += n;
    }
  }
  void Finish() const {
    if (next_ != filled_ || at_ != bytes_) throw Damaged();
  }

 private:
  Error Damaged() const {
    return Error(ErrorCode::kBadInput, "these are not the statistics that a rank has left here")
        .Path(path_)
        .Hint("remove it, and run the rank again");
  }
  void Fill() {
    filled_ = std::min<uint64_t>(kBuffer, bytes_ - at_), next_ = 0;
    if (filled_ == 0) throw Damaged();
    ReadExactly(file_.get(), buffer_.data(), filled_, at_, path_);
    at_ += filled_;
  }

  std::string path_;
  Fd file_;
  uint64_t bytes_ = 0, at_ = 0;
  size_t next_ = 0, filled_ = 0;
  std::vector<char> buffer_;
};

// Parts that follow each other without overlap, and what lies between them.
struct Cover {
  std::vector<UnitRun> parts, gaps;
};

Cover CoverOf(UnitRun units, std::vector<UnitRun> there) {
  std::sort(there.begin(), there.end(), [](UnitRun a, UnitRun b) {
    return a.first != b.first ? a.first < b.first : a.last > b.last;
  });
  Cover cover;
  uint32_t at = units.first;
  for (UnitRun part : there) {
    if (part.first < at || part.last > units.last || part.last <= part.first) continue;
    if (part.first > at) cover.gaps.push_back({at, part.first});
    cover.parts.push_back(part);
    at = part.last;
  }
  if (at < units.last) cover.gaps.push_back({at, units.last});
  return cover;
}

class FileExchange : public Exchange {
 public:
  FileExchange(std::string directory, std::vector<UnitRun> parts, uint32_t rank)
      : directory_(std::move(directory)), ranks_(std::move(parts)), rank_(rank) {}

  bool Shares(const Plan&, const Share& share, const PlannedScope& scope) const override {
    return share.Any(scope) && !share.Whole(scope);
  }

  bool Take(const SharedRound& round, Counter* counter) override {
    auto pause = std::chrono::milliseconds(10);
    for (;;) {
      if (counter->failed()) return false;
      const Cover cover = CoverOf(round.units, List(round));
      if (cover.gaps.empty()) {
        if (LoadAll(round, cover.parts, counter)) return true;
        continue;
      }
      bool counted = false;
      for (UnitRun part : Wanted(cover.gaps)) {
        const auto outcome = CountOne(round, part, counter);
        if (outcome == Outcome::kFailed) return false;
        if (outcome == Outcome::kBusy) continue;
        counted = true;
        break;
      }
      if (counted) continue;
      std::this_thread::sleep_for(pause);   // others are at all of them
      pause = std::min(2 * pause, std::chrono::milliseconds(500));
    }
  }

 private:
  enum class Outcome { kCounted, kBusy, kFailed };

  std::string Prefix(const SharedRound& round) const {
    return fmt::format("part-{}-{}-{}-", round.scope, round.round, round.claims ? "claims" : "counts");
  }
  std::string PathOf(const SharedRound& round, UnitRun part) const {
    return fmt::format("{}/{}{}-{}", directory_, Prefix(round), part.first, part.last);
  }

  std::vector<UnitRun> List(const SharedRound& round) const {
    std::vector<UnitRun> there;
    const std::string prefix = Prefix(round);
    for (const std::string& name : ListRankFiles(directory_)) {
      if (!name.starts_with(prefix)) continue;
      if (const auto part = ParseRun(std::string_view(name).substr(prefix.size()))) there.push_back(*part);
    }
    return there;
  }

  // False when one of them was damaged, or is not there any more; it is gone then.
  bool LoadAll(const SharedRound& round, const std::vector<UnitRun>& parts, Counter* counter) const {
    for (UnitRun part : parts) {
      const std::string path = PathOf(round, part);
      try {
        PartReader reader(path);
        counter->Load(part, [&](void* data, size_t bytes) { reader.Get(data, bytes); });
        reader.Finish();
      } catch (const Error& error) {
        // Another rank may have seen the same, and removed it already: then there is no such file, or a new one by now.
        const bool gone = error.code() == ErrorCode::kUsage;
        if (!gone && error.code() != ErrorCode::kBadInput) throw;
        if (!gone && TheOs().Unlink(path.c_str()) < 0 && errno != ENOENT) throw;
        counter->Clear();
        return false;
      }
    }
    return true;
  }

  // The gaps cut along the borders of ranks, ours first.
  std::vector<UnitRun> Wanted(const std::vector<UnitRun>& gaps) const {
    std::vector<UnitRun> wanted;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const UnitRun rank = ranks_[(rank_ + i) % ranks_.size()];
      for (UnitRun gap : gaps) {
        const UnitRun part{std::max(gap.first, rank.first), std::min(gap.last, rank.last)};
        if (part.first < part.last) wanted.push_back(part);
      }
    }
    return wanted;
  }

  Outcome CountOne(const SharedRound& round, UnitRun part, Counter* counter) const {
    const std::string path = PathOf(round, part), claim = path + ".claim";
    const Fd lock(TheOs().Open(claim.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0666));
    if (!lock) throw SystemError(errno, "create it", claim);
    // Without locks on this file system the same may be counted twice, which costs time only.
    if (TheOs().Flock(lock.get(), LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) return Outcome::kBusy;
    if (FileExists(path)) return Outcome::kCounted;
    if (!counter->Count(part)) return Outcome::kFailed;
    PartWriter writer(path);
    counter->Save(part, [&](const void* data, size_t bytes) { writer.Put(data, bytes); });
    writer.Finish();
    counter->Clear();
    TheOs().Unlink(claim.c_str());
    return Outcome::kCounted;
  }

  const std::string directory_;
  const std::vector<UnitRun> ranks_;
  const uint32_t rank_;
};

}  // namespace

std::unique_ptr<Exchange> NewFileExchange(std::string directory, std::vector<UnitRun> parts, uint32_t rank) {
  return std::make_unique<FileExchange>(std::move(directory), std::move(parts), rank);
}

}  // namespace braid
