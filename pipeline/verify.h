// Whether a merged checkpoint is still what the merge wrote: its headers, its index, and the checksum of every
// tensor against the manifest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

struct VerifyFault {
  std::string file;    // within OUT, where it is known
  std::string tensor;  // empty when the fault is of a whole file
  std::string reason;
};

struct VerifyReport {
  std::string fingerprint;       // of the merge, as the manifest says
  uint64_t tensors = 0;          // of the manifest
  uint64_t checked = 0;          // tensors whose checksum was computed
  uint64_t bytes = 0;            // of those
  uint64_t files = 0;            // shards that were read
  double seconds = 0;
  std::vector<VerifyFault> faults;
  std::vector<std::string> warnings;
  bool ok() const { return faults.empty(); }
};

// Goes on after a fault, so that every bad tensor and every bad file is named; what keeps a file from being read
// at all is a fault of it too. Throws Error only when the question has no answer: OUT does not exist (kUsage),
// holds no manifest (kBadInput), the system fails to read (kIo), a file changes meanwhile (kInputChanged).
VerifyReport Verify(const std::string& out);

}  // namespace braid
