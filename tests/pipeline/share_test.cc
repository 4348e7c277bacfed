// How the output is divided among ranks that take one part after another.
#include "pipeline/share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "tests/ops/test_support.h"

namespace braid {
namespace {

// Tensors of random sizes, and a large one; nothing of it but the layout.
Plan RandomPlan(test::Random* random) {
  Plan plan;
  const auto any = [&](uint64_t least, uint64_t most) { return least + random->Below(most - least); };
  for (uint32_t s = 0; s < 3; ++s) {
    PlannedShard shard{.name = "shard", .header = std::string(4096, ' '), .bytes = 4096};
    for (uint64_t i = 0, n = any(5, 40); i < n; ++i) {
      PlannedTensor tensor{.name = "tensor", .shape = {}, .base = {}, .models = {}};
      tensor.elements = s == 1 && i == 2 ? any(40 << 20, 90 << 20) : any(1, 4 << 20);
      tensor.type = DType::kBF16, tensor.shard = s, tensor.offset = shard.bytes, tensor.bytes = 2 * tensor.elements;
      shard.bytes += tensor.bytes;
      plan.tensors.push_back(tensor);
    }
    plan.shards.push_back(shard);
  }
  return plan;
}

uint64_t BytesOf(const std::vector<OutputUnit>& units, const std::vector<uint32_t>& part) {
  uint64_t bytes = 0;
  for (uint32_t u : part) bytes += units[u].bytes();
  return bytes;
}

// Of the tensor that is cut where the unit begins.
uint64_t CutBytes(const Plan& plan, const OutputUnit& unit) {
  for (const PlannedTensor& tensor : plan.tensors)
    if (tensor.shard == unit.shard && tensor.offset < unit.begin && tensor.offset + tensor.bytes > unit.begin)
      return tensor.bytes;
  return 0;
}

TEST(PartsToTake, CoverWhatIsWantedAndCutLittle) {
  test::Random random;
  for (int attempt = 0; attempt < 50; ++attempt) {
    const Plan plan = RandomPlan(&random);
    const std::vector<OutputUnit> units = OutputUnits(plan);
    const auto of = static_cast<uint32_t>(1 + random.Below(6));
    std::vector<uint32_t> wanted;
    for (uint32_t u = 0; u < units.size(); ++u)
      if (attempt % 2 == 0 || !random.Chance(0.1)) wanted.push_back(u);
    const auto parts = PartsToTake(plan, units, wanted, of);
    std::vector<uint32_t> all;
    std::vector<uint32_t> borders;   // where ranks without this would begin
    for (uint32_t rank = 0; rank < of; ++rank) {
      const auto its = UnitsOfRank(units, wanted, rank, of);
      if (!its.empty()) borders.push_back(its.front());
    }
    for (const auto& part : parts) {
      ASSERT_FALSE(part.empty());
      all.insert(all.end(), part.begin(), part.end());
      if (part.front() == wanted.front()) continue;
      const bool border = std::find(borders.begin(), borders.end(), part.front()) != borders.end();
      const bool gap = !std::binary_search(wanted.begin(), wanted.end(), part.front() - 1);
      const auto& before = *(&part - 1);
      EXPECT_TRUE(border || gap || CutBytes(plan, units[part.front()]) <= BytesOf(units, before) / 32);
    }
    EXPECT_EQ(all, wanted);
    // At most one border of those lies within a part.
    uint64_t unit = 0;
    for (uint32_t u : wanted) unit = std::max(unit, units[u].bytes());
    const uint64_t share = BytesOf(units, wanted) / of;
    for (const auto& part : parts) EXPECT_LE(BytesOf(units, part), 2 * (share + unit));
  }
}

TEST(PartsOfRun, CoverTheRunAndCutLittle) {
  test::Random random;
  size_t most = 0;
  for (int attempt = 0; attempt < 50; ++attempt) {
    const Plan plan = RandomPlan(&random);
    const std::vector<OutputUnit> units = OutputUnits(plan);
    for (UnitRun run : RunsOfRanks(units, static_cast<uint32_t>(1 + random.Below(6)))) {
      const std::vector<UnitRun> parts = PartsOfRun(plan, units, run);
      uint64_t all = 0;
      for (uint32_t u = run.first; u < run.last; ++u) all += units[u].bytes();
      uint32_t at = run.first;
      for (UnitRun part : parts) {
        EXPECT_EQ(part.first, at);
        ASSERT_LT(part.first, part.last);
        uint64_t bytes = 0;
        for (; at < part.last; ++at) bytes += units[at].bytes();
        if (at == run.last) break;
        EXPECT_GE(bytes, all / 16);
        EXPECT_LE(CutBytes(plan, units[at]), bytes / 32);
      }
      EXPECT_EQ(at, run.last);
      most = std::max(most, parts.size());
    }
  }
  EXPECT_GT(most, 3u);
  EXPECT_LE(most, 16u);
}

TEST(PartsToTake, OfEqualTensorsTheLastAreSmall) {
  Plan plan;
  plan.shards.push_back({.name = "shard", .header = std::string(4096, ' '), .bytes = 4096});
  for (int i = 0; i < 512; ++i) {
    PlannedTensor tensor{.name = "tensor", .shape = {}, .base = {}, .models = {}};
    tensor.elements = 1 << 19, tensor.type = DType::kBF16, tensor.bytes = 1 << 20, tensor.offset = plan.shards[0].bytes;
    plan.shards[0].bytes += tensor.bytes;
    plan.tensors.push_back(tensor);
  }
  const std::vector<OutputUnit> units = OutputUnits(plan);
  std::vector<uint32_t> wanted(units.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  for (uint32_t of : {2u, 4u}) {
    const auto parts = PartsToTake(plan, units, wanted, of);
    const uint64_t share = BytesOf(units, wanted) / of;
    EXPECT_GT(parts.size(), 3 * of);
    EXPECT_GE(BytesOf(units, parts.front()), share / 3);
    EXPECT_LE(BytesOf(units, parts.back()), share / 4);
  }
}

TEST(RunsOfRanks, AreThoseOfEachRank) {
  test::Random random;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const Plan plan = RandomPlan(&random);
    const std::vector<OutputUnit> units = OutputUnits(plan);
    std::vector<uint32_t> all(units.size());
    std::iota(all.begin(), all.end(), 0);
    const auto of = static_cast<uint32_t>(1 + random.Below(attempt % 2 == 0 ? 8 : 1000));
    const std::vector<UnitRun> runs = RunsOfRanks(units, of);
    ASSERT_EQ(runs.size(), of);
    for (uint32_t rank = 0; rank < of; ++rank) {
      std::vector<uint32_t> run(runs[rank].last - runs[rank].first);
      std::iota(run.begin(), run.end(), runs[rank].first);
      EXPECT_EQ(run, UnitsOfRank(units, all, rank, of)) << rank << " of " << of;
    }
  }
}

TEST(RunsOfRanks, OfVeryManyRanksTakeNoTime) {
  test::Random random;
  const std::vector<OutputUnit> units = OutputUnits(RandomPlan(&random));
  const auto start = std::chrono::steady_clock::now();
  const std::vector<UnitRun> runs = RunsOfRanks(units, 1'000'000);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(runs.back().last, units.size());
}

TEST(MostPieces, AreNoFewerThanThereAre) {
  test::Random random;
  for (int attempt = 0; attempt < 50; ++attempt) {
    Plan plan = RandomPlan(&random);
    for (const PlannedShard& shard : plan.shards) plan.totals.bytes_written += shard.bytes;
    const std::vector<OutputUnit> units = OutputUnits(plan);
    PlannedScope scope;
    uint64_t pieces = 0;
    for (uint32_t t = 0; t < plan.tensors.size(); ++t) {
      if (!random.Chance(0.5)) continue;
      scope.tensors.push_back(t);
      const UnitRun run = UnitsOf(plan, units, t);
      pieces += run.last - run.first;
      EXPECT_LE(run.last - run.first, MostPieces(plan, {.tensors = {t}})) << "tensor " << t;
    }
    EXPECT_LE(pieces, MostPieces(plan, scope));
    EXPECT_LE(MostPieces(plan, scope), 2 * (pieces + units.size()));
  }
}

}  // namespace
}  // namespace braid
