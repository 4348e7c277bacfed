#include "pipeline/read_backend.h"

#include <fmt/format.h>

namespace braid {
namespace {

// File systems began to read large folios between 5.18 (XFS) and 6.16 (ext4), so that one fault maps up to megabytes.
// 6.1 is the oldest kernel of a system that we build for (Debian 12).
constexpr KernelVersion kMapsWell = {6, 1};

}  // namespace

std::string_view ReadBackendName(ReadBackend backend) {
  if (backend == ReadBackend::kStream) return "stream";
  return backend == ReadBackend::kDirect ? "direct" : "mapped";
}

ReadChoice ChooseReadBackend(ReadMode mode, const FileSystem& file_system, KernelVersion kernel) {
  if (mode == ReadMode::kMapped) return {ReadBackend::kMapped, "--io mapped"};
  if (mode == ReadMode::kDirect) return {ReadBackend::kDirect, "--io direct"};
  if (file_system.network) return {ReadBackend::kDirect, std::string(file_system.name)};
  if (kernel < kMapsWell) return {ReadBackend::kDirect, fmt::format("Linux {}.{}", kernel.major, kernel.minor)};
  return {ReadBackend::kMapped, file_system.name.empty() ? "a local file system" : std::string(file_system.name)};
}

}  // namespace braid
