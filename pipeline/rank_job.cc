#include "pipeline/rank_job.h"

#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <thread>

#include "io/checksum.h"
#include "io/error.h"
#include "io/json.h"
#include "io/shard_writer.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"
#include "pipeline/rank_files.h"
#include "pipeline/recipe_writer.h"
#include "pipeline/run_internal.h"

namespace braid {
namespace {

constexpr std::string_view kUnits = "units-";
constexpr uint64_t kPiece = 1 << 20;    // of a tensor that is read back
constexpr uint64_t kSamples = 4, kSampleBytes = 4096;   // per shard of a source

// A model that was trained further has the same headers. Its elements differ nearly everywhere.
void AddSamples(const Shard& shard, Checksum* sum) {
  const Fd file = OpenForReading(shard.path);
  std::vector<std::byte> bytes(kSampleBytes);
  for (uint64_t i = 0; i < kSamples; ++i) {
    const uint64_t size = std::min<uint64_t>(kSampleBytes, shard.identity.size);
    const uint64_t at = (shard.identity.size - size) / kSamples * (i + 1);
    ReadExactly(file.get(), bytes.data(), size, at, shard.path);
    sum->Add(bytes.data(), size);
  }
}

Error Damaged(const std::string& path) {
  return Error(ErrorCode::kBadInput, "this is not what a rank leaves when a unit is done")
      .Path(path)
      .Hint("remove it, and run the rank again");
}

XXH128_hash_t SumOf(const std::string& text, const std::string& path) {
  XXH128_hash_t sum{};
  const auto half = [&](size_t at, XXH64_hash_t* out) {
    const char* const end = text.data() + at + 16;
    if (std::from_chars(text.data() + at, end, *out, 16).ptr != end) throw Damaged(path);
  };
  if (text.size() != 32) throw Damaged(path);
  half(0, &sum.high64), half(16, &sum.low64);
  return sum;
}

}  // namespace

std::string RankKey(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::vector<OutputUnit>& units) {
  Checksum sum;
  const auto add = [&](std::string_view text) {
    const uint64_t size = text.size();
    sum.Add(&size, sizeof size), sum.Add(text.data(), text.size());
  };
  add(fingerprint), add(BRAID_VERSION), add(plan.recipe.text), add(TryWriteRecipe(plan.recipe, Syntax::kToml).value_or(""));
  add(options.copy_tokenizer ? "tokenizer" : ""), add(options.write_model_card ? "card" : "");
  for (const OutputUnit& unit : units) add(fmt::format("{} {} {}", unit.shard, unit.begin, unit.end));
  for (const Checkpoint& checkpoint : plan.checkpoints)
    for (const Shard& shard : checkpoint.shards)
      if (!shard.path.empty()) AddSamples(shard, &sum);   // a stage has none
  return SumText(sum.Take());
}

RankJob::RankJob(const Plan& plan, const std::string& fingerprint, const MergeOptions& options)
    : plan_(plan), fingerprint_(fingerprint), options_(options), units_(OutputUnits(plan)),
      staging_(options.out, options.force, InputsOf(plan), RankKey(plan, fingerprint, options, units_)) {
  for (const PlannedShard& shard : plan.shards) paths_.push_back(staging_.PathFor(shard.name));
}

std::string RankJob::MarkPath(UnitRun run) const {
  return fmt::format("{}/{}{}-{}", directory(), kUnits, run.first, run.last);
}

// Every run of units that is done; after another number of ranks they may overlap.
std::vector<UnitRun> RankJob::Marks() const {
  std::vector<UnitRun> marks;
  for (const std::string& name : ListRankFiles(directory())) {
    const auto run = name.starts_with(kUnits) ? ParseRun(std::string_view(name).substr(kUnits.size())) : std::nullopt;
    if (run && run->last <= units_.size()) marks.push_back(*run);
  }
  return marks;
}

std::optional<std::vector<uint32_t>> RankJob::Missing() const {
  std::vector<bool> done(units_.size());
  try {
    for (UnitRun run : Marks()) std::fill(done.begin() + run.first, done.begin() + run.last, true);
  } catch (const RankFilesGone&) {
    return std::nullopt;
  }
  std::vector<uint32_t> missing;
  for (uint32_t u = 0; u < done.size(); ++u)
    if (!done[u]) missing.push_back(u);
  return missing;
}

void RankJob::Mark(const WrittenUnits& written) const {
  const auto before = [](const OutputUnit& a, const OutputUnit& b) {
    return a.shard != b.shard ? a.shard < b.shard : a.begin < b.begin;
  };
  std::vector<UnitRun> runs;
  for (const OutputUnit& unit : written.units) {
    const auto u = static_cast<uint32_t>(std::lower_bound(units_.begin(), units_.end(), unit, before) - units_.begin());
    if (!runs.empty() && runs.back().last == u) ++runs.back().last;
    else runs.push_back({u, u + 1});
  }
  Json mark = {{"sums", Json::array()}};
  for (const auto& [tensor, sum] : written.sums) mark["sums"].push_back({tensor, SumText(sum)});
  if (written.alpha) mark["alpha"] = std::bit_cast<uint64_t>(*written.alpha);
  for (UnitRun run : runs) {
    const std::string text = mark.dump() + "\n";
    RankFile file(MarkPath(run));
    file.Append(text.data(), text.size());
    file.Commit();
    mark["sums"] = Json::array();   // once is enough
  }
}

RankJob::Found RankJob::ReadMarks() const {
  Found found;
  for (UnitRun run : Marks()) {
    const std::string path = MarkPath(run);
    const Json mark = ParseJson(ReadSmallFile(path, 1u << 28), path);
    if (!mark.is_object() || !mark.contains("sums") || !mark["sums"].is_array()) throw Damaged(path);
    for (const Json& entry : mark["sums"]) {
      const auto tensor = entry.is_array() && entry.size() == 2 ? AsSize(entry[0]) : std::nullopt;
      if (!tensor || *tensor >= plan_.tensors.size() || !entry[1].is_string()) throw Damaged(path);
      found.sums[static_cast<uint32_t>(*tensor)] = SumOf(entry[1], path);
    }
    if (!mark.contains("alpha")) continue;
    const auto alpha = AsSize(mark["alpha"]);
    if (!alpha) throw Damaged(path);
    found.alpha = std::bit_cast<double>(*alpha);
  }
  return found;
}

// The checksums of tensors that several ranks wrote, from what they wrote.
GraphResult RankJob::Complete(Found found, const std::atomic<int>& interrupt) const {
  GraphResult result;
  result.alpha = found.alpha;
  std::vector<std::byte> piece(kPiece);
  Checksum checksum;
  for (uint32_t t = 0; t < plan_.tensors.size(); ++t) {
    const PlannedTensor& tensor = plan_.tensors[t];
    if (const auto known = found.sums.find(t); known != found.sums.end() || tensor.bytes == 0) {
      result.sums.push_back(tensor.bytes == 0 ? XXH3_128bits(nullptr, 0) : known->second);
      continue;
    }
    const std::string& path = paths_[tensor.shard];
    const Fd file = OpenForReading(path);
    for (uint64_t at = 0; at < tensor.bytes; at += kPiece) {
      ThrowIfInterrupted(interrupt);
      const uint64_t bytes = std::min(kPiece, tensor.bytes - at);
      ReadExactly(file.get(), piece.data(), bytes, tensor.offset + at, path);
      checksum.Add(piece.data(), bytes);
    }
    result.sums.push_back(checksum.Take());
  }
  return result;
}

void RankJob::CheckShards() const {
  for (size_t s = 0; s < paths_.size(); ++s) {
    struct stat status;
    if (TheOs().Stat(paths_[s].c_str(), &status) < 0) throw SystemError(errno, "look at it", paths_[s]);
    if (static_cast<uint64_t>(status.st_size) != plan_.shards[s].bytes)
      throw Error(ErrorCode::kBadInput, fmt::format("it has {} bytes, not the {} that the ranks gave it",
                                                    status.st_size, plan_.shards[s].bytes))
          .Path(paths_[s]).Hint("remove OUT.partial, and run all ranks again");
  }
}

// False when there is nothing left to publish. Waits for a rank that is about to.
bool RankJob::Lock(Fd* lock, const std::atomic<int>& interrupt) const {
  const std::string path = directory() + "/lock";
  *lock = Fd(TheOs().Open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0666));
  if (!*lock && errno == ENOENT) return false;
  if (!*lock) throw SystemError(errno, "open it", path);
  while (TheOs().Flock(lock->get(), LOCK_EX | LOCK_NB) < 0) {
    if (errno != EWOULDBLOCK && errno != EAGAIN)
      throw Error(SystemError(errno, "lock it", path))
          .Hint("every unit is done; mount this file system with locks that all its machines see (Lustre: flock, NFS: "
                "without nolock), or copy the output elsewhere, and run any rank again");
    ThrowIfInterrupted(interrupt);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return FileExists(path);   // otherwise whoever had it has published
}

RankJob::Outcome RankJob::Publish(const std::atomic<int>& interrupt) {
  const auto missing = Missing();
  if (!missing) return Outcome::kByAnother;
  if (!missing->empty()) return Outcome::kIncomplete;
  Fd lock;
  if (!Lock(&lock, interrupt)) return Outcome::kByAnother;
  // We are alone now. What a rank that died here has left is written again.
  std::vector<std::string> shards;
  for (const PlannedShard& shard : plan_.shards) shards.push_back(shard.name);
  CheckShards();
  const GraphResult result = Complete(ReadMarks(), interrupt);
  staging_.KeepOnly(shards);
  if (staging_.single_file()) {
    const std::string header = FillChecksums(plan_.shards.front().header, fingerprint_, result.sums);
    const Fd file(TheOs().Open(paths_.front().c_str(), O_WRONLY | O_NOFOLLOW));
    if (!file) throw SystemError(errno, "open it", paths_.front());
    WriteExactly(file.get(), header.data(), header.size(), 0, paths_.front());
    if (TheOs().Fsync(file.get()) < 0) throw SystemError(errno, "make it durable", paths_.front());
  } else {
    WriteSideFiles(plan_, options_, result, fingerprint_, &staging_);
  }
  ThrowIfInterrupted(interrupt);
  staging_.Publish(LastFile(plan_));
  return Outcome::kPublished;
}

}  // namespace braid
