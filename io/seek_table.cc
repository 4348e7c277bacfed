#include "io/seek_table.h"

#include <fmt/format.h>

#include <array>

#include "io/error.h"
#include "io/os.h"

namespace braid {
namespace {

constexpr uint32_t kSkippableMagic = 0x184D2A5E, kSeekableMagic = 0x8F92EAB1;
constexpr uint64_t kHeaderBytes = 8, kEntryBytes = 8, kChecksumBytes = 4, kFooterBytes = 9;
constexpr uint8_t kHasChecksums = 0x80, kReserved = 0x7c;
constexpr uint64_t kMostEntries = 0x8000000;
// 25 TB of a shard in frames of 2 MiB, and as much memory as a header may take.
constexpr uint64_t kMostTableBytes = 100'000'000;

void PutU32(uint32_t value, std::string* out) {
  for (int i = 0; i < 4; ++i) *out += static_cast<char>(value >> (8 * i) & 0xff);
}

uint32_t GetU32(const char* from) {
  uint32_t value = 0;
  for (int i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(from[i]);
  return value;
}

}  // namespace

std::string SeekTableBytes(const std::vector<SeekEntry>& entries) {
  if (entries.size() > kMostEntries)
    throw Error(ErrorCode::kUsage, fmt::format("one shard would have {} compressed frames; {} are the limit",
                                               entries.size(), kMostEntries))
        .Hint("use a smaller --shard-size");
  std::string out;
  out.reserve(kHeaderBytes + entries.size() * kEntryBytes + kFooterBytes);
  PutU32(kSkippableMagic, &out);
  PutU32(static_cast<uint32_t>(entries.size() * kEntryBytes + kFooterBytes), &out);
  for (const SeekEntry& entry : entries) PutU32(entry.compressed, &out), PutU32(entry.content, &out);
  PutU32(static_cast<uint32_t>(entries.size()), &out);
  out += '\0';
  PutU32(kSeekableMagic, &out);
  return out;
}

std::optional<std::vector<SeekEntry>> ReadSeekTable(int fd, uint64_t file_bytes, const std::string& path) {
  const auto bad = [&](uint64_t offset, std::string message) {
    return Error(ErrorCode::kBadInput, "the seek table at its end " + std::move(message))
        .Path(path).Offset(offset).Hint("it is truncated or damaged: copy, download or write it again");
  };
  if (file_bytes < kHeaderBytes + kFooterBytes) return std::nullopt;
  const uint64_t footer_at = file_bytes - kFooterBytes;
  std::array<char, kFooterBytes> footer;
  ReadExactly(fd, footer.data(), footer.size(), footer_at, path);
  if (GetU32(footer.data() + 5) != kSeekableMagic) return std::nullopt;

  const uint64_t count = GetU32(footer.data());
  const auto flags = static_cast<uint8_t>(footer[4]);
  if ((flags & kReserved) != 0) throw bad(footer_at + 4, fmt::format("has unknown flags ({:#04x})", flags));
  const uint64_t stride = kEntryBytes + ((flags & kHasChecksums) != 0 ? kChecksumBytes : 0);
  const uint64_t table_bytes = kHeaderBytes + count * stride + kFooterBytes;   // 32 bits times 12: cannot overflow
  if (table_bytes > file_bytes)
    throw bad(footer_at, fmt::format("says {} frames, more than the file has room for", count));
  if (table_bytes > kMostTableBytes)
    throw bad(footer_at, fmt::format("has {} bytes; {} are the limit", table_bytes, kMostTableBytes));
  const uint64_t table_at = file_bytes - table_bytes;

  std::string text(table_bytes - kFooterBytes, '\0');
  ReadExactly(fd, text.data(), text.size(), table_at, path);
  if (GetU32(text.data()) != kSkippableMagic || GetU32(text.data() + 4) != table_bytes - kHeaderBytes)
    throw bad(table_at, fmt::format("does not begin where its {} frames say", count));
  std::vector<SeekEntry> entries(count);
  uint64_t compressed = 0;
  for (size_t i = 0; i < count; ++i) {
    const char* const from = text.data() + kHeaderBytes + i * stride;
    entries[i] = {GetU32(from), GetU32(from + 4)};
    compressed += entries[i].compressed;
  }
  if (compressed != table_at)
    throw bad(table_at, fmt::format("says {} bytes of frames, but there are {} in front of it", compressed, table_at));
  return entries;
}

}  // namespace braid
