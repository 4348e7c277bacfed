// braid synth ARCH OUT: writes a family of synthetic checkpoints.
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "io/error.h"
#include "pipeline/synth.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

struct SynthArguments {
  std::string architecture, dtype = "bf16";
  int finetunes = 3;
  std::vector<std::string> names;
  SynthOptions options;
};

std::vector<std::string_view> ArchitectureNames() {
  std::vector<std::string_view> names;
  for (const Architecture& a : Architectures()) names.push_back(a.name);
  return names;
}

const Architecture* ArchitectureOrError(const std::string& name) {
  if (const Architecture* found = FindArchitecture(name)) return found;
  const auto names = ArchitectureNames();
  Error error(ErrorCode::kUsage, fmt::format("there is no architecture '{}'", name));
  const std::string near = NearestName(name, names);
  if (near.empty()) throw error.Hint(fmt::format("choose one of: {}", fmt::join(names, ", ")));
  throw error.Hint(fmt::format("did you mean '{}'?", near));
}

void Run(const SynthArguments& arguments) {
  SynthOptions options = arguments.options;
  options.architecture = ArchitectureOrError(arguments.architecture);
  options.dtype = arguments.dtype == "f32"   ? DType::kF32
                  : arguments.dtype == "f16" ? DType::kF16
                                             : DType::kBF16;
  options.finetunes = arguments.names;
  if (options.finetunes.empty())
    for (int i = 1; i <= arguments.finetunes; ++i) options.finetunes.push_back(fmt::format("ft{}", i));

  const auto start = std::chrono::steady_clock::now();
  const SynthReport report = SynthesizeFamily(options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double each = static_cast<double>(report.tensor_bytes_per_model) / 1e9;
  const double total = static_cast<double>(report.bytes_written) / 1e9;
  fmt::print("{}: base + {} fine-tunes of {}, {:.2f} GB each in {} shard(s)\n", options.output,
             report.models - 1, options.architecture->name, each, report.shards_per_model);
  fmt::print("{:.2f} GB in {:.1f} s, {:.2f} GB/s\n", total, seconds, total / seconds);
}

}  // namespace

void AddSynthCommand(CLI::App& app) {
  auto arguments = std::make_shared<SynthArguments>();
  CLI::App* command = app.add_subcommand(
      "synth",
      "Write a base model and fine-tunes with random weights\n\n  braid synth small models --names math,code,chat\n");
  command->add_option("ARCH", arguments->architecture,
                      fmt::format("Architecture: {}", fmt::join(ArchitectureNames(), ", ")))->required();
  command->add_option("OUT", arguments->options.output, "Directory for base/, ft1/, ft2/, ...")->required();
  auto* count = command->add_option("--finetunes", arguments->finetunes, "How many fine-tunes")
                    ->check(CLI::Range(0, 1000))->capture_default_str();
  command->add_option("--names", arguments->names, "Their directories, instead of ft1,ft2,...")
      ->delimiter(',')->excludes(count);
  command->add_option("--dtype", arguments->dtype, "Element type")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))->capture_default_str();
  command->add_option("--shard-size", arguments->options.shard_bytes, "Largest shard, as 2GB or 500MiB")
      ->transform(CLI::AsSizeValue(true))->check(CLI::PositiveNumber);
  command->add_option("--seed", arguments->options.seed, "Seed of the random weights")->capture_default_str();
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
