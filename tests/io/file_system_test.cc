// Which file system, which kernel.
#include "io/file_system.h"

#include <gtest/gtest.h>

#include "tests/io/faulty_reads.h"

namespace braid {
namespace {

TEST(FileSystemTest, IsKnownByItsMagic) {
  fixture::FaultyReads os;
  const auto of = [&](uint32_t magic) {
    os.magic = magic;
    return FileSystemOf("/");
  };
  EXPECT_EQ(of(0x6969).name, "NFS");
  for (uint32_t magic : {0x6969u, 0x517bu, 0xff534d42u, 0xfe534d42u, 0x0bd00bd0u, 0x00c36400u, 0x65735546u, 0x01021997u,
                         0x47504653u, 0x19830326u})
    EXPECT_TRUE(of(magic).network) << std::hex << magic;
  EXPECT_EQ(of(0xef53).name, "ext4");
  for (uint32_t magic : {0xef53u, 0x58465342u, 0x9123683eu, 0x01021994u, 0x794c7630u, 0xdeadu})
    EXPECT_FALSE(of(magic).network) << std::hex << magic;
  EXPECT_EQ(of(0xdead).name, "");
}

TEST(FileSystemTest, APathThatIsNotThereIsOnAnUnknownOne) {
  EXPECT_EQ(FileSystemOf("/no/such/path").name, "");
  EXPECT_FALSE(FileSystemOf("/no/such/path").network);
}

TEST(KernelVersionTest, IsReadFromTheRelease) {
  const auto is = [](std::string_view release, int major, int minor) {
    EXPECT_EQ(ParseKernelVersion(release), (KernelVersion{major, minor})) << release;
  };
  is("6.1.0-18-amd64", 6, 1);
  is("5.15.0", 5, 15);
  is("6.18.44-fc-v669", 6, 18);
  is("10.0", 10, 0);
  is("4.4-custom", 4, 4);
  EXPECT_LT(ParseKernelVersion("5.15.0"), (KernelVersion{6, 1}));
  EXPECT_LT(ParseKernelVersion("6.0.9"), (KernelVersion{6, 1}));
  EXPECT_GE(ParseKernelVersion("6.10.0"), (KernelVersion{6, 9}));
  for (std::string_view odd : {"", "6", "x.y", "6.", "6-1", "99999999999.1"})
    EXPECT_GT(ParseKernelVersion(odd), (KernelVersion{1000, 0})) << odd;
  EXPECT_GE(RunningKernel(), (KernelVersion{2, 6}));
}

}  // namespace
}  // namespace braid
