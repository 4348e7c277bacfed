// How a source's bytes get into memory: through maps of the page cache, past it with O_DIRECT, or as they come.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/file_system.h"

namespace braid {

enum class ReadBackend : uint8_t { kMapped, kDirect, kStream };
std::string_view ReadBackendName(ReadBackend backend);  // "mapped", "direct", "stream"

// What the user wants: --io.
enum class ReadMode : uint8_t { kAuto, kMapped, kDirect };

struct ReadChoice {
  ReadBackend backend = ReadBackend::kMapped;
  std::string why;  // "ext4", "NFS", "Linux 5.15", "--io direct", "standard input"
};

// kAuto: mapped, but direct on network file systems and before Linux 6.1, which fault maps in a few pages at a time.
ReadChoice ChooseReadBackend(ReadMode mode, const FileSystem& file_system, KernelVersion kernel);

}  // namespace braid
