// Where an output may go, and that it appears all at once or not at all.
#include "io/staging.h"

#include <gtest/gtest.h>
#include <sys/file.h>

#include "io/error.h"
#include "io/shard_writer.h"
#include "tests/io/faulty_os.h"
#include "tests/io/model_fixtures.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

using fixture::FaultyOs;

class StagingTest : public testing::Test {
 protected:
  std::string out() const { return place_ / "out"; }

  // Stages two files and publishes them; returns the notes.
  std::vector<std::string> Publish(const std::string& to, bool force = false) {
    Staging staging(to, force, inputs_);
    WriteDurably(staging.PathFor("model.safetensors"), "weights");
    if (!staging.single_file()) WriteDurably(staging.PathFor("1_Pooling/config.json"), "{}");
    staging.Publish("model.safetensors");
    return staging.notes();
  }
  void ExpectPublished(const std::string& to) {
    EXPECT_EQ(ReadSmallFile(to + "/model.safetensors"), "weights");
    EXPECT_EQ(ReadSmallFile(to + "/1_Pooling/config.json"), "{}");
    EXPECT_FALSE(fs::exists(to + ".partial"));
  }
  void ExpectRefused(const std::string& to, bool force, ErrorCode code = ErrorCode::kUsage) {
    const Error error = fixture::ErrorOf([&] { Publish(to, force); });
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_FALSE(error.hint().empty());
  }

  fixture::TemporaryDirectory place_;
  std::vector<std::string> inputs_;
};

TEST_F(StagingTest, ANewDirectory) {
  EXPECT_TRUE(Publish(out()).empty());
  ExpectPublished(out());
  Publish(place_ / "deep/er/out");
  ExpectPublished(place_ / "deep/er/out");
}

TEST_F(StagingTest, ATrailingSlash) {
  Publish(out() + "/");
  ExpectPublished(out());
  ExpectRefused(out() + "//", false);
}

TEST_F(StagingTest, NothingAppearsBeforePublish) {
  {
    Staging staging(out(), false, {});
    WriteDurably(staging.PathFor("model.safetensors"), "weights");
    WriteDurably(staging.PathFor("2_Dense/model.safetensors"), "more");
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_TRUE(fs::exists(out() + ".partial"));
  }
  EXPECT_FALSE(fs::exists(out() + ".partial"));
  EXPECT_FALSE(fs::exists(out()));
}

TEST_F(StagingTest, AnEmptyDirectoryIsFilled) {
  fs::create_directory(out());
  Publish(out());
  ExpectPublished(out());
}

TEST_F(StagingTest, AnExistingCheckpointNeedsForce) {
  place_.Write("out/model.safetensors", "old");
  place_.Write("out/old.json", "{}");
  ExpectRefused(out(), false);
  EXPECT_EQ(ReadSmallFile(out() + "/model.safetensors"), "old");
  Publish(out(), true);
  ExpectPublished(out());
  EXPECT_FALSE(fs::exists(out() + "/old.json")) << "replaced, not mixed";
}

TEST_F(StagingTest, ForceWithoutExchange) {
  place_.Write("out/model.safetensors", "old");
  FaultyOs os;
  os.Fail(FaultyOs::kRename, EINVAL, 1, 1);  // the exchange; plain renames work
  Publish(out(), true);
  ExpectPublished(out());
  EXPECT_FALSE(fs::exists(out() + ".replaced"));
}

TEST_F(StagingTest, ForceDoesNotReplaceOtherThings) {
  place_.Write("out/model.safetensors", "old");
  place_.Write("out/thesis.tex", "years of work");
  ExpectRefused(out(), true);
  EXPECT_EQ(ReadSmallFile(out() + "/thesis.tex"), "years of work");
  place_.Write("notes/readme.md", "no weights here");
  ExpectRefused(place_ / "notes", true);
  place_.Write("file", "a file");
  ExpectRefused(place_ / "file", true);
  EXPECT_EQ(ReadSmallFile(place_ / "file"), "a file");
}

TEST_F(StagingTest, InputsAreNeverReplaced) {
  inputs_ = {place_.Write("models/base/model.safetensors", "base"), place_ / "models/base"};
  place_.Write("models/config.json", "{}");
  ExpectRefused(place_ / "models/base", true);
  ExpectRefused(place_ / "models", true);
  place_.Link("models/base", "alias");
  ExpectRefused(place_ / "alias", true);
  ExpectRefused(place_ / "models/base/model.safetensors", true);
  EXPECT_EQ(ReadSmallFile(inputs_[0]), "base");
  Publish(place_ / "models/base/merged");
  ExpectPublished(place_ / "models/base/merged");
}

TEST_F(StagingTest, TheCurrentDirectoryIsNotReplaced) {
  place_.Write("here/below/config.json", "{}");
  place_.Write("here/config.json", "{}");
  const fs::path before = fs::current_path();
  fs::current_path(place_ / "here/below");
  ExpectRefused(".", true);
  ExpectRefused(place_ / "here", true);
  ExpectRefused("..", true);
  fs::current_path(before);
  EXPECT_TRUE(fs::exists(place_ / "here/below/config.json"));
}

TEST_F(StagingTest, ALinkIsFollowed) {
  place_.Write("elsewhere/model.safetensors", "old");
  place_.Link("elsewhere", "out");
  ExpectRefused(out(), false);
  Publish(out(), true);
  EXPECT_TRUE(fs::is_symlink(out()));
  ExpectPublished(place_ / "elsewhere");
}

TEST_F(StagingTest, AnotherMergeAtWork) {
  fs::create_directory(out() + ".partial");
  place_.Write("out.partial/model.safetensors", "half");
  place_.Write("out.partial/.scratch-a1B2c3/stage-1.safetensors", "half");
  Fd other(TheOs().Open((out() + ".partial").c_str(), O_RDONLY | O_DIRECTORY));
  ASSERT_EQ(TheOs().Flock(other.get(), LOCK_EX | LOCK_NB), 0);
  ExpectRefused(out(), false, ErrorCode::kIo);
  EXPECT_EQ(ReadSmallFile(out() + ".partial/model.safetensors"), "half");
  other.Reset();
  const auto notes = Publish(out());
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("out.partial"), std::string::npos);
  ExpectPublished(out());
}

TEST_F(StagingTest, APartialOfSomeoneElseIsKept) {
  place_.Write("out.partial/thesis.tex", "years of work");
  ExpectRefused(out(), true);
  EXPECT_EQ(ReadSmallFile(out() + ".partial/thesis.tex"), "years of work");
  place_.Link(place_ / "victim", "linked.partial");
  place_.Write("victim/model.safetensors", "not yours");
  EXPECT_THROW(Publish(place_ / "linked"), Error);
  EXPECT_EQ(ReadSmallFile(place_ / "victim/model.safetensors"), "not yours");
}

TEST_F(StagingTest, ASingleFile) {
  const std::string file = place_ / "merged.safetensors";
  Publish(file);
  EXPECT_EQ(ReadSmallFile(file), "weights");
  EXPECT_FALSE(fs::exists(file + ".partial"));
  ExpectRefused(file, false);
  place_.Write("merged.safetensors", "old");
  Publish(file, true);
  EXPECT_EQ(ReadSmallFile(file), "weights");
  inputs_ = {file};
  ExpectRefused(file, true);
  fs::create_directory(place_ / "dir.safetensors");
  ExpectRefused(place_ / "dir.safetensors", true);
}

TEST_F(StagingTest, OutThatAppearsMeanwhileIsKept) {
  Staging staging(out(), false, {});
  WriteDurably(staging.PathFor("model.safetensors"), "weights");
  place_.Write("out/model.safetensors", "someone was faster");
  EXPECT_THROW(staging.Publish("model.safetensors"), Error);
  EXPECT_EQ(ReadSmallFile(out() + "/model.safetensors"), "someone was faster");
}

TEST_F(StagingTest, ChecksWithoutTouchingAnything) {
  CheckOutputPath(out(), false, {});
  EXPECT_FALSE(fs::exists(out() + ".partial"));
  place_.Write("out/model.safetensors", "old");
  EXPECT_EQ(fixture::ErrorOf([&] { CheckOutputPath(out(), false, {}); }).code(), ErrorCode::kUsage);
  CheckOutputPath(out(), true, {});
  EXPECT_EQ(fixture::ErrorOf([] { CheckOutputPath("", true, {}); }).code(), ErrorCode::kUsage);
  EXPECT_GT(FreeSpace(place_ / "not/there/yet"), 0u);
}

TEST_F(StagingTest, AllocatedBytes) {
  EXPECT_EQ(AllocatedBytes(place_ / "nothing"), 0u);
  const std::string path = place_.Write("file", std::string(100'000, 'x'));
  const uint64_t before = AllocatedBytes(path);
  fs::resize_file(path, 1 << 20);   // a hole
  EXPECT_EQ(AllocatedBytes(path), before);
  const Fd fd(TheOs().Open(path.c_str(), O_WRONLY));
  if (TheOs().Fallocate(fd.get(), 1 << 20) == 0) {
    EXPECT_GE(AllocatedBytes(path), uint64_t{1} << 20);
  }
  EXPECT_EQ(fixture::ErrorOf([&] { AllocatedBytes(path + "/below"); }).code(), ErrorCode::kIo);
}

TEST_F(StagingTest, SystemsThatFail) {
  for (const auto& [call, error_number] : {std::pair(FaultyOs::kMkdir, EACCES), std::pair(FaultyOs::kRename, EIO),
                                           std::pair(FaultyOs::kFsync, EIO)}) {
    FaultyOs os;
    os.Fail(call, error_number, 1);
    EXPECT_EQ(fixture::ErrorOf([&] { Publish(out()); }).code(), ErrorCode::kIo);
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_FALSE(fs::exists(out() + ".partial"));
  }
}

}  // namespace
}  // namespace braid
