#include "pipeline/rank_job.h"

#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "io/checksum.h"
#include "io/error.h"
#include "io/shard_writer.h"
#include "pipeline/interrupt.h"
#include "pipeline/manifest.h"
#include "pipeline/rank_files.h"
#include "pipeline/rank_space.h"
#include "pipeline/recipe_writer.h"
#include "pipeline/run_internal.h"

namespace braid {
namespace {

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

}  // namespace

std::string RankKey(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                    const std::vector<OutputUnit>& units) {
  Checksum sum;
  const auto add = [&](std::string_view text) {
    const uint64_t size = text.size();
    sum.Add(&size, sizeof size), sum.Add(text.data(), text.size());
  };
  add(fingerprint), add(BRAID_VERSION), add(plan.recipe.text);
  add(TryWriteRecipe(plan.recipe, Syntax::kToml).value_or(""));
  add(CompressionName(plan.recipe.output.compress));
  add(options.copy_tokenizer ? "tokenizer" : ""), add(options.write_model_card ? "card" : "");
  for (const OutputUnit& unit : units) add(fmt::format("{} {} {}", unit.shard, unit.begin, unit.end));
  for (const Checkpoint& checkpoint : plan.checkpoints)
    for (const Shard& shard : checkpoint.shards)
      if (!shard.path.empty()) AddSamples(shard, &sum);   // a stage has none
  return SumText(sum.Take());
}

RankJob::RankJob(const Plan& plan, const std::string& fingerprint, const MergeOptions& options)
    : RankJob(plan, fingerprint, options, OutputUnits(plan)) {}

RankJob::RankJob(const Plan& plan, const std::string& fingerprint, const MergeOptions& options,
                 std::vector<OutputUnit> units)
    : plan_(plan), fingerprint_(fingerprint), options_(options),
      staging_(options.out, options.force, InputsOf(plan), RankKey(plan, fingerprint, options, units)),
      marks_(staging_.shared_directory(), std::move(units)) {
  for (const PlannedShard& shard : plan.shards) paths_.push_back(staging_.PathFor(FileOf(plan, shard)));
}

std::vector<std::string> RankJob::CheckSpace(uint64_t own_bytes) {
  try {
    return CheckSpaceOfRanks(plan_, marks_, paths_, own_bytes);
  } catch (...) {
    staging_.RemoveIfEmpty();
    throw;
  }
}

// Shards are gone, too, from when a rank has renamed them until it has removed the marks: it has the lock then.
std::vector<std::string> RankJob::ForgetGone(const std::atomic<int>& interrupt) const {
  if (!marks_.AnyGone(paths_)) return {};
  Fd lock;
  if (Lock(&lock, interrupt) == Turn::kPublished) throw RankFilesGone(marks_.directory());
  std::vector<std::string> names;
  for (uint32_t s : marks_.ForgetGone(paths_)) names.push_back(FileOf(plan_, plan_.shards[s]));
  return names;
}

// The checksums of tensors that several ranks wrote, from what they wrote.
GraphResult RankJob::Complete(const RankMarks::Found& found, const std::atomic<int>& interrupt) const {
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
    if (plan_.in_order)
      throw Error(ErrorCode::kBadInput, "the marks of the ranks do not have its checksum")
          .Path(path).Tensor(tensor.name).Hint("remove OUT.partial, and run all ranks again");
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
    const std::string hint = "remove OUT.partial, and run all ranks again";
    if (TheOs().Stat(paths_[s].c_str(), &status) < 0) {
      if (errno != ENOENT) throw SystemError(errno, "look at it", paths_[s]);
      throw Error(ErrorCode::kBadInput, "a rank has written this shard, and it is gone").Path(paths_[s]).Hint(hint);
    }
    // A compressed one appeared when it was complete.
    if (!plan_.in_order && static_cast<uint64_t>(status.st_size) != plan_.shards[s].bytes)
      throw Error(ErrorCode::kBadInput, fmt::format("it has {} bytes, not the {} that the ranks gave it",
                                                    status.st_size, plan_.shards[s].bytes))
          .Path(paths_[s]).Hint(hint);
  }
}

// Of a single file that is not compressed: it has the checksums.
void RankJob::WriteHeader(const GraphResult& result) const {
  const std::string header = FillChecksums(plan_.shards.front().header, fingerprint_, result.sums);
  const Fd file(TheOs().Open(paths_.front().c_str(), O_WRONLY | O_NOFOLLOW));
  if (!file) throw SystemError(errno, "open it", paths_.front());
  WriteExactly(file.get(), header.data(), header.size(), 0, paths_.front());
  if (TheOs().Fsync(file.get()) < 0) throw SystemError(errno, "make it durable", paths_.front());
}

// Waits for a rank that is about to publish.
RankJob::Turn RankJob::Lock(Fd* lock, const std::atomic<int>& interrupt) const {
  const std::string path = marks_.directory() + "/lock";
  *lock = Fd(TheOs().Open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0666));
  if (!*lock && errno == ENOENT) return Turn::kPublished;
  if (!*lock) throw SystemError(errno, "open it", path);
  while (TheOs().Flock(lock->get(), LOCK_EX | LOCK_NB) < 0) {
    if (errno != EWOULDBLOCK && errno != EAGAIN) return Turn::kNoLocks;
    ThrowIfInterrupted(interrupt);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return FileExists(path) ? Turn::kOurs : Turn::kPublished;   // by whoever had it
}

RankJob::Outcome RankJob::Publish(const std::atomic<int>& interrupt) {
  const auto missing = marks_.Missing();
  if (!missing) return Outcome::kByAnother;
  if (!missing->empty()) return Outcome::kIncomplete;
  Fd lock;
  const Turn turn = Lock(&lock, interrupt);
  if (turn == Turn::kPublished) return Outcome::kByAnother;
  if (turn == Turn::kNoLocks)
    throw Error(SystemError(errno, "lock it", marks_.directory() + "/lock"))
        .Hint("every unit is done; mount this file system with locks that all its machines see (Lustre: flock, NFS: "
              "without nolock), or copy the output elsewhere, and run any rank again");
  // We are alone now. What a rank that died here has left is written again.
  std::vector<std::string> shards;
  for (const std::string& path : paths_) shards.push_back(std::filesystem::path(path).filename().string());
  CheckShards();
  const GraphResult result = Complete(marks_.Read(plan_.tensors.size()), interrupt);
  staging_.KeepOnly(shards);
  if (!staging_.single_file()) WriteSideFiles(plan_, options_, result, fingerprint_, &staging_);
  else if (!plan_.in_order) WriteHeader(result);
  ThrowIfInterrupted(interrupt);
  staging_.Publish(LastFile(plan_));
  return Outcome::kPublished;
}

}  // namespace braid
