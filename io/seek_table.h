// The seek table of the zstd seekable format, 0.1.0 (contrib/seekable_format of zstd): a skippable frame at the end of
// a file that says how long each of its frames is. All numbers are little-endian:
//
//   u32 0x184D2A5E, u32 bytes that follow, {u32 compressed, u32 content} of each frame, u32 frames, u8 0,
//   u32 0x8F92EAB1
//
// The u8 has bit 7 set when entries have a third number, a checksum, which we skip: frames have one themselves.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace braid {

struct SeekEntry {
  uint32_t compressed = 0, content = 0;   // bytes of a frame and of what is in it
};

// The last bytes of a file of these frames. Throws Error(kUsage) when there are more frames than the format knows
// (134,217,728).
std::string SeekTableBytes(const std::vector<SeekEntry>& entries);

// The table of an open file of `file_bytes` bytes. Nothing: the file does not end with a seek table, so it can only be
// read from its beginning. Throws Error(kBadInput) for a table that cannot be true: the frames in front of it must be
// exactly as long as it says.
std::optional<std::vector<SeekEntry>> ReadSeekTable(int fd, uint64_t file_bytes, const std::string& path);

}  // namespace braid
