// braid recipe check FILE, braid recipe convert A B: recipes without their models.
#include "pipeline/recipe.h"

#include <fmt/format.h>

#include <cerrno>
#include <memory>

#include "io/error.h"
#include "io/json.h"
#include "io/os.h"
#include "io/shard_writer.h"
#include "pipeline/recipe_writer.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

struct RecipeArguments {
  std::string from, to;
  bool force = false;
};

void PrintWarnings(const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings)
    std::fputs(fmt::format("warning: {}\n", Printable(warning)).c_str(), stderr);
}

void Check(const RecipeArguments& arguments) {
  const Recipe recipe = ReadRecipe(arguments.from);
  const std::vector<std::string> warnings = WarningTexts(recipe);
  PrintWarnings(warnings);
  if (JsonWanted()) {
    Json models = Json::array();
    for (const RecipeModel& model : recipe.models) models.push_back(model.reference);
    Json stages = Json::array();
    for (const Recipe& stage : recipe.stages) stages.push_back({{"name", stage.name}, {"method", stage.method}});
    const Json out = {{"status", "ok"},
                      {"recipe", recipe.path},
                      {"syntax", recipe.syntax == Syntax::kYaml ? "yaml" : "toml"},
                      {"method", recipe.method},
                      {"base", recipe.base ? Json(*recipe.base) : Json()},
                      {"models", models},
                      {"stages", stages},
                      {"warnings", warnings}};
    return fmt::print("{}\n", out.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  fmt::print("{}: a sound recipe: {} of {} model{}{}{}\n", Printable(recipe.path), recipe.method, recipe.models.size(),
             recipe.models.size() == 1 ? "" : "s",
             recipe.base ? fmt::format(", base {}", Printable(*recipe.base)) : "",
             recipe.stages.empty() ? "" : fmt::format(", behind {} other stage{}", recipe.stages.size(),
                                                      recipe.stages.size() == 1 ? "" : "s"));
}

void Convert(const RecipeArguments& arguments) {
  if (FileExists(arguments.to) && !arguments.force)
    throw Error(ErrorCode::kUsage, "it exists already")
        .Path(arguments.to)
        .Hint("choose another name, or --force to replace it");
  const Recipe recipe = ReadRecipe(arguments.from);
  std::vector<std::string> warnings = WarningTexts(recipe);
  const std::string text = WriteRecipe(recipe, SyntaxOf(arguments.to), &warnings);
  PrintWarnings(warnings);
  const std::string staged = arguments.to + ".partial";
  TheOs().Unlink(staged.c_str());
  WriteDurably(staged, text);
  if (TheOs().Rename(staged.c_str(), arguments.to.c_str(), 0) < 0) throw SystemError(errno, "write it", arguments.to);
  if (JsonWanted())
    fmt::print("{}\n", Json({{"status", "ok"}, {"output", arguments.to}, {"warnings", warnings}})
                           .dump(-1, ' ', false, Json::error_handler_t::replace));
  else
    fmt::print("output: {}\n", Printable(arguments.to));
}

}  // namespace

void AddRecipeCommand(CLI::App& app) {
  CLI::App* recipe = app.add_subcommand("recipe",
                                        "Check a recipe, or convert it between TOML and mergekit's YAML\n\n  braid "
                                        "recipe convert merge.yml merge.toml\n");
  recipe->require_subcommand(1);
  auto arguments = std::make_shared<RecipeArguments>();

  CLI::App* check = recipe->add_subcommand(
      "check",
      "Check a recipe as far as it can be without its models\n\n  braid recipe check merge.yml\n\n"
      "With the models, too: braid plan.\n");
  check->add_option("RECIPE", arguments->from, "Recipe: our TOML, or mergekit's YAML (.yml, .yaml)")->required();
  AddJsonFlag(check);
  check->callback([arguments] { Check(*arguments); });

  CLI::App* convert = recipe->add_subcommand(
      "convert",
      "Write a recipe in the other syntax, or tidily in the same\n\n  braid recipe convert merge.yml merge.toml\n\n"
      "The names decide: .yml and .yaml are mergekit's YAML, everything else is TOML. Of the comments only the one at "
      "the\n"
      "top is kept.\n");
  convert->add_option("FROM", arguments->from, "Recipe to read")->required();
  convert->add_option("TO", arguments->to, "Recipe to write")->required();
  convert->add_flag("--force", arguments->force, "Replace TO");
  AddJsonFlag(convert);
  convert->callback([arguments] { Convert(*arguments); });
}

}  // namespace braid
