// Synthetic checkpoints: a base model and fine-tunes of it, as Hugging Face directories that any client
// loads. They have the tensors, shapes and order of a real architecture, and weights that behave like real
// ones under trimming, sign election and rounding: N(0, 0.02^2) for matrices, near 1 for norms, and a heavy-
// tailed task vector (Student's t, 3 degrees of freedom, times 5e-4) on top in every fine-tune.
//
// Memory: two pools of at most 64 MiB and one buffer per thread, whatever the model's size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/dtype.h"
#include "pipeline/architectures.h"

namespace braid {

struct SynthOptions {
  const Architecture* architecture = nullptr;
  std::string output;                       // the directory of the family; made if it is not there
  std::vector<std::string> finetunes;       // directory names beside "base"
  DType dtype = DType::kBF16;               // BF16, F16 or F32
  uint64_t shard_bytes = 2'000'000'000;     // a shard is closed before it would exceed this
  uint64_t seed = 0;
  int threads = 0;                          // 0: as many as there are processors, at most 4
};

struct SynthReport {
  uint64_t models = 0;
  uint64_t shards_per_model = 0;
  uint64_t tensor_bytes_per_model = 0;
  uint64_t bytes_written = 0;               // of safetensors files, headers included
};

// Writes output/base and output/NAME for each fine-tune. The bytes depend on architecture, type, shard size,
// seed and the position of the fine-tune in the list, not on the threads. Each model appears under its name
// only when it is complete and on the disk. Throws Error: kUsage for names that are no directory names or
// exist already, kIo when the disk is too small (checked first) or refuses.
SynthReport SynthesizeFamily(const SynthOptions& options);

}  // namespace braid
