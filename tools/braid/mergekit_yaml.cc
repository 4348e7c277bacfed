// braid mergekit-yaml CONFIG OUT: `merge` with the command line of mergekit-yaml, as of mergekit 0.1.5. What has a
// meaning here is done; what has none is accepted, and named in one note.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <memory>
#include <optional>

#include "io/error.h"
#include "io/os.h"
#include "pipeline/budget.h"
#include "pipeline/recipe_writer.h"
#include "tools/braid/command.h"
#include "tools/braid/merge_options.h"

namespace braid {
namespace {

struct MergekitArguments {
  MergeArguments merge;
  bool copy_tokenizer = true, write_model_card = true;
  int verbosity = 0;
  std::string shard_size, cache;
  std::optional<int64_t> seed;
  std::vector<std::string> ignored;  // as they were written
};

// mergekit's N, NK, NM, NB: decimal bytes, whatever its help says; and our own sizes.
uint64_t ParseShardSize(const std::string& text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  const bool billions = parsed.ec == std::errc() && parsed.ptr + 1 == end && (*parsed.ptr == 'b' || *parsed.ptr == 'B');
  if (billions && number > 0 && number < 1'000'000'000) return number * 1'000'000'000;
  return ParseSize(text, "--out-shard-size");
}

// YAML, whatever the file is called; TOML when it says so.
Recipe ReadConfig(const std::string& path) {
  if (path.ends_with(".toml")) return ReadRecipe(path);
  return ParseYamlRecipe(ReadSmallFile(path), path);
}

void SeedRecipe(int64_t seed, Recipe* recipe) {
  if (!SetSeed(recipe, static_cast<double>(seed))) return;
  recipe->text = WriteRecipe(*recipe, recipe->syntax);  // with the seed that is used
}

void Run(MergekitArguments& arguments) {
  RouteResults(arguments.merge.out);
  HandleSignals();
  if (!arguments.cache.empty()) setenv("HF_HUB_CACHE", arguments.cache.c_str(), 1);
  MergeOptions options;
  options.out = arguments.merge.out;
  options.plan = PlanOptionsFrom(arguments.merge);
  if (!arguments.shard_size.empty()) options.plan.shard_bytes = ParseShardSize(arguments.shard_size);
  options.force = arguments.merge.force;
  options.quiet = arguments.merge.quiet;
  options.copy_tokenizer = arguments.copy_tokenizer;
  options.write_model_card = arguments.write_model_card;
  Recipe recipe = ReadConfig(arguments.merge.recipe);
  if (arguments.seed) SeedRecipe(*arguments.seed, &recipe);
  if (!arguments.ignored.empty() && !options.quiet)
    std::fputs(fmt::format("note: without a meaning here: {}\n", fmt::join(arguments.ignored, ", ")).c_str(), stderr);
  MergeAndReport(std::move(recipe), options, arguments.verbosity > 0);
}

// Flags about GPUs, pickles and remote code, of which this program has none; about memory, which it bounds by itself;
// and about models that do not fit together, which are always an error. As --no-... they ask for what is so anyway.
void AddIgnored(CLI::App* command, MergekitArguments* arguments) {
  constexpr const char* kFlags[] = {"allow-crimes",   "unsafe-truncate-embeddings", "cuda",          "low-cpu-memory",
                                    "clone-tensors",  "trust-remote-code",          "lazy-unpickle", "read-to-gpu",
                                    "multi-gpu",      "async-write"};
  constexpr const char* kValues[] = {"lora-merge-cache", "lora-merge-dtype", "device", "write-threads"};
  constexpr const char* kGroup = "Accepted, without a meaning here";
  for (const std::string name : kFlags) {
    const std::string option = "--" + name;
    command->add_flag_callback(option, [arguments, option] { arguments->ignored.push_back(option); })->group(kGroup);
    command->add_flag_callback("--no-" + name, [] {})->group("");
  }
  command->add_flag_callback("--gpu-rich", [arguments] { arguments->ignored.push_back("--gpu-rich"); })->group(kGroup);
  command->add_flag_callback("--safe-serialization", [] {}, "Always so")->group(kGroup);
  const auto no_pickles = [arguments] { arguments->ignored.push_back("--no-safe-serialization"); };
  command->add_flag_callback("--no-safe-serialization", no_pickles)->group("");
  for (const std::string name : kValues)
    command
        ->add_option_function<std::string>(
            "--" + name, [arguments, name](const std::string&) { arguments->ignored.push_back("--" + name); })
        ->group(kGroup);
}

}  // namespace

void AddMergekitYamlCommand(CLI::App& app) {
  auto arguments = std::make_shared<MergekitArguments>();
  CLI::App* command = app.add_subcommand(
      "mergekit-yaml",
      "Merge with the command line of mergekit-yaml\n\n"
      "  braid mergekit-yaml config.yml merged --cuda --copy-tokenizer --allow-crimes --out-shard-size 1B "
      "--lazy-unpickle\n");
  MergeArguments& merge = arguments->merge;
  command->add_option("CONFIG", merge.recipe, "mergekit's YAML")->required();
  command->add_option("OUT", merge.out, "Directory to write, or - for standard output")->required();
  command->add_option("--out-shard-size", arguments->shard_size,
                      "Largest output shard in bytes, as 500M or 1B. Default: 5B");
  command->add_flag("--copy-tokenizer,!--no-copy-tokenizer", arguments->copy_tokenizer,
                    "Copy the tokenizer's files. Default: yes");
  command->add_flag("--write-model-card,!--no-write-model-card", arguments->write_model_card,
                    "Write README.md. Default: yes");
  command->add_option("--random-seed", arguments->seed, "Seed of the random methods, before the recipe's own");
  command->add_option("-j,--num-threads", merge.threads, "Worker threads. Default: one per core")
      ->check(CLI::Range(1, 1024));
  command->add_option("--transformers-cache", arguments->cache,
                      "Where ids of models are looked up. Default: the Hugging Face cache");
  command->add_flag("-v", arguments->verbosity, "Print bytes and times per stage");
  command->add_flag("--quiet,!--no-quiet", merge.quiet, "Print nothing but errors");
  command->add_option("--memory", merge.memory, "Braid's own: most memory to use, as 512MiB or 4GB");
  command->add_flag("--force", merge.force, "Braid's own: replace OUT if it is a checkpoint");
  AddJsonFlag(command);
  AddIgnored(command, arguments.get());
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
