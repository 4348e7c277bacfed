// What the tests of whole merges share: checkpoints with content, runs of RunMerge, and what they left on the disk.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/error.h"
#include "ops/dtype.h"
#include "pipeline/run.h"
#include "tests/io/model_fixtures.h"

namespace braid::fixture {

struct StoredTensor {
  std::string name;
  DType type = DType::kF32;
  std::vector<uint64_t> shape;
  std::vector<std::byte> bytes;
  bool operator==(const StoredTensor&) const = default;
};

// Values rounded into a lane type.
StoredTensor Floats(std::string name, DType type, std::vector<uint64_t> shape, const std::vector<double>& values);
// n elements, all `value`.
StoredTensor Constant(std::string name, DType type, uint64_t n, double value);
StoredTensor Integers(std::string name, const std::vector<int64_t>& values);
std::vector<float> LanesOf(const StoredTensor& tensor);

inline constexpr const char* kPlainConfig = "{\"model_type\": \"llama\", \"torch_dtype\": \"float32\"}\n";

// A safetensors file of these tensors in this order. The header is not padded: data begins anywhere.
std::string FileOf(const std::vector<StoredTensor>& tensors);

// Writes `name`/ with so many shards (one: model.safetensors, no index) and config.json unless that is empty.
// Returns its path.
std::string WriteCheckpoint(const TemporaryDirectory& place, const std::string& name,
                            const std::vector<StoredTensor>& tensors, size_t shards = 1,
                            const std::string& config = kPlainConfig);

// All tensors of a checkpoint, in file order.
std::vector<StoredTensor> ReadTensors(const std::string& checkpoint);

// Every file below a directory (or the one file), by relative path.
std::map<std::string, std::string> FilesOf(const std::string& path);
std::string FileText(const std::string& path);

// Ends the process when it lives longer than a minute: a merge that hangs must not hang the tests.
class Watchdog {
 public:
  Watchdog();
  ~Watchdog();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

// Runs a merge quietly, under a watchdog.
MergeReport Merge(const std::string& recipe_path, const std::string& out, PlanOptions options = {},
                  bool force = false);
// The same; returns FilesOf(out), which are removed.
std::map<std::string, std::string> MergedFiles(const std::string& recipe_path, const std::string& out,
                                               const PlanOptions& options = {});

// The plan of a recipe file.
Plan PlanOf(const std::string& recipe_path, const PlanOptions& options = {});
// What `plan --json` writes.
std::string PlanText(const Plan& plan);

inline constexpr uint64_t kMiB = 1 << 20, kGiB = 1 << 30;

// Fails the test, naming the first byte that differs.
void ExpectSameFiles(const std::map<std::string, std::string>& expected,
                     const std::map<std::string, std::string>& actual);

}  // namespace braid::fixture
