// A recipe: what the user asked for, before any checkpoint is looked at. Our TOML and mergekit's YAML both
// become this one type; from here on nothing knows which it was, except for the two rules of `Syntax`.
//
// Every value keeps its line and column, because many mistakes (a filter that matches nothing, a density that
// varies where one number is needed) only show once the checkpoints are known.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/error.h"
#include "io/shard_frames.h"
#include "ops/dtype.h"
#include "ops/parameters.h"

namespace braid {

struct Location {
  int line = 0, column = 0;  // 1-based
};

enum class Syntax {
  kToml,  // a filter that matches nothing is an error; weight defaults to 1
  kYaml,  // a filter that matches nothing is a warning; weight is required
};

// Some tensors, by a glob over their names (glob.h).
struct NameFilter {
  std::string glob;
  Location where;
};

// One value of a parameter, possibly a gradient over the layers, possibly for some tensors only.
struct Setting {
  std::string filter;          // a glob (glob.h); empty: every tensor. One without a filter is the last of its list
  std::vector<double> values;  // one number, or the points of a gradient; flags are 0/1, choices their index
  Location where;              // of the values
  Location filter_where;       // of the filter, when there is one
};

// Per parameter name, in order of precedence: the first setting whose filter matches a tensor wins.
using Settings = std::map<std::string, std::vector<Setting>, std::less<>>;

// Layers [begin, end) of a model, as many as that are: end > begin.
struct LayerRange {
  uint64_t begin = 0, end = 0;
  Location where;
  uint64_t size() const { return end - begin; }
};

struct RecipeModel {
  std::string reference;  // path or org/name[@revision], as written but for a leading "~/", which is $HOME
  Location where;
  Settings settings;
  std::optional<LayerRange> layers = {};  // of a slice's source
};

// A run of the output's layers, each merged from one layer of every source.
struct RecipeSlice {
  Location where;
  // As Recipe::models. All have `layers`, of one length; or none has: the only slice of a module, all its layers.
  std::vector<RecipeModel> models;
  // What the models are compared with, where the method does that: a source too, but not among `models`.
  std::optional<RecipeModel> base = {};
  std::optional<std::string> base_reference = {};  // the slice's own `base_model`, before the recipe's
  Settings settings = {};                          // go before the module's

  // The source whose order of tensors the output has.
  const RecipeModel& leader() const { return base ? *base : models.front(); }
};

// A part of a model that is merged in its own way: an encoder, a vision tower, or the whole model.
struct RecipeModule {
  std::string name;  // empty: the whole model
  Location where;
  std::vector<RecipeSlice> slices = {};  // at least one
  Settings settings = {};                // go before the recipe's
};

// LiNeS: the merged task vector of layer l of L is scaled by alpha + beta l / (L - 1); outside of the layers by alpha.
struct LayerScale {
  std::optional<double> alpha = {};   // without one it is found: pipeline/layer_scale.h
  double beta = 0;
  Location where = {};
};

// Where the row of one token comes from in a model that does not have it, or in every model.
struct TokenRule {
  enum class Kind { kModel, kZero, kModelToken };
  std::string token;
  Kind kind = Kind::kZero;
  std::string model;                   // kModel, kModelToken; one of the recipe's
  std::optional<std::string> of;       // kModelToken: the row of this token there ...
  std::optional<uint32_t> id;          // ... or of this id
  bool force = false;                  // also where a model has a row of its own
  Location where;
};

// The vocabulary of the output. Without it the sources must agree.
struct RecipeTokenizer {
  enum class Source { kBase, kUnion, kModel };   // without a base, the first model stands for it
  Source source = Source::kUnion;
  std::string model;                   // kModel; need not be one of the recipe's, nor have weights; "~/" expanded
  Location where;
  std::vector<TokenRule> tokens;       // no two with one token
  uint64_t pad_to_multiple_of = 1;     // rows of the output
};

struct ChatTemplate {
  std::string text;                    // Jinja, never looked into; empty: the one that most models have
  Location where;
};

enum class OnMissing { kError, kBase, kSkip };

// What is written, and how.
struct RecipeOutput {
  enum class Content { kCheckpoint, kDelta };   // kDelta: the merged task vector
  Compression compress = Compression::kNone;
  Content content = Content::kCheckpoint;
  std::optional<DType> delta_dtype = {};        // only of a kDelta: float32 or bfloat16
  Location where = {};                          // of the table
};

struct RecipeWarning {
  std::string message;
  Location where;
};

struct Recipe {
  std::string path;  // of the recipe file
  std::string text;  // the file, byte for byte; goes into the model card
  Syntax syntax = Syntax::kToml;

  std::string name;    // of a stage, which others know it by; empty: none
  Location name_where;

  std::string method;  // the name of one of Methods()
  Location method_where;
  std::optional<std::string> base;  // always there when the method needs one
  Location base_where;

  // The sources to merge, as listed, no two with the same reference. A method on task vectors
  // has none for its base: listing the base there is allowed and means nothing. For a method that takes the
  // base as a source (linear) the base is always among them, as the last one unless it is listed elsewhere.
  std::vector<RecipeModel> models;
  // Instead of `models`, one of which is empty. `slices` outside of modules are one module without a name.
  std::vector<RecipeModule> modules;
  Settings settings;  // for every model

  // Which tensors are merged: all, or those that `only` names, less those that `exclude` names. The others are copied.
  std::vector<NameFilter> only, exclude;

  std::optional<DType> dtype;      // type of the output ...
  std::optional<DType> out_dtype;  // ... which this one overrides
  OnMissing on_missing = OnMissing::kError;
  std::optional<LayerScale> layer_scale;  // only with a method that has a lambda, and a base
  std::optional<RecipeTokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  RecipeOutput output;
  std::vector<RecipeWarning> warnings;

  // The merges whose results this one or another of them takes for a model, by StageReference (recipe_stages.h): each
  // behind those that it uses, all of them used. They have no stages of their own, this recipe's path and no text.
  std::vector<Recipe> stages = {};
};

// `.yml` and `.yaml` are mergekit's, everything else is TOML.
Syntax SyntaxOf(const std::string& path);

// Reads a recipe in the syntax of its name. Throws Error(kUsage) with line
// and column (or what ReadSmallFile throws when the file cannot be read). Checks all that needs no
// checkpoint: keys, types, ranges, the method's parameters. A recipe is at most 1 MiB, 64 levels deep and
// 100,000 values, those that YAML aliases repeat included; time and memory are bounded by that, whatever the
// file holds.
Recipe ReadRecipe(const std::string& path);

// The same from a string; `path` is used in messages only.
Recipe ParseTomlRecipe(std::string text, const std::string& path);
Recipe ParseYamlRecipe(std::string text, const std::string& path);

// An Error(kUsage) that points into the recipe.
Error RecipeError(const Recipe& recipe, Location where, std::string message);

// The same error, with the place in the recipe that asked for what failed.
Error AskedForAt(Error error, const Recipe& recipe, Location where);

// The warnings as a user reads them: "recipe.toml:3:1: ...".
std::vector<std::string> WarningTexts(const Recipe& recipe);

// --- resolving values -----------------------------------------------------------------------------------
// All of it is const and safe from any thread.

// Where a tensor stands among the layers of its stack (layer_names.h): t = i / (L - 1), 1 when L = 1, 0 outside
// any stack. The L of a stack is one more than its highest number.
class LayerPositions {
 public:
  explicit LayerPositions(const std::vector<std::string_view>& tensor_names);
  double Of(std::string_view tensor_name) const;

 private:
  std::map<std::string, uint64_t, std::less<>> layers_by_stack_;  // prefix before the first number -> L
};

// Whether `only` and `exclude` leave the tensor to the merge.
bool IsMerged(const Recipe& recipe, std::string_view tensor_name);

// A filter for a message, as its user is likely to have written it: a substring in YAML where it is one.
std::string FilterText(const Recipe& recipe, std::string_view glob);

// The value of a parameter for one tensor: the first matching setting of `model` (when given and the
// parameter is per model), then of the slice and module around it, `between`, in that order, then of the recipe,
// then the default. `tensor_name` is what filters see: the name in the model for a parameter per model, the
// output's otherwise. A number's gradient is interpolated in
// double as (1-f) g[i] + f g[i+1]; flags and choices take g[int(t (len-1))]. Throws RecipeError where YAML
// requires a value and only filters that do not match this tensor give one.
double ResolveParameter(const Recipe& recipe, const RecipeModel* model, const ParameterSpec& spec,
                        std::string_view tensor_name, double layer_position,
                        std::span<const Settings* const> between = {});

// Looks for filters, `only` and `exclude` included, that match none of the tensors. In TOML the first one throws
// RecipeError with the nearest name; in YAML, as mergekit lets them pass, each is added to `warnings`.
void CheckFilters(const Recipe& recipe, const std::vector<std::string_view>& tensor_names,
                  std::vector<RecipeWarning>* warnings);

}  // namespace braid
