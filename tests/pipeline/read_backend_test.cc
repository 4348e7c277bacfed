// Which backend reads a source, and what the plan says about it.
#include "pipeline/read_backend.h"

#include <gtest/gtest.h>

#include "tests/io/faulty_reads.h"
#include "tests/pipeline/merge_support.h"

namespace braid {
namespace {

constexpr KernelVersion kNew = {6, 18};

TEST(ReadBackendTest, IsMappedOnLocalFileSystems) {
  for (std::string_view name : {"ext4", "XFS", ""}) {
    const ReadChoice choice = ChooseReadBackend(ReadMode::kAuto, {name, false}, kNew);
    EXPECT_EQ(choice.backend, ReadBackend::kMapped);
    EXPECT_FALSE(choice.why.empty());
  }
  EXPECT_EQ(ChooseReadBackend(ReadMode::kAuto, {"ext4"}, {6, 1}).backend, ReadBackend::kMapped);
}

TEST(ReadBackendTest, IsDirectOnNetworksAndOldKernels) {
  EXPECT_EQ(ChooseReadBackend(ReadMode::kAuto, {"NFS", true}, kNew).backend, ReadBackend::kDirect);
  EXPECT_EQ(ChooseReadBackend(ReadMode::kAuto, {"NFS", true}, kNew).why, "NFS");
  EXPECT_EQ(ChooseReadBackend(ReadMode::kAuto, {"ext4"}, {5, 15}).backend, ReadBackend::kDirect);
  EXPECT_EQ(ChooseReadBackend(ReadMode::kAuto, {"ext4"}, {5, 15}).why, "Linux 5.15");
}

TEST(ReadBackendTest, IsWhatTheUserSays) {
  EXPECT_EQ(ChooseReadBackend(ReadMode::kMapped, {"NFS", true}, {5, 4}).backend, ReadBackend::kMapped);
  EXPECT_EQ(ChooseReadBackend(ReadMode::kDirect, {"ext4"}, kNew).backend, ReadBackend::kDirect);
}

TEST(ReadBackendTest, IsInThePlan) {
  const fixture::TemporaryDirectory place;
  for (const char* name : {"base", "tuned"})
    fixture::WriteCheckpoint(place, name, {fixture::Constant("a", DType::kF32, 10, 1)});
  const std::string recipe =
      place.Write("recipe.toml", "method = 'ties'\nbase = '" + place / "base" + "'\n[[models]]\npath = '" +
                                     place / "tuned" + "'\ndensity = 0.5\n");
  fixture::FaultyReads os;
  const auto reading = [&](uint32_t magic, ReadMode mode) {
    os.magic = magic;
    PlanOptions options{.memory = 64 * fixture::kMiB};
    options.read = mode;
    const Plan plan = fixture::PlanOf(recipe, options);
    EXPECT_EQ(plan.reading.size(), 2u);
    const Json json = Json::parse(fixture::PlanText(plan));
    EXPECT_EQ(json["sources"][1]["io"], ReadBackendName(plan.reading[1].backend));
    EXPECT_EQ(json["sources"][1]["io_why"], plan.reading[1].why);
    return plan.reading[1];
  };
  EXPECT_EQ(reading(0x6969, ReadMode::kAuto).backend, ReadBackend::kDirect);
  EXPECT_EQ(reading(0x6969, ReadMode::kAuto).why, "NFS");
  EXPECT_EQ(reading(0x6969, ReadMode::kMapped).backend, ReadBackend::kMapped);
  EXPECT_EQ(reading(0xef53, ReadMode::kDirect).backend, ReadBackend::kDirect);
  if (RunningKernel() >= KernelVersion{6, 1}) {
    EXPECT_EQ(reading(0xef53, ReadMode::kAuto).backend, ReadBackend::kMapped);
    EXPECT_EQ(reading(0xef53, ReadMode::kAuto).why, "ext4");
  }
}

}  // namespace
}  // namespace braid
