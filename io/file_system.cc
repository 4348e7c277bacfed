#include "io/file_system.h"

#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>

#include "io/os.h"

namespace braid {
namespace {

struct Known {
  uint32_t magic;
  FileSystem file_system;
};

constexpr std::array kKnown = {
    Known{0x00006969, {"NFS", true}},
    Known{0x0000517b, {"SMB", true}},
    Known{0xff534d42, {"CIFS", true}},
    Known{0xfe534d42, {"SMB", true}},
    Known{0x0bd00bd0, {"Lustre", true}},
    Known{0x00c36400, {"CephFS", true}},
    Known{0x65735546, {"FUSE", true}},  // and virtiofs
    Known{0x01021997, {"9p", true}},
    Known{0x47504653, {"GPFS", true}},
    Known{0x19830326, {"BeeGFS", true}},
    Known{0x5346414f, {"AFS", true}},
    Known{0x6b414653, {"AFS", true}},
    Known{0x73757245, {"Coda", true}},
    Known{0xaad7aaea, {"PanFS", true}},
    Known{0x20030528, {"OrangeFS", true}},
    Known{0x01161970, {"GFS2", true}},
    Known{0x7461636f, {"OCFS2", true}},
    Known{0x786f4256, {"vboxsf", true}},
    Known{0xbacbacbc, {"vmhgfs", true}},
    Known{0x0000ef53, {"ext4"}},
    Known{0x58465342, {"XFS"}},
    Known{0x9123683e, {"btrfs"}},
    Known{0xf2f52010, {"F2FS"}},
    Known{0x2fc12fc1, {"ZFS"}},
    Known{0x01021994, {"tmpfs"}},
    Known{0x794c7630, {"overlayfs"}},
};

}  // namespace

FileSystem FileSystemOf(const std::string& path) {
  struct statfs status;
  if (TheOs().Statfs(path.c_str(), &status) < 0) return {};
  const auto magic = static_cast<uint32_t>(status.f_type);
  const auto known = std::find_if(kKnown.begin(), kKnown.end(), [&](const Known& k) { return k.magic == magic; });
  return known == kKnown.end() ? FileSystem{} : known->file_system;
}

KernelVersion ParseKernelVersion(std::string_view release) {
  constexpr KernelVersion kNew = {std::numeric_limits<int>::max(), 0};
  KernelVersion version;
  const char* const end = release.data() + release.size();
  const auto [dot, no_major] = std::from_chars(release.data(), end, version.major);
  if (no_major != std::errc() || dot == end || *dot != '.') return kNew;
  return std::from_chars(dot + 1, end, version.minor).ec == std::errc() ? version : kNew;
}

KernelVersion RunningKernel() {
  utsname name;
  return ParseKernelVersion(uname(&name) == 0 ? name.release : "");
}

}  // namespace braid
