#include "tests/pipeline/merge_support.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <sstream>

#include "io/checkpoint.h"
#include "pipeline/plan.h"
#include "tests/ops/reference.h"

namespace braid::fixture {
namespace {

namespace fs = std::filesystem;

uint64_t ProductOf(const std::vector<uint64_t>& shape) {
  uint64_t product = 1;
  for (uint64_t extent : shape) product *= extent;
  return product;
}

void Append(std::vector<std::byte>* bytes, uint64_t raw, size_t size) {
  const auto* from = reinterpret_cast<const std::byte*>(&raw);
  bytes->insert(bytes->end(), from, from + size);
}

}  // namespace

StoredTensor Floats(std::string name, DType type, std::vector<uint64_t> shape, const std::vector<double>& values) {
  StoredTensor tensor{std::move(name), type, std::move(shape), {}};
  EXPECT_EQ(values.size(), ProductOf(tensor.shape)) << tensor.name;
  for (const double value : values) {
    if (type == DType::kF64) Append(&tensor.bytes, std::bit_cast<uint64_t>(value), 8);
    else if (type == DType::kF32) Append(&tensor.bytes, reference::Round(reference::kF32, value), 4);
    else if (type == DType::kF16) Append(&tensor.bytes, reference::Round(reference::kF16, value), 2);
    else Append(&tensor.bytes, reference::Round(reference::kBF16, value), 2);
  }
  return tensor;
}

StoredTensor Constant(std::string name, DType type, uint64_t n, double value) {
  return Floats(std::move(name), type, {n}, std::vector<double>(n, value));
}

StoredTensor Integers(std::string name, const std::vector<int64_t>& values) {
  StoredTensor tensor{std::move(name), DType::kI64, {values.size()}, {}};
  for (int64_t value : values) Append(&tensor.bytes, static_cast<uint64_t>(value), 8);
  return tensor;
}

std::vector<float> LanesOf(const StoredTensor& tensor) { return reference::Decode(tensor.type, tensor.bytes); }

std::string FileOf(const std::vector<StoredTensor>& tensors) {
  std::string json = "{", data;
  for (const StoredTensor& tensor : tensors) {
    std::string shape;
    for (uint64_t extent : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    json += (json.size() > 1 ? "," : "") + Json(tensor.name).dump() + ":{\"dtype\":\"" +
            std::string(DTypeName(tensor.type)) + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
            std::to_string(data.size()) + "," + std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  json += "}";
  return LengthBytes(json.size()) + json + data;
}

std::string WriteCheckpoint(const TemporaryDirectory& place, const std::string& name,
                            const std::vector<StoredTensor>& tensors, size_t shards, const std::string& config) {
  if (!config.empty()) place.Write(name + "/config.json", config);
  if (shards == 1) {
    place.Write(name + "/model.safetensors", FileOf(tensors));
    return place / name;
  }
  std::string weight_map;
  for (size_t s = 0; s < shards; ++s) {
    const auto begin = tensors.begin() + static_cast<ptrdiff_t>(s * tensors.size() / shards);
    const auto end = tensors.begin() + static_cast<ptrdiff_t>((s + 1) * tensors.size() / shards);
    const std::string file =
        "model-0000" + std::to_string(s + 1) + "-of-0000" + std::to_string(shards) + ".safetensors";
    place.Write(name + "/" + file, FileOf({begin, end}));
    for (auto tensor = begin; tensor != end; ++tensor)
      weight_map += (weight_map.empty() ? "\"" : ",\"") + tensor->name + "\":\"" + file + "\"";
  }
  place.Write(name + "/model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":{" + weight_map + "}}");
  return place / name;
}

std::vector<StoredTensor> ReadTensors(const std::string& path) {
  const Checkpoint checkpoint = OpenCheckpointForReading(path);
  std::vector<StoredTensor> tensors;
  for (const CheckpointTensor& tensor : checkpoint.tensors) {
    StoredTensor read{tensor.info.name, tensor.info.dtype, tensor.info.shape,
                      std::vector<std::byte>(tensor.info.bytes)};
    std::ifstream file(checkpoint.shards[tensor.shard].path, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(tensor.info.offset));
    file.read(reinterpret_cast<char*>(read.bytes.data()), static_cast<std::streamsize>(read.bytes.size()));
    EXPECT_TRUE(file.good()) << tensor.info.name;
    tensors.push_back(std::move(read));
  }
  return tensors;
}

std::string FileText(const std::string& path) {
  std::ostringstream text;
  const std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  text << file.rdbuf();
  return text.str();
}

std::map<std::string, std::string> FilesOf(const std::string& path) {
  std::map<std::string, std::string> files;
  if (!fs::is_directory(path)) return {{fs::path(path).filename().string(), FileText(path)}};
  for (const auto& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files[fs::relative(entry.path(), path).string()] = FileText(entry.path().string());
  return files;
}

Watchdog::Watchdog()
    : thread_([this] {
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, std::chrono::seconds(60), [this] { return done_; })) return;
        std::fprintf(stderr, "a merge hangs\n");
        std::_Exit(1);
      }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

MergeReport Merge(const std::string& recipe_path, const std::string& out, PlanOptions options, bool force) {
  const Watchdog watchdog;
  const std::atomic<int> interrupt{0};
  Progress progress;
  return RunMerge(recipe_path, {.out = out, .plan = options, .force = force, .quiet = true}, interrupt, &progress);
}

std::map<std::string, std::string> MergedFiles(const std::string& recipe_path, const std::string& out,
                                               const PlanOptions& options) {
  Merge(recipe_path, out, options);
  std::map<std::string, std::string> files = FilesOf(out);
  fs::remove_all(out);
  return files;
}

Plan PlanOf(const std::string& recipe_path, const PlanOptions& options) {
  return MakePlan(ReadRecipe(recipe_path), options);
}

std::string PlanText(const Plan& plan) {
  std::string text;
  WritePlanJson(plan, Json::object(), [&](std::string_view piece) { text += piece; });
  return text;
}

void ExpectSameFiles(const std::map<std::string, std::string>& expected,
                     const std::map<std::string, std::string>& actual) {
  for (const auto& [name, bytes] : expected) {
    const auto found = actual.find(name);
    if (found == actual.end()) {
      ADD_FAILURE() << name << " is missing";
      continue;
    }
    if (found->second == bytes) continue;
    const auto differs = std::mismatch(bytes.begin(), bytes.end(), found->second.begin(), found->second.end());
    ADD_FAILURE() << name << " (" << bytes.size() << " and " << found->second.size() << " bytes) differs at byte "
                  << differs.first - bytes.begin();
  }
  for (const auto& [name, bytes] : actual)
    EXPECT_TRUE(expected.count(name)) << name << " should not be there";
}

}  // namespace braid::fixture
