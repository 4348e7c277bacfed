// braid cat FILE: a compressed shard as the plain file.
#include <fmt/format.h>

#include <memory>

#include "io/byte_stream.h"
#include "io/checksum.h"
#include "io/json.h"
#include "io/plain_shard.h"
#include "pipeline/budget.h"
#include "pipeline/manifest.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

struct CatArguments {
  std::string file;
  int threads = 0;
};

void Run(const CatArguments& arguments) {
  RouteResults("-");
  CheckStandardOutput({arguments.file});
  std::atomic<uint64_t> bytes{0};
  Checksum sum;
  const std::atomic<bool> cancelled{false};   // a signal ends the program
  const std::unique_ptr<ByteStream> out = StandardOutputStream(&bytes, &sum, &cancelled);
  const int threads = arguments.threads > 0 ? arguments.threads : DefaultThreads();
  ReadPlainShard(arguments.file, static_cast<size_t>(threads), &Interrupt(),
                 [&](const std::byte* data, size_t size) { out->Write(data, size); });
  out->Finish();
  if (!JsonWanted()) return;
  const Json told = {{"status", "ok"}, {"file", arguments.file}, {"bytes_written", bytes.load()},
                     {"xxh3_128", SumText(sum.Take())}};
  fmt::print(Results(), "{}\n", told.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

void AddCatCommand(CLI::App& app) {
  auto arguments = std::make_shared<CatArguments>();
  CLI::App* command = app.add_subcommand(
      "cat",
      "Write a compressed shard to standard output as it was\n\n"
      "  braid cat model.safetensors.planes.zst > model.safetensors\n"
      "  braid cat model.safetensors --json > /dev/null      its length and hash: those of what left, if whole\n\n"
      "Reads .safetensors.zst (as zstd -d does) and .safetensors.planes.zst, which only braid puts together again; a\n"
      "plain file is copied. FILE may be -: standard input. With --json, bytes and XXH3-128 of what was written are said\n"
      "on standard error, as braid merge says them of its stream; xxh128sum gives the same hash.\n");
  command->add_option("FILE", arguments->file, "A shard, or -")->required();
  command->add_option("--threads", arguments->threads, "Threads that decode. Default: one per core")
      ->check(CLI::Range(1, 1024));
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
