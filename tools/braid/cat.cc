// braid cat FILE: a compressed shard as the plain file.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "io/error.h"
#include "io/plain_shard.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

void Run(const std::string& file) {
  if (::isatty(STDOUT_FILENO) == 1)
    throw Error(ErrorCode::kUsage, "standard output is a terminal, which weights are not for")
        .Hint("redirect it: braid cat FILE > model.safetensors");
  ReadPlainShard(file, &Interrupt(), [](const std::byte* bytes, size_t size) {
    if (std::fwrite(bytes, 1, size, stdout) != size) throw SystemError(errno, "write the result", "standard output");
  });
}

}  // namespace

void AddCatCommand(CLI::App& app) {
  auto file = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "cat",
      "Write a compressed shard to standard output as it was\n\n"
      "  braid cat model.safetensors.planes.zst > model.safetensors\n\n"
      "Reads .safetensors.zst (as zstd -d does) and .safetensors.planes.zst, which only braid puts together again; a\n"
      "plain file is copied. FILE may be -: standard input.\n");
  command->add_option("FILE", *file, "A shard, or -")->required();
  command->callback([file] { Run(*file); });
}

}  // namespace braid
