// Model ids and the local Hugging Face cache, by the published layout of that cache:
//
//   models--org--name/refs/REVISION            a commit
//   models--org--name/snapshots/COMMIT/FILE    a link to ../../blobs/HASH
//
// Only looks; nothing is ever downloaded, and no network is used.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "io/os.h"

namespace braid {

struct ModelId {
  std::string name;               // "org/name", or "name" for the oldest models
  std::string revision = "main";  // branch, tag, "refs/pr/1" or commit
};

// Nothing when the text cannot be the id of a model on the Hugging Face Hub.
std::optional<ModelId> ParseModelId(std::string_view reference);

// HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. Empty
// when not even HOME is set.
std::string HfCacheDirectory();

struct CachedSnapshot {
  std::string directory;
  std::string commit;
};

// The snapshot of that revision, if the cache has one. Throws Error(kBadInput) for a cache that is damaged.
std::optional<CachedSnapshot> FindSnapshot(const ModelId& id);

// The name of the blob that a file of a snapshot links to, which is the hash of its content: SHA-256, or Git's SHA-1
// for small files. Nothing when `path` is no such link, or its blob is not the file of this identity.
std::optional<std::string> BlobName(const std::string& path, const FileIdentity& identity);

// "hf download org/name --revision main"
std::string DownloadCommand(const ModelId& id);

// "~/x" as $HOME/x; everything else as it is.
std::string ExpandHome(const std::string& path);

}  // namespace braid
