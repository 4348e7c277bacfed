#include "pipeline/statistics_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <tuple>

#include "io/checksum.h"
#include "io/error.h"
#include "io/hf_cache.h"
#include "pipeline/manifest.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// So many earlier questions are kept per scope and model.
constexpr int kMostEarlier = 15;

// Hashes fields one after the other; strings with their length.
class KeyHash {
 public:
  void Reset() { sum_.Reset(); }
  void Add(uint64_t value) { sum_.Add(&value, sizeof(value)); }
  void Add(XXH128_hash_t value) { Add(value.high64), Add(value.low64); }
  void Add(std::string_view text) {
    Add(text.size());
    sum_.Add(text.data(), text.size());
  }
  XXH128_hash_t Result() { return sum_.Take(); }

 private:
  Checksum sum_;
};

// --- files ------------------------------------------------------------------------------------------------

// A file that changes again within a tick of its clock keeps its mtime, so it has to be older than that when it is
// opened. Ticks: at most 10 ms on Linux; 1 or 2 s on file systems that show by whole seconds.
bool MayChangeUnnoticed(const FileIdentity& identity, std::chrono::system_clock::time_point opened) {
  constexpr int64_t kSecond = 1'000'000'000;
  const int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(opened.time_since_epoch()).count();
  return identity.mtime_ns > now - (identity.mtime_ns % kSecond == 0 ? 2 * kSecond + kSecond / 10 : kSecond / 10);
}

// Nothing when it cannot be told apart from what it may become, or from what another time comes out of it.
std::optional<XXH128_hash_t> KeyOfFile(const Shard& shard, std::chrono::system_clock::time_point before_opening) {
  if (shard.stream != nullptr) return std::nullopt;
  KeyHash hash;
  if (const auto blob = BlobName(shard.path, shard.identity)) {
    hash.Add(*blob);
  } else {
    if (MayChangeUnnoticed(shard.identity, before_opening)) return std::nullopt;
    for (uint64_t part : {shard.identity.device, shard.identity.inode, static_cast<uint64_t>(shard.identity.mtime_ns)})
      hash.Add(part);
  }
  hash.Add(shard.identity.size);
  hash.Add(shard.header_sum);
  return hash.Result();
}

// Where the statistics of a model are kept.
std::string PathFor(const Plan& plan, ComparedModel of) {
  KeyHash hash;
  hash.Add(plan.model_scope ? "model" : "tensor");
  for (const int32_t c : {of.base, of.model}) {
    const Checkpoint& checkpoint = plan.checkpoints[static_cast<size_t>(c)];
    hash.Add(checkpoint.shards.size());
    for (const Shard& shard : checkpoint.shards) {
      std::error_code ignored;
      hash.Add(fs::weakly_canonical(shard.path, ignored).string());
    }
  }
  return fmt::format("{}/{}.stats", plan.statistics.directory, SumText(hash.Result()));
}

void MakeDirectories(const std::string& path) {
  if (path.empty() || FileExists(path)) return;
  MakeDirectories(fs::path(path).parent_path().string());
  if (TheOs().Mkdir(path.c_str(), 0777) < 0 && errno != EEXIST) throw SystemError(errno, "create it", path);
}

// --- scopes -----------------------------------------------------------------------------------------------

// What decides the statistics of one model in a scope, but for the question.
class ScopeKeys {
 public:
  explicit ScopeKeys(const Plan& plan) : plan_(plan) {}

  std::optional<XXH128_hash_t> Of(const PlannedScope& scope, size_t model) {
    hash_.Reset();
    hash_.Add(scope.elements);   // in model scope also those of tensors that are known to be unchanged
    for (uint32_t t : scope.tensors) {
      const PlannedTensor& tensor = plan_.tensors[t];
      hash_.Add(tensor.elements);
      if (!AddRows(tensor, 0) || !AddRows(tensor, model + 1)) return std::nullopt;
    }
    return hash_.Result();
  }

 private:
  // A source, or every source that the rows of one come from.
  bool AddRows(const PlannedTensor& tensor, size_t slot) {
    const RowMap* rows = tensor.RowsAt(slot);
    if (rows == nullptr) return AddSource(tensor.SourceAt(slot));
    hash_.Add("rows"), hash_.Add(slot), hash_.Add(rows->Sum());
    std::vector<bool> used(tensor.models.size() + 1);
    for (const RowRun& run : rows->runs()) {
      if (run.kind == RowRun::Kind::kCopy) used[run.slot] = true;
      for (uint64_t i = 0; run.kind == RowRun::Kind::kMean && i < run.count; ++i)
        for (const SourceRow& row : rows->mean(run.row + i)) used[row.slot] = true;
    }
    for (size_t s = 0; s < used.size(); ++s) {
      hash_.Add(used[s]);
      if (used[s] && !AddSource(tensor.SourceAt(s))) return false;
    }
    return true;
  }

  bool AddSource(const TensorSource& source) {
    hash_.Add(source.present());
    if (!source.present()) return true;
    const auto c = static_cast<size_t>(source.checkpoint);
    const CheckpointTensor& tensor = plan_.checkpoints[c].tensors[source.tensor];
    const std::optional<XXH128_hash_t>& file = plan_.statistics.files[c][tensor.shard];
    if (!file) return false;
    hash_.Add(*file);
    hash_.Add(tensor.info.offset);
    return true;
  }

  const Plan& plan_;
  KeyHash hash_;
};

// Which checkpoints a scope's statistics of model m are of, by the first tensor that has it; nothing where none does.
std::optional<ComparedModel> ComparedIn(const Plan& plan, const PlannedScope& scope, size_t m) {
  for (uint32_t t : scope.tensors) {
    const PlannedTensor& tensor = plan.tensors[t];
    if (tensor.base.present() && tensor.models[m].present())
      return ComparedModel{tensor.base.checkpoint, tensor.models[m].checkpoint};
  }
  return std::nullopt;
}

// The models of a scope, or of nothing that is merged.
size_t ModelsIn(const Plan& plan, const PlannedScope& scope) {
  const PlannedTensor& first = plan.tensors[scope.tensors.front()];
  return scope.elements == 0 || first.action != TensorAction::kMerge ? 0 : first.models.size();
}

// The scopes in which one model's threshold is asked for, by their keys.
class ScopeIndex {
 public:
  struct Entry {
    XXH128_hash_t key;
    uint32_t scope, model;   // the model's place in the scope
    bool keep_equals;
    uint64_t asked;
  };

  void Add(const Entry& entry) { entries_.push_back(entry); }
  void Sort() {
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return Order(a.key) < Order(b.key); });
  }
  std::span<const Entry> all() const { return entries_; }
  // Several where output tensors have the same sources.
  std::span<const Entry> Find(XXH128_hash_t key) const {
    const auto range = std::equal_range(entries_.begin(), entries_.end(), Entry{key, 0, 0, false, 0},
                                        [](const Entry& a, const Entry& b) { return Order(a.key) < Order(b.key); });
    return {range.first, range.second};
  }

 private:
  static std::tuple<uint64_t, uint64_t> Order(XXH128_hash_t key) { return {key.high64, key.low64}; }
  std::vector<Entry> entries_;
};

std::map<ComparedModel, ScopeIndex> IndexScopes(const Plan& plan) {
  std::map<ComparedModel, ScopeIndex> indices;
  ScopeKeys keys(plan);
  for (uint32_t s = 0; s < plan.scopes.size(); ++s) {
    const PlannedScope& scope = plan.scopes[s];
    if (ModelsIn(plan, scope) == 0) continue;
    const std::unique_ptr<Merger> merger = plan.MakeMerger(scope, Approach::kPlain);
    for (uint32_t m = 0; m < ModelsIn(plan, scope); ++m) {
      const ModelStatistics question = merger->Statistics(m);
      if (question.asked == 0) continue;
      const auto of = ComparedIn(plan, scope, m);
      const auto key = keys.Of(scope, m);
      if (of && key) indices[*of].Add({*key, s, m, question.keep_equals, question.asked});
    }
  }
  for (auto& [of, index] : indices) index.Sort();
  return indices;
}

// --- records ----------------------------------------------------------------------------------------------

bool MakesSense(const StatisticsRecord& record, std::span<const BinCount> bins, uint64_t elements) {
  uint64_t counted = 0;
  for (const BinCount& bin : bins) {
    if (bin.count > elements - counted) return false;
    counted += bin.count;
  }
  const bool quota = record.quota == Merger::kNoQuota || record.quota <= elements;
  return record.cut_key <= kNanKey && record.kept <= elements && quota;
}

// The first record that answers goes: newer ones come first.
void Use(const StatisticsRecord& record, std::span<const BinCount> bins, const ScopeIndex::Entry& entry,
         ModelStatistics* known) {
  known->asked = entry.asked;
  known->keep_equals = entry.keep_equals;
  if (!bins.empty()) {
    if (std::exchange(known->has_bin, true)) return;
    known->bin = FindCriticalBin(bins, entry.asked);
  } else {
    const bool same_question =
        record.asked == entry.asked && ((record.flags & StatisticsRecord::kKeepEquals) != 0) == entry.keep_equals;
    if (!same_question || std::exchange(known->has_threshold, true)) return;
    known->all_zero = (record.flags & StatisticsRecord::kAllZero) != 0;
    known->cut = {.key = record.cut_key, .index = record.cut_index};
    known->quota = record.quota, known->kept = record.kept;
    known->has_kept_norm = (record.flags & StatisticsRecord::kKeptNorm) != 0, known->kept_norm = record.kept_norm;
  }
  if ((record.flags & StatisticsRecord::kNorm) != 0) known->has_norm = true, known->norm = record.norm;
}

StatisticsRecord RecordOf(XXH128_hash_t scope, const ModelStatistics& found) {
  uint32_t flags = 0;
  if (found.keep_equals) flags |= StatisticsRecord::kKeepEquals;
  if (found.all_zero) flags |= StatisticsRecord::kAllZero;
  if (found.has_norm) flags |= StatisticsRecord::kNorm;
  if (found.has_kept_norm) flags |= StatisticsRecord::kKeptNorm;
  return {.scope = scope, .asked = found.asked, .kept = found.kept, .cut_index = found.cut.index, .quota = found.quota,
          .norm = found.norm, .kept_norm = found.kept_norm, .cut_key = found.cut.key, .flags = flags};
}

void LoadModel(Plan* plan, ComparedModel of, const ScopeIndex& index) {
  const std::string path = PathFor(*plan, of);
  try {
    const auto reader = StatisticsReader::Open(path);
    if (!reader) return;
    reader->ForEach([&](const StatisticsRecord& record, std::span<const BinCount> bins) {
      for (const ScopeIndex::Entry& entry : index.Find(record.scope)) {
        PlannedScope& scope = plan->scopes[entry.scope];
        if (!MakesSense(record, bins, scope.elements)) continue;
        if (scope.known.empty()) scope.known.resize(ModelsIn(*plan, scope));
        Use(record, bins, entry, &scope.known[entry.model]);
      }
    });
  } catch (const Error& error) {
    for (const ScopeIndex::Entry& entry : index.all())
      if (PlannedScope& scope = plan->scopes[entry.scope]; !scope.known.empty()) scope.known[entry.model] = {};
    const bool damaged = error.code() == ErrorCode::kBadInput;
    plan->warnings.push_back(fmt::format("statistics cache: {}: {}{}", path, error.message(),
                                         damaged ? "; what it held is found anew" : "; it is not used"));
  }
}

// Answers to other questions of the same files; those of files that are no more are left behind.
void CopyEarlier(const Plan& plan, ComparedModel of, const ScopeIndex& index, StatisticsWriter* writer) {
  std::vector<std::pair<uint8_t, bool>> copied(plan.scopes.size());   // answers; a histogram
  std::optional<StatisticsReader> reader;
  try {
    reader = StatisticsReader::Open(PathFor(plan, of));
  } catch (const Error&) {
    return;   // damaged: told when it was loaded
  }
  if (!reader) return;
  reader->ForEach([&](const StatisticsRecord& record, std::span<const BinCount> bins) {
    const auto scopes = index.Find(record.scope);
    if (scopes.empty() || !writer->HasRoom()) return;
    auto& [answers, histogram] = copied[scopes.front().scope];
    if (bins.empty() ? answers++ < kMostEarlier : !std::exchange(histogram, true)) writer->Add(record, bins);
  });
}

}  // namespace

void LoadStatistics(Plan* plan, const std::string& directory, std::chrono::system_clock::time_point before_opening) {
  plan->statistics.directory = directory;
  for (const Checkpoint& checkpoint : plan->checkpoints) {
    auto& files = plan->statistics.files.emplace_back();
    for (const Shard& shard : checkpoint.shards) files.push_back(KeyOfFile(shard, before_opening));
  }
  if (!plan->relative) return;
  for (const auto& [of, index] : IndexScopes(*plan)) LoadModel(plan, of, index);
}

StatisticsKeeper::StatisticsKeeper(const Plan& plan) : plan_(plan) {}

StatisticsKeeper::~StatisticsKeeper() = default;

uint64_t StatisticsKeeper::MemoryBytes(const Plan& plan) {
  if (plan.statistics.directory.empty()) return 0;
  std::set<ComparedModel> models;
  for (const PlannedScope& scope : plan.scopes)
    for (size_t m = 0; m < ModelsIn(plan, scope); ++m)
      if (const auto of = ComparedIn(plan, scope, m)) models.insert(*of);
  return models.size() * (StatisticsWriter::kBufferBytes + 2048);
}

// A failure ends the keeping of this model's statistics, not the merge.
template <typename Body>
void StatisticsKeeper::Guarded(ComparedModel of, Body body) {
  try {
    body();
  } catch (const Error& error) {
    models_[of].writer.reset();
    // The same for all models, mostly.
    if (warnings_.empty()) warnings_.push_back(fmt::format("statistics are not kept: {}", error.what()));
  }
}

void StatisticsKeeper::Keep(const PlannedScope& scope, Merger* merger) {
  if (plan_.statistics.directory.empty()) return;
  ScopeKeys keys(plan_);
  for (size_t m = 0; m < ModelsIn(plan_, scope); ++m) {
    const ModelStatistics found = merger->Statistics(m);
    const std::vector<BinCount> bins = merger->TakeHighHalves(m);
    if (found.asked == 0) continue;
    const ModelStatistics known = scope.known.empty() ? ModelStatistics() : scope.known[m];
    const bool is_new = found.has_threshold && !(known.has_threshold && (known.has_kept_norm || !found.has_kept_norm));
    if (!is_new && bins.empty()) continue;
    const auto of = ComparedIn(plan_, scope, m);
    const auto key = keys.Of(scope, m);
    if (!of || !key) continue;
    std::lock_guard lock(mutex_);
    Guarded(*of, [&] {
      if (is_new) Add(*of, RecordOf(*key, found), {});
      if (bins.empty()) return;
      StatisticsRecord histogram{.scope = *key, .norm = found.norm};
      if (found.has_norm) histogram.flags = StatisticsRecord::kNorm;
      Add(*of, histogram, bins);
    });
  }
}

void StatisticsKeeper::Add(ComparedModel of, const StatisticsRecord& record, std::span<const BinCount> bins) {
  OfModel& its = models_[of];
  if (!std::exchange(its.opened, true)) {
    MakeDirectories(plan_.statistics.directory);
    its.writer = StatisticsWriter::Open(PathFor(plan_, of));
  }
  if (its.writer != nullptr && its.writer->HasRoom()) its.writer->Add(record, bins);
}

void StatisticsKeeper::Commit() {
  std::lock_guard lock(mutex_);
  if (models_.empty()) return;
  const std::map<ComparedModel, ScopeIndex> indices = IndexScopes(plan_);
  for (auto& [of, its] : models_) {
    if (its.writer == nullptr) continue;
    Guarded(of, [&] {
      CopyEarlier(plan_, of, indices.at(of), its.writer.get());
      its.writer->Commit();
    });
    its.writer.reset();
  }
}

}  // namespace braid
