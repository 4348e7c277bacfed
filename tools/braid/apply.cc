// braid apply BASE DELTA OUT: the checkpoint that a base and a delta make.
#include <memory>
#include <string>
#include <utility>

#include "pipeline/recipe_output.h"
#include "pipeline/run.h"
#include "tools/braid/command.h"
#include "tools/braid/merge_options.h"

namespace braid {
namespace {

struct ApplyArguments {
  std::string base, delta;
  MergeArguments merge;
};

void Run(const ApplyArguments& arguments) {
  HandleSignals();
  MergeOptions options;
  options.out = arguments.merge.out;
  options.plan = PlanOptionsFrom(arguments.merge);
  options.force = arguments.merge.force;
  options.quiet = arguments.merge.quiet;
  Recipe recipe = ApplyRecipe(arguments.base, arguments.delta);
  if (const auto compress = ParseCompression(arguments.merge.compress)) recipe.output.compress = *compress;
  MergeAndReport(std::move(recipe), options, arguments.merge.stats);
}

}  // namespace

void AddApplyCommand(CLI::App& app) {
  auto arguments = std::make_shared<ApplyArguments>();
  CLI::App* command = app.add_subcommand(
      "apply", "Add a delta to its base: the bytes of the merge that wrote the delta\n\n"
               "  braid merge configs/delta.toml delta\n  braid apply models/base delta merged\n");
  command->add_option("BASE", arguments->base, "The base of that merge: the same files")->required();
  command
      ->add_option("DELTA", arguments->delta, "What braid merge wrote with content = \"delta\" under [output]")
      ->required();
  command->add_option("OUT", arguments->merge.out, "As for braid merge")->required();
  AddResourceOptions(command, &arguments->merge);
  command->add_flag("--force", arguments->merge.force, "Replace OUT if it is a checkpoint");
  command->add_flag("--quiet", arguments->merge.quiet, "Print nothing but errors");
  command->add_flag("--stats", arguments->merge.stats, "Print bytes and times per stage");
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
