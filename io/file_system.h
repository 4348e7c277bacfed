// What kind of file system a file lies on, and which kernel reads it: what decides how to read best.
#pragma once

#include <compare>
#include <string>
#include <string_view>

namespace braid {

struct FileSystem {
  std::string_view name;  // "ext4"; empty when we do not know it
  bool network = false;   // across a network, another machine's memory, or a process of the user's (FUSE)
};

// By the magic number of statfs. A path that cannot be asked about lies on an unknown one. Any thread.
FileSystem FileSystemOf(const std::string& path);

struct KernelVersion {
  int major = 0, minor = 0;
  auto operator<=>(const KernelVersion&) const = default;
};

// "6.1.0-18-amd64" -> 6.1; what is no version counts as new.
KernelVersion ParseKernelVersion(std::string_view release);
KernelVersion RunningKernel();

}  // namespace braid
