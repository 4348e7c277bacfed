#include "io/spot_reader.h"

#include <cstring>

namespace braid {

SpotReader::SpotReader(const std::string& path, const FileIdentity& expected, bool cached) : path_(path) {
  if (!cached) {
    uncached_.emplace(path, expected);
    return;
  }
  FileIdentity identity;
  cached_ = OpenForReading(path, &identity);
  if (identity != expected) throw InputChanged(path, "the file changed after it was first looked at");
}

void SpotReader::Read(uint64_t offset, size_t bytes, void* out) {
  if (!uncached_) return ReadExactly(cached_.get(), out, bytes, offset, path_);
  if (bytes > kMostBytes) throw Error(ErrorCode::kInternal, "a spot is too large").Path(path_);
  const auto [begin, skip, whole] = DirectFile::SupersetOf(offset, bytes);
  uncached_->Read(begin, whole, skip + bytes, blocks_);
  std::memcpy(out, blocks_ + skip, bytes);
}

}  // namespace braid
