// An output that appears all at once. Files are written to OUT.partial beside OUT, under a lock; Publish makes them
// durable and renames. A crash at any moment leaves at most OUT.partial, never something that looks finished.
//
// OUT is a directory, or one file when it ends in `.safetensors` (and perhaps what compressed ones end in). Where OUT
// is an empty mount point, which cannot be replaced, files are staged inside it as OUT/.partial and moved out at the
// end, the index (or the only shard) last.
//
// Several processes may write one output, on machines that share a file system, at once or one after another. They
// stage it in OUT.partial/ranks-KEY/checkpoint, where KEY stands for all that must be the same for all of them, and
// nothing is removed until it is published.
#pragma once

#include <string>
#include <vector>

#include "io/os.h"

namespace braid {

class Staging {
 public:
  // Checks OUT, takes the lock, creates the staging place. `inputs` are files and directories that must not be
  // replaced. `force` allows replacing an existing OUT that holds nothing but what a checkpoint holds.
  // Throws Error: kUsage for an OUT that must not be written, kIo for a live OUT.partial or a failing system.
  Staging(const std::string& out, bool force, const std::vector<std::string>& inputs);
  // Of several processes: `key` is 32 hex digits. kUsage, too, where OUT.partial is of another key, and where OUT
  // cannot be replaced by a rename.
  Staging(const std::string& out, bool force, const std::vector<std::string>& inputs, const std::string& key);
  ~Staging();  // removes what was staged and not published, unless others use it too
  Staging(const Staging&) = delete;

  bool single_file() const { return single_file_; }
  const std::string& out() const { return out_; }

  // Of several processes: a directory for what they leave each other, with a name that no shard has.
  const std::string& shared_directory() const { return shared_; }
  // Removes what processes of this key have left beside an OUT that one of them published, as one that dies after its
  // last rename does.
  static void RemoveLeftovers(const std::string& out, const std::string& key);
  // Of several processes, one that leaves before it has written anything: removes what nobody else uses either.
  void RemoveIfEmpty();
  // Of several processes: removes every file of the output but these. For the one that is about to publish.
  void KeepOnly(const std::vector<std::string>& names);

  // Where to write the file called `name` ("model.safetensors", "1_Pooling/config.json"); makes its directory.
  // For a single file, the one path whatever the name.
  std::string PathFor(const std::string& name);

  // For files that are no part of the output: what the name of a directory begins with, before a hyphen and six letters
  // or digits. Whoever makes it removes it before Publish.
  std::string scratch_directory() const { return staging_ + "/.scratch"; }

  // What a user should know: a dead OUT.partial was removed.
  const std::vector<std::string>& notes() const { return notes_; }

  // All files are complete and synced: make their names durable and OUT visible. `last` is the file that marks a
  // complete checkpoint (the index, or model.safetensors).
  void Publish(const std::string& last);

 private:
  void TakeLock();
  void Share(const std::string& key);
  void HideShared();
  void RemoveHidden();
  void PublishInside(const std::string& last);

  std::string out_, parent_, staging_;
  std::string partial_, shared_;   // OUT.partial, and the directory in it; the latter only of several processes
  bool single_file_ = false, inside_ = false, exists_ = false, published_ = false;
  Fd lock_;
  std::vector<std::string> files_, notes_;
};

// The checks of a target on their own, for `plan`: throws what the constructor would, creates nothing.
void CheckOutputPath(const std::string& out, bool force, const std::vector<std::string>& inputs);

// Bytes free for an unprivileged writer on the file system that holds `path` (or its nearest existing parent).
uint64_t FreeSpace(const std::string& path);

// Bytes that a file has on its disk, reserved ones too; 0 where there is none. Throws Error.
uint64_t AllocatedBytes(const std::string& path);

}  // namespace braid
