#include "pipeline/source_files.h"

#include <algorithm>
#include <mutex>

namespace braid {

struct SourceFiles::File {
  const Shard* shard = nullptr;
  std::unique_ptr<MappedFile> map;
  std::once_flag spots_opened;
  std::unique_ptr<SpotReader> spots;
  bool cached = false;  // when the merge began
  // Bytes per 8 MiB window that the merge round still has to read; a window is evicted when it reaches 0.
  std::vector<std::atomic<int64_t>> unread;
};

namespace {

template <typename Visit>
void ForEachWindow(uint64_t offset, uint64_t bytes, Visit visit) {
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    const uint64_t window = at / MappedFile::kEvictWindow;
    const uint64_t here = std::min(end, (window + 1) * MappedFile::kEvictWindow) - at;
    visit(window, static_cast<int64_t>(here));
    at += here;
  }
}

}  // namespace

SourceFiles::SourceFiles(const Plan& plan) : plan_(plan), files_(plan.checkpoints.size()) {
  for (size_t c = 0; c < files_.size(); ++c)
    for (const Shard& shard : plan.checkpoints[c].shards) {
      auto file = std::make_unique<File>();
      file->shard = &shard;
      file->unread = std::vector<std::atomic<int64_t>>(shard.identity.size / MappedFile::kEvictWindow + 1);
      files_[c].push_back(std::move(file));
    }
  for (const PlannedTensor& tensor : plan.tensors) {
    const auto count = [&](const TensorSource& source) {
      if (!source.present()) return;
      File& file = FileOf(source);
      const TensorInfo& info = plan.Info(source);
      ForEachWindow(info.offset, info.bytes, [&](uint64_t window, int64_t bytes) { file.unread[window] += bytes; });
    };
    count(tensor.base);
    for (const TensorSource& source : tensor.models) count(source);
  }
}

SourceFiles::~SourceFiles() = default;

SourceFiles::File& SourceFiles::FileOf(const TensorSource& source) const {
  const auto checkpoint = static_cast<size_t>(source.checkpoint);
  return *files_[checkpoint][plan_.checkpoints[checkpoint].tensors[source.tensor].shard];
}

MappedWindow SourceFiles::Map(const TensorSource& source, uint64_t begin, uint64_t bytes) {
  File& file = FileOf(source);
  if (file.map == nullptr) {
    file.map = std::make_unique<MappedFile>(file.shard->path, file.shard->identity);
    file.cached = file.map->CachedShare() >= 0.5;
  }
  MappedWindow window = file.map->Map(plan_.Info(source).offset + begin, bytes);
  window.Touch(file.cached);
  return window;
}

void SourceFiles::ReadSpot(const TensorSource& source, uint64_t begin, uint64_t bytes, std::byte* out) {
  File& file = FileOf(source);
  std::call_once(file.spots_opened,
                 [&] { file.spots = std::make_unique<SpotReader>(file.shard->path, file.shard->identity); });
  file.spots->Read(plan_.Info(source).offset + begin, bytes, out);
}

void SourceFiles::Used(const TensorSource& source, uint64_t begin, uint64_t bytes) {
  File& file = FileOf(source);
  if (file.cached) return;
  ForEachWindow(plan_.Info(source).offset + begin, bytes, [&](uint64_t window, int64_t here) {
    if (file.unread[window].fetch_sub(here) == here)
      file.map->Evict(window * MappedFile::kEvictWindow, MappedFile::kEvictWindow);
  });
}

void SourceFiles::CheckUnchanged() const {
  for (const auto& checkpoint : files_)
    for (const auto& file : checkpoint)
      if (file->map != nullptr) file->map->CheckUnchanged();
}

}  // namespace braid
