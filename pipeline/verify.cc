#include "pipeline/verify.h"

#include <fmt/format.h>
#include <tbb/parallel_pipeline.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "io/checkpoint.h"
#include "io/checksum.h"
#include "io/error.h"
#include "io/input_stream.h"
#include "io/model_directory.h"
#include "io/shard_frames.h"
#include "pipeline/budget.h"
#include "pipeline/manifest.h"
#include "pipeline/tensor_reader.h"
#include "pipeline/threads.h"

namespace braid {
namespace {

// A damaged checkpoint answers the question with no; a failing disk or a file being written gives no answer.
bool IsAnswer(const Error& error) {
  return error.code() == ErrorCode::kBadInput || error.code() == ErrorCode::kUsage ||
         error.code() == ErrorCode::kIncompatible;
}

void AddShard(const std::string& path, const std::string& name, Checkpoint* checkpoint) {
  Shard shard;
  shard.path = path, shard.name = name;
  SafetensorsHeader header = ReadShard(&shard);
  const auto number = static_cast<uint32_t>(checkpoint->shards.size());
  for (TensorInfo& tensor : header.tensors) checkpoint->tensors.push_back({std::move(tensor), number});
  checkpoint->shards.push_back(std::move(shard));
}

// Those of the manifest's files that can still be read, each on its own.
Checkpoint SalvageShards(const std::string& out, const Manifest& manifest, std::vector<VerifyFault>* faults) {
  std::map<std::string, uint64_t> files;  // and how many tensors they should hold
  for (const auto& [tensor, entry] : manifest.tensors) ++files[entry.file];
  const ModelDirectory directory(out);
  Checkpoint checkpoint;
  checkpoint.reference = out;
  for (const auto& [name, tensors] : files) {
    try {
      if (!IsPlainFileName(name, ".safetensors"))
        throw Error(ErrorCode::kBadInput, "the manifest names something that is no shard");
      const std::string file = FileOfShard(directory, name, nullptr);
      if (file.empty()) throw Error(ErrorCode::kBadInput, "the file is missing");
      AddShard(directory.FilePath(file), name, &checkpoint);
    } catch (const Error& error) {
      if (!IsAnswer(error)) throw;
      faults->push_back({name, error.tensor(), fmt::format("{} (the merge wrote {} tensor{} to this file)",
                                                           error.message(), tensors, tensors == 1 ? "" : "s")});
    }
  }
  return checkpoint;
}

Checkpoint OpenOrSalvage(const std::string& out, const Manifest& manifest, VerifyReport* report) {
  try {
    return OpenCheckpointForReading(out);
  } catch (const Error& error) {
    if (!IsAnswer(error)) throw;
    Checkpoint checkpoint = SalvageShards(out, manifest, &report->faults);
    // The index, config.json, or how the files fit together.
    if (report->faults.empty()) report->faults.push_back({"", "", error.what()});
    return checkpoint;
  }
}

// --- catalogue --------------------------------------------------------------------------------------------

// Finds the manifest's tensors among those of the checkpoint; each one that is where it should be is to be hashed.
class Catalogue {
 public:
  Catalogue(const Checkpoint& checkpoint, const Manifest& manifest, std::vector<VerifyFault>* faults)
      : checkpoint_(checkpoint), manifest_(manifest), faults_(*faults) {
    for (const VerifyFault& fault : faults_) unreadable_.insert(fault.file);
  }

  // Indices into the checkpoint's tensors, in file order.
  std::vector<uint32_t> Match() {
    std::vector<uint32_t> sound;
    for (uint32_t i = 0; i < checkpoint_.tensors.size(); ++i)
      if (IsSound(checkpoint_.tensors[i])) sound.push_back(i);
    for (const auto& [name, entry] : manifest_.tensors)
      if (!seen_.contains(name) && !unreadable_.contains(entry.file))
        faults_.push_back({entry.file, name, "the tensor is missing"});
    return sound;
  }

 private:
  bool IsSound(const CheckpointTensor& tensor) {
    const std::string &name = tensor.info.name, &file = checkpoint_.shards[tensor.shard].name;
    const auto fault = [&](std::string reason) {
      faults_.push_back({file, name, std::move(reason)});
      return false;
    };
    const auto entry = manifest_.tensors.find(name);
    if (entry == manifest_.tensors.end()) return fault("the merge wrote no such tensor");
    if (!seen_.insert(name).second) return fault("the tensor is there twice");
    const Manifest::Entry& expected = entry->second;
    if (!expected.file.empty() && expected.file != file)
      return fault(fmt::format("the merge wrote it to {}", expected.file));
    if (expected.bytes != tensor.info.bytes)
      return fault(fmt::format("it has {} bytes, the merge wrote {}", tensor.info.bytes, expected.bytes));
    return true;
  }

  const Checkpoint& checkpoint_;
  const Manifest& manifest_;
  std::vector<VerifyFault>& faults_;
  std::set<std::string_view> seen_;
  std::set<std::string> unreadable_;
};

// --- headers ----------------------------------------------------------------------------------------------

// A flipped bit in a type, a shape or a name can leave a header that reads well, so its bytes are checked too.
void CheckHeaders(const Checkpoint& checkpoint, const Manifest& manifest, std::vector<VerifyFault>* faults) {
  const bool single = manifest.headers.contains("");
  for (const Shard& shard : checkpoint.shards) {
    const auto expected = manifest.headers.find(single ? "" : shard.name);
    if (expected == manifest.headers.end()) continue;  // a file that is not in the manifest is a fault already
    if (HeaderSum(ReadHeaderBytes(shard)) != expected->second)
      faults->push_back({shard.name, "", "its header is not the one the merge wrote"});
  }
}

// --- checksums --------------------------------------------------------------------------------------------

struct Window {
  uint32_t tensor = 0;
  bool last = false;
  std::optional<ResidentRange> range;  // none: the tensor has no bytes
  std::string fault;                   // why it could not be decoded
};
using WindowPtr = std::shared_ptr<Window>;

// What is wrong with the data that `read` reads; "": nothing.
template <typename Read>
std::string FaultIn(Read read) {
  try {
    read();
  } catch (const Error& error) {
    if (!IsAnswer(error)) throw;
    return error.message();
  }
  return "";
}

class Source {
 public:
  Source(const Checkpoint& checkpoint, const std::vector<uint32_t>& tensors)
      : checkpoint_(checkpoint), tensors_(tensors), reader_(checkpoint) {}

  // The next window in file order, or null at the end.
  WindowPtr Next() {
    if (next_ == tensors_.size()) return nullptr;
    const CheckpointTensor& tensor = checkpoint_.tensors[tensors_[next_]];
    const uint64_t bytes = std::min(kWindowBytes, tensor.info.bytes - begin_);
    auto window = std::make_shared<Window>();
    window->tensor = tensors_[next_];
    window->last = begin_ + bytes == tensor.info.bytes;
    if (bytes > 0) window->fault = FaultIn([&] { window->range.emplace(reader_.Read(tensor, begin_, bytes)); });
    begin_ += bytes;
    if (window->last) ++next_, begin_ = 0;
    if (!window->fault.empty()) window->last = true, next_ = tensors_.size(), broken_ = true;
    return window;
  }

  // What follows the last tensor of a stream, or is wrong with those that nobody has asked for.
  std::string Finish() {
    return broken_ ? "" : FaultIn([&] { reader_.Finish(); });
  }

 private:
  const Checkpoint& checkpoint_;
  const std::vector<uint32_t>& tensors_;
  TensorReader reader_;
  size_t next_ = 0;
  uint64_t begin_ = 0;
  bool broken_ = false;   // a stream that has ended, or does not decode: nothing comes behind it
};

class Hasher {
 public:
  Hasher(const Checkpoint& checkpoint, const Manifest& manifest, VerifyReport* report)
      : checkpoint_(checkpoint), manifest_(manifest), report_(*report) {}

  void Add(const Window& window) {
    if (fault_.empty()) fault_ = window.fault;
    if (window.range && fault_.empty()) checksum_.Add(window.range->data(), window.range->bytes());
    if (!window.last) return;
    if (window.range) window.range->CheckUnchanged();
    const CheckpointTensor& tensor = checkpoint_.tensors[window.tensor];
    const std::string sum = SumText(checksum_.Take());
    ++report_.checked;
    report_.bytes += tensor.info.bytes;
    if (const std::string fault = std::exchange(fault_, ""); !fault.empty()) {
      report_.faults.push_back({checkpoint_.shards[tensor.shard].name, tensor.info.name, fault});
      return;
    }
    if (sum == manifest_.tensors.at(tensor.info.name).sum) return;
    report_.faults.push_back({checkpoint_.shards[tensor.shard].name, tensor.info.name,
                              fmt::format("its bytes are not those the merge wrote (XXH3-128 {}, not {})", sum,
                                          manifest_.tensors.at(tensor.info.name).sum)});
  }

 private:
  const Checkpoint& checkpoint_;
  const Manifest& manifest_;
  VerifyReport& report_;
  Checksum checksum_;
  std::string fault_;   // of the tensor whose windows are coming in
};

// One core reads in file order while the other hashes: XXH3 keeps up with any disk, and shards that several
// threads fault in out of order come 40 % slower. Compressed frames are decoded by as many as there are.
void CheckSums(const Checkpoint& checkpoint, const Manifest& manifest, const std::vector<uint32_t>& tensors,
               VerifyReport* report) {
  Source source(checkpoint, tensors);
  Hasher hasher(checkpoint, manifest, report);
  const auto read = [&](tbb::flow_control& control) {
    WindowPtr window = source.Next();
    if (window == nullptr) control.stop();
    return window;
  };
  // A frame that is damaged is a fault, and the others are looked at too.
  const auto load = [](WindowPtr window) {
    if (window->range) window->fault = FaultIn([&] { window->range->Load(); });
    return window;
  };
  const auto hash = [&](const WindowPtr& window) { hasher.Add(*window); };
  CheckThreads(static_cast<size_t>(DefaultThreads()));
  tbb::parallel_pipeline(WindowsInFlight(),
                         tbb::make_filter<void, WindowPtr>(tbb::filter_mode::serial_in_order, read) &
                             tbb::make_filter<WindowPtr, WindowPtr>(tbb::filter_mode::parallel, load) &
                             tbb::make_filter<WindowPtr, void>(tbb::filter_mode::serial_in_order, hash));
  if (const std::string fault = source.Finish(); !fault.empty()) report->faults.push_back({"", "", fault});
}

struct Subject {
  Manifest manifest;
  Checkpoint checkpoint;   // its headers and the index, or what is left of them
};

// A file or a stream has its manifest in its header. Nothing when that is damaged: a fault is added then.
std::optional<Subject> OpenSingle(const std::string& out, std::vector<VerifyFault>* faults) {
  Checkpoint checkpoint;
  try {
    checkpoint = OpenCheckpointForReading(out);
  } catch (const Error& error) {
    if (!IsAnswer(error) || (error.code() == ErrorCode::kUsage && InputStream::IsNamedBy(out))) throw;
    faults->push_back({"", error.tensor(), error.message()});
    return std::nullopt;
  }
  Manifest manifest = ManifestOf(checkpoint);
  return Subject{std::move(manifest), std::move(checkpoint)};
}

std::optional<Subject> OpenDirectory(const std::string& out, VerifyReport* report) {
  Subject subject;
  try {
    subject.manifest = ReadManifest(out);
  } catch (const Error& error) {
    if (!IsAnswer(error) || !FileExists(out + "/" + kManifestName)) throw;
    report->faults.push_back({kManifestName, error.tensor(), error.message()});
    return std::nullopt;
  }
  subject.checkpoint = OpenOrSalvage(out, subject.manifest, report);
  return subject;
}

std::optional<Subject> Open(const std::string& out, VerifyReport* report) {
  if (InputStream::IsNamedBy(out)) return OpenSingle(out, &report->faults);
  if (!FileExists(out))
    throw Error(ErrorCode::kUsage, "there is no such file or directory").Path(out).Hint("give the output of a merge");
  return IsShardFile(out) ? OpenSingle(out, &report->faults) : OpenDirectory(out, report);
}

}  // namespace

VerifyReport Verify(const std::string& out) {
  const auto start = std::chrono::steady_clock::now();
  VerifyReport report;
  const std::optional<Subject> subject = Open(out, &report);
  if (!subject) return report;
  const Manifest& manifest = subject->manifest;
  const Checkpoint& checkpoint = subject->checkpoint;
  report.fingerprint = manifest.fingerprint;
  report.tensors = manifest.tensors.size();
  report.files = checkpoint.shards.size();
  report.warnings = checkpoint.warnings;

  // Every tensor is where the merge put it, and nothing else is there.
  const std::vector<uint32_t> sound = Catalogue(checkpoint, manifest, &report.faults).Match();

  CheckHeaders(checkpoint, manifest, &report.faults);

  // Their bytes.
  CheckSums(checkpoint, manifest, sound, &report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace braid
