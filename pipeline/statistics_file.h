// A file of the statistics cache: a header, then records in no particular order. Native byte order; what another
// version wrote is not read. Hostile until its checksum has been compared; whoever uses a record still checks that it
// makes sense.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "io/checksum.h"
#include "io/os.h"
#include "ops/magnitude_selection.h"

namespace braid {

// As it lies in the file. `scope`: of what, by a hash of all that decides it. With bins it is a histogram of high
// halves, otherwise the answer to one question; the fields are those of ModelStatistics (ops/merger.h).
struct StatisticsRecord {
  enum Flag : uint32_t { kKeepEquals = 1, kAllZero = 2, kNorm = 4, kKeptNorm = 8 };

  XXH128_hash_t scope{};
  uint64_t asked = 0, kept = 0, cut_index = 0, quota = 0;
  double norm = 0, kept_norm = 0;
  uint32_t cut_key = 0, flags = 0;
  uint32_t bins = 0;      // so many follow
  uint32_t unused = 0;
};
static_assert(sizeof(StatisticsRecord) == 80 && std::is_trivially_copyable_v<StatisticsRecord>);

inline constexpr uint64_t kMostStatisticsBytes = 1 << 30;   // of one file

// Not thread-safe.
class StatisticsReader {
 public:
  // Opens the file and compares its checksum, reading all of it. Nothing when there is none, or another version wrote
  // it. Throws Error: kBadInput when it is damaged, kIo.
  static std::optional<StatisticsReader> Open(const std::string& path);

  // Passes every record to `visit`, with its bins, which are sorted. Throws as Open does.
  using Visit = std::function<void(const StatisticsRecord&, std::span<const BinCount>)>;
  void ForEach(const Visit& visit) const;

 private:
  StatisticsReader(std::string path, Fd fd, uint64_t bytes)
      : path_(std::move(path)), fd_(std::move(fd)), bytes_(bytes) {}

  std::string path_;
  Fd fd_;
  uint64_t bytes_;   // of records
};

// Writes a new file beside `path`, which it replaces on Commit; without that, nothing is left. Not thread-safe.
class StatisticsWriter {
 public:
  static constexpr size_t kBufferBytes = 16 << 10;

  // Nothing when another run is writing it at this moment. Throws Error(kIo).
  static std::unique_ptr<StatisticsWriter> Open(const std::string& path);
  ~StatisticsWriter();
  StatisticsWriter(const StatisticsWriter&) = delete;

  // Sets record.bins. Throws Error(kIo).
  void Add(StatisticsRecord record, std::span<const BinCount> bins);
  bool HasRoom() const { return bytes_ < kMostStatisticsBytes / 2; }
  // Durable or not, as the system likes: a file that a crash tears is noticed.
  void Commit();

 private:
  StatisticsWriter(std::string path, std::string partial, Fd fd);
  void Append(const void* data, size_t bytes);
  void Flush();

  const std::string path_, partial_;
  Fd fd_;
  uint64_t bytes_ = 0;     // of records, the buffer included
  std::string buffer_;
  Checksum sum_;
  bool committed_ = false;
};

}  // namespace braid
