#include "pipeline/recipe_stages.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace braid {
namespace {

constexpr std::string_view kPrefix = "stage:";
constexpr size_t kMostStages = 64;   // ChainTree::kMostSteps

std::string_view NameKey(const Recipe& recipe) { return recipe.syntax == Syntax::kToml ? "stage" : "document"; }

// What a stage takes from others, and where it says so.
std::vector<std::pair<std::string, Location>> UsesOf(const Recipe& stage) {
  std::vector<std::pair<std::string, Location>> uses;
  const auto add = [&](const std::string& reference, Location where) {
    if (const std::string_view name = StageNameOf(reference); !name.empty()) uses.emplace_back(name, where);
  };
  if (stage.base) add(*stage.base, stage.base_where);
  for (const RecipeModel& model : stage.models) add(model.reference, model.where);
  for (const RecipeModule& module : stage.modules)
    for (const RecipeSlice& slice : module.slices) {
      if (slice.base_reference) add(*slice.base_reference, slice.where);
      if (slice.base) add(slice.base->reference, slice.base->where);
      for (const RecipeModel& model : slice.models) add(model.reference, model.where);
    }
  return uses;
}

class StageReader {
 public:
  StageReader(std::span<const RecipeNode> tables, Recipe* recipe, const ReadStage& read)
      : tables_(tables), file_(*recipe), read_(read) {}

  void Read() {
    if (tables_.empty()) throw RecipeError(file_, {1, 1}, "no stages").Hint("write each of them as [[stages]]");
    if (tables_.size() > kMostStages)
      throw RecipeError(file_, tables_[kMostStages].where, fmt::format("more than {} stages", kMostStages))
          .Hint("merge some of them before, with a recipe of their own");
    ReadNames();
    for (const RecipeNode& table : tables_) {
      Recipe stage;
      stage.path = file_.path, stage.syntax = file_.syntax;
      read_(table, names_, &stage);
      stages_.push_back(std::move(stage));
    }
    const size_t result = ResultOf();
    Visit(result, std::nullopt);
    RefuseUnused();
    Join(result);
  }

 private:
  void ReadNames() {
    std::map<std::string_view, Location> first;
    for (const RecipeNode& table : tables_) {
      const RecipeNode* name = table.Find("name");
      if (name == nullptr || name->kind != RecipeNode::Kind::kText || name->text.empty()) continue;   // read_ complains
      const auto [earlier, is_new] = first.emplace(name->text, name->where);
      if (!is_new)
        throw RecipeError(file_, name->where, fmt::format("a second {} is called {}, the first in line {}",
                                                          NameKey(file_), Quoted(name->text), earlier->second.line));
      names_.insert(name->text);
    }
  }

  // TOML: the last one. YAML: the one without a name, or else the last that no other uses.
  size_t ResultOf() const {
    std::vector<size_t> nameless;
    for (size_t i = 0; i < stages_.size(); ++i)
      if (stages_[i].name.empty()) nameless.push_back(i);
    if (file_.syntax == Syntax::kToml) {
      if (!nameless.empty() && nameless.front() + 1 < stages_.size())
        throw RecipeError(file_, tables_[nameless.front()].where, "a stage without a 'name'")
            .Hint("only the last stage, which is the result, needs none");
      return stages_.size() - 1;
    }
    if (nameless.size() > 1)
      throw RecipeError(file_, tables_[nameless[1]].where,
                        fmt::format("a second document without a 'name', the first in line {}",
                                    tables_[nameless[0]].where.line))
          .Hint("the one without a name is the result: name the others");
    if (!nameless.empty()) return nameless.front();
    StageNames used;
    for (const Recipe& stage : stages_)
      for (const auto& [name, where] : UsesOf(stage)) used.insert(name);
    for (size_t i = stages_.size(); i-- > 0;)
      if (!used.contains(stages_[i].name)) return i;
    return stages_.size() - 1;   // in a circle, which Visit finds
  }

  // Puts a stage behind all that it uses. `use`: where another one asks for it.
  void Visit(size_t i, std::optional<Location> use) {
    State& state = states_.try_emplace(i, State::kNew).first->second;
    if (state == State::kDone) return;
    if (state == State::kOpen)
      throw RecipeError(file_, *use, fmt::format("the stage {} would need its own result", Quoted(stages_[i].name)));
    state = State::kOpen;
    for (const auto& [name, where] : UsesOf(stages_[i])) {
      const auto used = std::find_if(stages_.begin(), stages_.end(),
                                     [&](const Recipe& stage) { return stage.name == name; });
      Visit(static_cast<size_t>(used - stages_.begin()), where);
    }
    states_[i] = State::kDone;
    order_.push_back(i);
  }

  void RefuseUnused() const {
    for (size_t i = 0; i < stages_.size(); ++i)
      if (!states_.contains(i))
        throw RecipeError(file_, stages_[i].name_where,
                          fmt::format("the result does not depend on the {} {}", NameKey(file_),
                                      Quoted(stages_[i].name)))
            .Hint("what is not used has a recipe of its own");
  }

  void Join(size_t result) {
    std::vector<Recipe> stages;
    for (size_t i : order_)
      if (i != result) stages.push_back(std::move(stages_[i]));
    std::string text = std::move(file_.text);
    file_ = std::move(stages_[result]);
    file_.text = std::move(text);
    for (Recipe& stage : stages)
      for (RecipeWarning& warning : std::exchange(stage.warnings, {})) file_.warnings.push_back(std::move(warning));
    file_.stages = std::move(stages);
  }

  enum class State { kNew, kOpen, kDone };
  std::span<const RecipeNode> tables_;
  Recipe& file_;
  const ReadStage& read_;
  StageNames names_;
  std::vector<Recipe> stages_;   // as in the file
  std::map<size_t, State> states_;
  std::vector<size_t> order_;
};

}  // namespace

std::string StageReference(std::string_view name) { return std::string(kPrefix) + std::string(name); }

std::string_view StageNameOf(std::string_view reference) {
  return reference.starts_with(kPrefix) ? reference.substr(kPrefix.size()) : std::string_view();
}

void ReadStages(std::span<const RecipeNode> tables, Recipe* recipe, const ReadStage& read) {
  StageReader(tables, recipe, read).Read();
}

}  // namespace braid
