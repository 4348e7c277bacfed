// The sources of a plan as mapped memory. Files are opened when the I/O thread first needs them; windows are mapped
// tile by tile and released behind the cursor; the page cache of what nobody reads again is given back, unless the
// file was in the cache before the merge began: then somebody wants it there.
//
// Map is for the I/O thread; ReadSpot and Used are for any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "io/mapped_file.h"
#include "pipeline/plan.h"

namespace braid {

class SourceFiles {
 public:
  explicit SourceFiles(const Plan& plan);
  ~SourceFiles();

  // A window over bytes [begin, begin + bytes) of the source's tensor, made resident. Throws Error.
  MappedWindow Map(const TensorSource& source, uint64_t begin, uint64_t bytes);

  // A few bytes from somewhere in the tensor, without readahead, apart from the maps' cursor. Throws Error.
  void ReadSpot(const TensorSource& source, uint64_t begin, uint64_t bytes, std::byte* out);

  // The merge round has used these bytes: no later round reads them.
  void Used(const TensorSource& source, uint64_t begin, uint64_t bytes);

  // Throws Error(kInputChanged) if any opened file is not what it was.
  void CheckUnchanged() const;

 private:
  struct File;
  File& FileOf(const TensorSource& source) const;

  const Plan& plan_;
  std::vector<std::vector<std::unique_ptr<File>>> files_;  // [checkpoint][shard]
};

}  // namespace braid
