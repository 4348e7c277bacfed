#include "pipeline/statistics_file.h"

#include <sys/file.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "io/error.h"
#include "ops/kernels.h"

namespace braid {
namespace {

struct FileHeader {
  std::array<char, 8> magic{};
  uint32_t version = 0, record_bytes = 0;
  uint64_t bytes = 0;        // of all records
  XXH128_hash_t sum{};       // XXH3 of them
};
static_assert(sizeof(FileHeader) == 40 && std::is_trivially_copyable_v<FileHeader>);

constexpr std::array<char, 8> kMagic = {'b', 'r', 'a', 'i', 'd', 's', 't', 'c'};
// Goes up when the format changes, or what a record means.
constexpr uint32_t kVersion = 1;
// A bin in the file: its count, and its number in the lowest 16 bits.
constexpr int kBinBits = 16;
constexpr uint64_t kMostCount = UINT64_MAX >> kBinBits;
constexpr size_t kChunk = 64 << 10;

Error Damaged(const std::string& path, std::string why) {
  return Error(ErrorCode::kBadInput, std::move(why)).Path(path);
}

// The records' bytes, piece by piece.
class Body {
 public:
  Body(int fd, uint64_t bytes, const std::string& path) : fd_(fd), left_(bytes), path_(path), chunk_(kChunk) {}

  bool AtEnd() const { return left_ == 0 && begin_ == end_; }
  void Read(void* out, size_t bytes) {
    auto* to = static_cast<char*>(out);
    while (bytes > 0) {
      if (begin_ == end_) Fill();
      const size_t n = std::min(bytes, end_ - begin_);
      std::memcpy(to, chunk_.data() + begin_, n);
      to += n, begin_ += n, bytes -= n;
    }
  }

 private:
  void Fill() {
    if (left_ == 0) throw Damaged(path_, "its last record is cut off");
    begin_ = 0, end_ = static_cast<size_t>(std::min<uint64_t>(left_, chunk_.size()));
    ReadExactly(fd_, chunk_.data(), end_, offset_, path_);
    offset_ += end_, left_ -= end_;
  }

  int fd_;
  uint64_t left_, offset_ = sizeof(FileHeader);
  const std::string& path_;
  std::vector<char> chunk_;
  size_t begin_ = 0, end_ = 0;
};

XXH128_hash_t SumOfBody(int fd, uint64_t bytes, const std::string& path) {
  Checksum sum;
  std::vector<char> chunk(kChunk);
  for (uint64_t at = 0, n; at < bytes; at += n) {
    n = std::min<uint64_t>(bytes - at, chunk.size());
    ReadExactly(fd, chunk.data(), n, sizeof(FileHeader) + at, path);
    sum.Add(chunk.data(), n);
  }
  return sum.Take();
}

}  // namespace

std::optional<StatisticsReader> StatisticsReader::Open(const std::string& path) {
  if (!FileExists(path)) return std::nullopt;
  FileIdentity identity;
  Fd fd = OpenForReading(path, &identity);
  FileHeader header;
  if (identity.size < sizeof(header)) throw Damaged(path, "it is too short");
  ReadExactly(fd.get(), &header, sizeof(header), 0, path);
  if (header.magic != kMagic) throw Damaged(path, "it does not begin as a file of the statistics cache");
  if (header.version != kVersion) return std::nullopt;
  if (header.record_bytes != sizeof(StatisticsRecord) || header.bytes != identity.size - sizeof(header))
    throw Damaged(path, "its length is not what it says");
  if (header.bytes > kMostStatisticsBytes) throw Damaged(path, "it is too large");
  if (!XXH128_isEqual(SumOfBody(fd.get(), header.bytes, path), header.sum))
    throw Damaged(path, "its checksum is wrong");
  return StatisticsReader(path, std::move(fd), header.bytes);
}

void StatisticsReader::ForEach(const Visit& visit) const {
  Body body(fd_.get(), bytes_, path_);
  std::vector<BinCount> bins;
  while (!body.AtEnd()) {
    StatisticsRecord record;
    body.Read(&record, sizeof(record));
    if (record.bins > kHighBins) throw Damaged(path_, "it holds a histogram of too many bins");
    bins.resize(record.bins);
    for (size_t i = 0; i < bins.size(); ++i) {
      uint64_t packed = 0;
      body.Read(&packed, sizeof(packed));
      bins[i] = {static_cast<uint32_t>(packed & ((1 << kBinBits) - 1)), packed >> kBinBits};
      if (bins[i].bin >= kHighBins || (i > 0 && bins[i].bin <= bins[i - 1].bin))
        throw Damaged(path_, "the bins of a histogram are not in order");
    }
    visit(record, bins);
  }
}

std::unique_ptr<StatisticsWriter> StatisticsWriter::Open(const std::string& path) {
  const std::string partial = path + ".partial";
  Fd fd(TheOs().Open(partial.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0666));
  if (!fd) throw SystemError(errno, "create it", partial);
  if (TheOs().Flock(fd.get(), LOCK_EX | LOCK_NB) < 0) {
    if (errno == EWOULDBLOCK) return nullptr;
    throw SystemError(errno, "lock it", partial);
  }
  // Whoever had the lock may have renamed or removed it meanwhile.
  struct stat ours, named;
  if (TheOs().Fstat(fd.get(), &ours) < 0) throw SystemError(errno, "look at it", partial);
  if (TheOs().Lstat(partial.c_str(), &named) < 0 || ours.st_dev != named.st_dev || ours.st_ino != named.st_ino)
    return nullptr;
  if (TheOs().Ftruncate(fd.get(), 0) < 0) throw SystemError(errno, "empty it", partial);
  return std::unique_ptr<StatisticsWriter>(new StatisticsWriter(path, partial, std::move(fd)));
}

StatisticsWriter::StatisticsWriter(std::string path, std::string partial, Fd fd)
    : path_(std::move(path)), partial_(std::move(partial)), fd_(std::move(fd)) {
  buffer_.reserve(kBufferBytes);
}

StatisticsWriter::~StatisticsWriter() {
  if (!committed_) TheOs().Unlink(partial_.c_str());   // still locked
}

void StatisticsWriter::Add(StatisticsRecord record, std::span<const BinCount> bins) {
  if (std::any_of(bins.begin(), bins.end(), [](const BinCount& bin) { return bin.count > kMostCount; })) return;
  record.bins = static_cast<uint32_t>(bins.size());
  Append(&record, sizeof(record));
  for (const BinCount& bin : bins) {
    const uint64_t packed = bin.count << kBinBits | bin.bin;
    Append(&packed, sizeof(packed));
  }
}

void StatisticsWriter::Append(const void* data, size_t bytes) {
  if (buffer_.size() + bytes > kBufferBytes) Flush();
  buffer_.append(static_cast<const char*>(data), bytes);
  bytes_ += bytes;
}

void StatisticsWriter::Flush() {
  WriteExactly(fd_.get(), buffer_.data(), buffer_.size(), sizeof(FileHeader) + bytes_ - buffer_.size(), partial_);
  sum_.Add(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void StatisticsWriter::Commit() {
  Flush();
  const FileHeader header{.magic = kMagic,
                          .version = kVersion,
                          .record_bytes = sizeof(StatisticsRecord),
                          .bytes = bytes_,
                          .sum = sum_.Take()};
  WriteExactly(fd_.get(), &header, sizeof(header), 0, partial_);
  if (TheOs().Rename(partial_.c_str(), path_.c_str(), 0) < 0) throw SystemError(errno, "rename it", partial_);
  committed_ = true;
}

}  // namespace braid
