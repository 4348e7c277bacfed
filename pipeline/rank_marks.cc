#include "pipeline/rank_marks.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>

#include "io/checksum.h"
#include "io/error.h"
#include "io/json.h"
#include "pipeline/manifest.h"
#include "pipeline/rank_files.h"

namespace braid {
namespace {

constexpr std::string_view kUnits = "units-";
constexpr uint64_t kMark = 128, kMarkOfTensor = 48;   // bytes, at most

Error Damaged(const std::string& path) {
  return Error(ErrorCode::kBadInput, "this is not what a rank leaves when a unit is done")
      .Path(path)
      .Hint("remove it, and run the rank again");
}

XXH128_hash_t SumOf(const std::string& text, const std::string& path) {
  XXH128_hash_t sum{};
  const auto half = [&](size_t at, XXH64_hash_t* out) {
    const char* const end = text.data() + at + 16;
    if (std::from_chars(text.data() + at, end, *out, 16).ptr != end) throw Damaged(path);
  };
  if (text.size() != 32) throw Damaged(path);
  half(0, &sum.high64), half(16, &sum.low64);
  return sum;
}

}  // namespace

RankMarks::RankMarks(std::string directory, std::vector<OutputUnit> units)
    : directory_(std::move(directory)), units_(std::move(units)) {}

std::string RankMarks::PathOf(UnitRun run) const {
  return fmt::format("{}/{}{}-{}", directory_, kUnits, run.first, run.last);
}

std::vector<UnitRun> RankMarks::Runs() const {
  std::vector<UnitRun> marks;
  for (const std::string& name : ListRankFiles(directory_)) {
    const auto run = name.starts_with(kUnits) ? ParseRun(std::string_view(name).substr(kUnits.size())) : std::nullopt;
    if (run && run->last <= units_.size()) marks.push_back(*run);
  }
  return marks;
}

std::optional<std::vector<uint32_t>> RankMarks::Missing() const {
  std::vector<bool> done(units_.size());
  try {
    for (UnitRun run : Runs()) std::fill(done.begin() + run.first, done.begin() + run.last, true);
  } catch (const RankFilesGone&) {
    return std::nullopt;
  }
  std::vector<uint32_t> missing;
  for (uint32_t u = 0; u < done.size(); ++u)
    if (!done[u]) missing.push_back(u);
  return missing;
}

std::vector<uint32_t> RankMarks::Gone(const std::vector<std::string>& paths, const std::vector<UnitRun>& runs) const {
  std::vector<bool> marked(paths.size());
  for (UnitRun run : runs)
    for (uint32_t u = run.first; u < run.last; ++u) marked[units_[u].shard] = true;
  std::vector<uint32_t> gone;
  for (uint32_t s = 0; s < paths.size(); ++s)
    if (marked[s] && !FileExists(paths[s])) gone.push_back(s);
  return gone;
}

bool RankMarks::AnyGone(const std::vector<std::string>& paths) const { return !Gone(paths, Runs()).empty(); }

std::vector<uint32_t> RankMarks::ForgetGone(const std::vector<std::string>& paths) const {
  const std::vector<UnitRun> runs = Runs();   // before the shards are looked at
  const std::vector<uint32_t> gone = Gone(paths, runs);
  for (UnitRun run : runs) {
    const bool forget =
        std::any_of(units_.begin() + run.first, units_.begin() + run.last, [&](const OutputUnit& unit) {
          return std::binary_search(gone.begin(), gone.end(), unit.shard);
        });
    const std::string path = PathOf(run);
    if (forget && TheOs().Unlink(path.c_str()) < 0 && errno != ENOENT) throw SystemError(errno, "remove it", path);
  }
  return gone;
}

void RankMarks::Mark(const WrittenUnits& written) const {
  const auto before = [](const OutputUnit& a, const OutputUnit& b) {
    return a.shard != b.shard ? a.shard < b.shard : a.begin < b.begin;
  };
  std::vector<UnitRun> runs;
  for (const OutputUnit& unit : written.units) {
    const auto u = static_cast<uint32_t>(std::lower_bound(units_.begin(), units_.end(), unit, before) - units_.begin());
    if (!runs.empty() && runs.back().last == u) ++runs.back().last;
    else runs.push_back({u, u + 1});
  }
  Json mark = {{"sums", Json::array()}};
  for (const auto& [tensor, sum] : written.sums) mark["sums"].push_back({tensor, SumText(sum)});
  if (written.alpha) mark["alpha"] = std::bit_cast<uint64_t>(*written.alpha);
  for (UnitRun run : runs) {
    const std::string text = mark.dump() + "\n";
    RankFile file(PathOf(run));
    file.Append(text.data(), text.size());
    file.Commit();   // each with all sums: another one may be removed
  }
}

RankMarks::Found RankMarks::Read(size_t tensors) const {
  Found found;
  for (UnitRun run : Runs()) {
    const std::string path = PathOf(run);
    const Json mark = ParseJson(ReadSmallFile(path, kMark + tensors * kMarkOfTensor), path);
    if (!mark.is_object() || !mark.contains("sums") || !mark["sums"].is_array()) throw Damaged(path);
    for (const Json& entry : mark["sums"]) {
      const auto tensor = entry.is_array() && entry.size() == 2 ? AsSize(entry[0]) : std::nullopt;
      if (!tensor || *tensor >= tensors || !entry[1].is_string()) throw Damaged(path);
      found.sums[static_cast<uint32_t>(*tensor)] = SumOf(entry[1], path);
    }
    if (!mark.contains("alpha")) continue;
    const auto alpha = AsSize(mark["alpha"]);
    if (!alpha) throw Damaged(path);
    found.alpha = std::bit_cast<double>(*alpha);
  }
  return found;
}

}  // namespace braid
