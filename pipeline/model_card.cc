#include "pipeline/model_card.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "io/error.h"
#include "io/os.h"
#include "pipeline/recipe_stages.h"

namespace braid {
namespace {

// The licence that a model's own card names; "" when there is none.
std::string LicenceOf(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.directory + "/README.md";
  if (checkpoint.directory.empty() || !FileExists(path)) return "";
  std::string text;
  try {
    text = ReadSmallFile(path, 1 << 20);
  } catch (const Error&) {
    return "";  // a card that cannot be read says nothing
  }
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != "---") return "";
  while (std::getline(lines, line) && line != "---") {
    if (!line.starts_with("license:")) continue;
    std::string value = line.substr(8);
    const size_t begin = value.find_first_not_of(" \"'"), end = value.find_last_not_of(" \"'\r");
    if (begin == std::string::npos) return "";
    value = value.substr(begin, end - begin + 1);
    const bool plain = value.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-+") ==
                       std::string::npos;
    return plain ? value : "";
  }
  return "";
}

std::string CommonLicence(const Plan& plan) {
  std::set<std::string> licences;
  for (const Checkpoint& checkpoint : plan.checkpoints) licences.insert(LicenceOf(checkpoint));
  return licences.size() == 1 ? *licences.begin() : "";
}

// A code fence longer than any run of backticks in the text.
std::string FenceFor(const std::string& text) {
  size_t longest = 0, run = 0;
  for (char c : text) run = c == '`' ? run + 1 : 0, longest = std::max(longest, run);
  return std::string(std::max<size_t>(3, longest + 1), '`');
}

std::string NameOf(const Checkpoint& checkpoint) {
  return checkpoint.cache_id.empty() ? Printable(checkpoint.reference) : checkpoint.cache_id;
}

void AddSeeds(const Recipe& recipe, std::string* remarks) {
  for (const Recipe& stage : recipe.stages) AddSeeds(stage, remarks);
  if (const auto seed = recipe.settings.find("seed"); seed != recipe.settings.end())
    *remarks += fmt::format("\nThe random choices{} were made with the seed {}.\n",
                            recipe.name.empty() ? "" : fmt::format(" of `{}`", Printable(recipe.name)),
                            seed->second.front().values.front());
}

// What a reader cannot see from the recipe's own text.
std::string RemarksOf(const Plan& plan) {
  std::string remarks;
  AddSeeds(plan.recipe, &remarks);
  const auto excluded = std::count_if(plan.tensors.begin(), plan.tensors.end(), [](const PlannedTensor& tensor) {
    return tensor.action == TensorAction::kExclude;
  });
  if (excluded > 0)
    remarks += fmt::format("\n{} of {} tensors were left out of the merge and are those of the {}.\n", excluded,
                           plan.tensors.size(), plan.base >= 0 ? "base" : "first model");
  return remarks;
}

std::string ModelText(const Checkpoint& checkpoint) {
  const std::string name = NameOf(checkpoint);
  return checkpoint.cache_id.empty()
             ? fmt::format("- `{}`\n", name)
             : fmt::format("- [{0}](https://huggingface.co/{0}) at `{1}`\n", name, checkpoint.revision);
}

std::string MethodText(const Plan& plan) {
  std::string text =
      fmt::format("## Method\n\n`{}`: {} ({}).", plan.method->name, plan.method->summary, plan.method->source);
  if (plan.base >= 0)
    text += fmt::format(" The base is `{}`.", NameOf(plan.checkpoints[static_cast<size_t>(plan.base)]));
  text += "\n\n## Models\n\n";
  for (uint32_t model : plan.models) text += ModelText(plan.checkpoints[model]);
  return text;
}

std::string StagesText(const Plan& plan) {
  const auto name_of = [&](uint32_t c) { return fmt::format("`{}`", NameOf(plan.checkpoints[c])); };
  std::string text = "## Method\n\nSeveral merges, one after the other:\n\n";
  for (const PlannedStage& stage : plan.stages) {
    std::string of;
    for (uint32_t model : stage.models) of += (of.empty() ? "" : ", ") + name_of(model);
    text += fmt::format("1. {}`{}` of {}{}: {} ({}).\n",
                        stage.name.empty() ? "" : fmt::format("`stage:{}` is ", Printable(stage.name)),
                        stage.method->name, of,
                        stage.base >= 0 ? ", the base being " + name_of(static_cast<uint32_t>(stage.base)) : "",
                        stage.method->summary, stage.method->source);
  }
  text += "\n## Models\n\n";
  for (const Checkpoint& checkpoint : plan.checkpoints)
    if (!checkpoint.shards.empty() && StageNameOf(checkpoint.reference).empty()) text += ModelText(checkpoint);
  return text;
}

}  // namespace

std::string ModelCard(const Plan& plan, const std::string& title) {
  std::string card = "---\n";
  std::string parents;
  for (const Checkpoint& checkpoint : plan.checkpoints)
    if (!checkpoint.cache_id.empty()) parents += fmt::format("- {}\n", checkpoint.cache_id);
  if (!parents.empty()) card += "base_model:\n" + parents + "base_model_relation: merge\n";
  const bool sentence_transformers =
      !plan.donor_directory.empty() && FileExists(plan.donor_directory + "/modules.json");
  card += fmt::format("library_name: {}\n", sentence_transformers ? "sentence-transformers" : "transformers");
  if (const std::string licence = CommonLicence(plan); !licence.empty()) card += fmt::format("license: {}\n", licence);
  card += "tags:\n- mergekit\n- merge\n- braid\n---\n";
  card += fmt::format("# {}\n\n", Printable(title));
  card += plan.delta()
              ? "This is no checkpoint but a delta: what a merge of pre-trained models, made with Braid, adds to its "
                "base. `braid apply BASE DELTA OUT` makes the checkpoint.\n\n"
              : "This checkpoint is a merge of pre-trained models, made with Braid.\n\n";
  card += plan.stages.empty() ? MethodText(plan) : StagesText(plan);
  card += RemarksOf(plan);
  if (plan.recipe.text.empty()) return card;
  const std::string fence = FenceFor(plan.recipe.text);
  card += fmt::format("\n## Recipe\n\n{}{}\n{}{}{}\n", fence, plan.recipe.syntax == Syntax::kYaml ? "yaml" : "toml",
                      plan.recipe.text, plan.recipe.text.ends_with('\n') ? "" : "\n", fence);
  return card;
}

}  // namespace braid
