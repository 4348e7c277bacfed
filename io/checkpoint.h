// A checkpoint as one catalogue of named tensors, whatever its files: a directory with model.safetensors, a
// directory with shards and model.safetensors.index.json, one .safetensors file, or a model id
// `org/name[@rev]` in the local Hugging Face cache. Any shard may be compressed (shard_frames.h): it keeps its plain
// name in the index, and the file's name has .zst or .planes.zst behind it. Or a stream of one file: `-`, a FIFO, a
// descriptor. Only headers and small JSON files are read. Nothing is ever downloaded.
//
// Immutable after OpenCheckpoint; any thread may read it. Opened files are closed again; each shard keeps its
// FileIdentity, so that whoever maps it later can tell whether it is still the same file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/delta_marks.h"
#include "io/model_config.h"
#include "io/os.h"
#include "io/safetensors.h"

namespace braid {

class CompressedShard;
class InputStream;
class ModelDirectory;

// Offsets and sizes are those of the plain shard, but for the identity's size.
struct Shard {
  std::string path;  // as opened
  std::string name;  // file name within the checkpoint, without what compression adds
  FileIdentity identity;     // of a stream: the size that its header asks for, and nothing else
  uint64_t data_offset = 0;  // where the header ends
  XXH128_hash_t header_sum{};
  std::map<std::string, std::string> metadata;        // __metadata__; not of a checkpoint that was opened to be merged
  std::shared_ptr<const CompressedShard> compressed;  // null: the file is the plain shard, or
  std::shared_ptr<InputStream> stream;                // it comes once and in order, and was read as far as its header,
  std::string header;                                 // which is here if it cannot be read again; as the metadata

  uint64_t bytes() const;
};

// Opens the file at shard->path, of whichever kind its name says it is, reads its header, and fills in the rest but for
// the name. A zstd file without a seek table becomes a stream. Throws Error.
SafetensorsHeader ReadShard(Shard* shard);

// The file in a directory that holds a shard, plain or compressed; "" when there is none. When there are several, adds
// a warning that says which one is used. Throws Error.
std::string FileOfShard(const ModelDirectory& directory, const std::string& name, std::vector<std::string>* warnings);

// All that is in front of the first tensor: length and JSON. Throws Error.
std::string ReadHeaderBytes(const Shard& shard);

struct CheckpointTensor {
  TensorInfo info;
  uint32_t shard = 0;  // index into Checkpoint::shards
};

struct Checkpoint {
  std::string reference;                  // what the user wrote
  std::string directory;                  // empty for a single file
  std::string cache_id;                   // "org/name" when it was found in the Hugging Face cache
  std::string revision;                   // the commit found there
  std::vector<Shard> shards;              // in file-name order
  std::vector<CheckpointTensor> tensors;  // in file order: by shard, then by offset
  ModelConfig config;
  std::optional<DeltaMarks> delta;        // of a delta; its types are in the order of `tensors`
  std::vector<std::string> warnings;

  // Index into `tensors`, or nothing. Logarithmic: a hash table's collisions could be arranged by a file.
  // `guess`: where it is if the guess is right, which is the first place to look at.
  std::optional<uint32_t> Find(std::string_view name, uint32_t guess = 0) const;
  uint64_t TotalBytes() const;   // of all tensors
  uint64_t MemoryBytes() const;  // roughly what this catalogue occupies
  bool HasStream() const;        // a shard that comes once, in order

  std::vector<uint32_t> by_name;  // indices into `tensors`, in the order of their names
};

// A local path wins over the id of a cached model. Of model.safetensors and an index beside it the former
// wins, of a plain shard and a compressed one the plain, of zstd and planes zstd.
//
// Throws Error: kUsage when nothing is there (for an id, the hint is the command that downloads it),
// kBadInput for files that are not what they claim (a shard missing, an index that disagrees, a weight_map
// name that leaves the directory), kIncompatible for what cannot be merged: adapters, quantised weights, deltas,
// only .bin files. `stream`: what the reference names, if it was opened before.
Checkpoint OpenCheckpoint(const std::string& reference, std::shared_ptr<InputStream> stream = nullptr);

// As OpenCheckpoint, but lets quantised checkpoints, adapters and deltas pass: for `inspect`, `diff` and `verify`.
Checkpoint OpenCheckpointForReading(const std::string& reference);

// As OpenCheckpoint, but of a delta, and of nothing else (kIncompatible).
Checkpoint OpenDelta(const std::string& reference, std::shared_ptr<InputStream> stream = nullptr);

}  // namespace braid
