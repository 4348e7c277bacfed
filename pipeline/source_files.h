// The sources of a plan as mapped memory. Files are mapped when the I/O thread first needs them; tiles are released
// behind the cursor; the page cache of what nobody reads again is given back, unless the file was in the cache
// before the merge began: then somebody wants it there.
//
// Open and Touch are for the I/O thread; Address and Release for any thread, for files that are open.
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

  // Maps the file of this source, if it is not mapped yet. Throws Error(kInputChanged).
  void Open(const TensorSource& source);

  // Makes bytes [begin, begin + bytes) of the source's tensor resident.
  void Touch(const TensorSource& source, uint64_t begin, uint64_t bytes);

  const std::byte* Address(const TensorSource& source, uint64_t begin) const;

  // Unmaps them. `last_use`: no later round reads them.
  void Release(const TensorSource& source, uint64_t begin, uint64_t bytes, bool last_use);

  // Throws Error(kInputChanged) if any mapped file is not what it was.
  void CheckUnchanged() const;

 private:
  struct File;
  File& FileOf(const TensorSource& source) const;
  uint64_t OffsetOf(const TensorSource& source, uint64_t begin) const { return plan_.Info(source).offset + begin; }

  const Plan& plan_;
  std::vector<std::vector<std::unique_ptr<File>>> files_;  // [checkpoint][shard]
};

}  // namespace braid
