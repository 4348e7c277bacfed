// Bad recipes, each with the place it must be blamed on and words that must be in the message.
#include <gtest/gtest.h>

#include <string>

#include "pipeline/recipe.h"

namespace braid {
namespace {

struct BadRecipe {
  const char* name;
  const char* place;     // line:column
  const char* fragment;  // of the message
  const char* text;
};

std::string ErrorOf(const BadRecipe& bad, Syntax syntax, const std::string& path) {
  try {
    if (syntax == Syntax::kToml)
      ParseTomlRecipe(bad.text, path);
    else
      ParseYamlRecipe(bad.text, path);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage) << bad.name;
    return error.what();
  }
  return "no error";
}

template <size_t n>
void ExpectErrors(const BadRecipe (&recipes)[n], Syntax syntax, const std::string& path) {
  for (const BadRecipe& bad : recipes) {
    const std::string what = ErrorOf(bad, syntax, path);
    EXPECT_TRUE(what.starts_with(path + ":" + bad.place + ": ")) << bad.name << ": " << what;
    EXPECT_NE(what.find(bad.fragment), std::string::npos) << bad.name << ": " << what;
  }
}

// A ties recipe in TOML that is good but for what is added in line 3 and from there on.
#define TIES "method = 'ties'\nbase = 'b'\n"
#define TWO_MODELS "[[models]]\npath = 'x'\n[[models]]\npath = 'y'\n"

const BadRecipe kBadToml[] = {
    {"empty file", "1:1", "no 'method'; name one of ties", ""},
    {"broken syntax", "2:8", "", "method = 'ties'\nbase = = 1\n"},
    {"duplicate key", "3:8", "cannot redefine existing string 'base'", TIES "base = 'c'\n" TWO_MODELS},
    {"table without a name", "3:2", "expected bare key", TIES "[.models]\n"},
    {"three brackets", "3:3", "expected bare key", TIES "[[[models]]]\n"},
    {"header broken off", "3:3", "", TIES "[["},
    {"gradient with a wrong end", "5:14", "could not determine value type",
     TIES "[[models]]\npath = 'x'\nweight = [1, }\n"},
    {"method of a wrong type", "1:10", "'method' must be text, not the number 3", "method = 3\n"},
    {"empty method", "1:10", "'method' is empty", "method = ''\n"},
    {"misspelt method", "1:10", "unknown method 'tise'; did you mean 'ties'?", "method = 'tise'\n"},
    {"method in capitals", "1:10", "did you mean 'ties'?", "method = 'TIES'\n"},
    {"unknown method", "1:10", "known here: ties, task_arithmetic", "method = 'frobnicate'\n"},
    {"seed with a fraction", "4:8", "'seed' must be a whole number, not 0.5",
     "method = 'dare_ties'\nbase = 'b'\n[parameters]\nseed = 0.5\n" TWO_MODELS},
    {"seed of one model", "5:1", "'seed' holds for the whole recipe and cannot be set for a model",
     "method = 'della'\nbase = 'b'\n[[models]]\npath = 'x'\nseed = 1\n"},
    {"seed that no double holds", "4:8", "'seed' must be between 0 and",
     "method = 'dare_ties'\nbase = 'b'\n[parameters]\nseed = 9007199254740992\n" TWO_MODELS},
    {"layer_scale without beta", "3:15", "layer_scale without 'beta'",
     TIES "layer_scale = { alpha = 0.5 }\n" TWO_MODELS},
    {"layer_scale as a number", "3:15", "'layer_scale' must be a table", TIES "layer_scale = 0.5\n" TWO_MODELS},
    {"layer_scale with a gradient", "3:25", "'alpha' holds for the whole recipe: one value, not a gradient",
     TIES "layer_scale = { alpha = [0, 1], beta = 0 }\n" TWO_MODELS},
    {"unknown key of layer_scale", "3:17", "unknown key 'alhpa' in layer_scale; did you mean 'alpha'?",
     TIES "layer_scale = { alhpa = 0.5 }\n" TWO_MODELS},
    {"layer_scale of models that have no base", "2:15",
     "layer_scale has nothing to scale: nuslerp adds task vectors only",
     "method = 'nuslerp'\nlayer_scale = { alpha = 1, beta = 0 }\n" TWO_MODELS},
    {"layer_scale of an average", "2:15", "layer_scale has nothing to scale: average adds no task vector to a base",
     "method = 'average'\nlayer_scale = { alpha = 1, beta = 0 }\n" TWO_MODELS},
    {"unknown key", "3:1", "unknown key 'dtpye' in the recipe; did you mean 'dtype'?",
     TIES "dtpye = 'float32'\n" TWO_MODELS},
    {"key of the other syntax", "1:1", "unknown key 'base_model' in the recipe; here it is called 'base'",
     "base_model = 'b'\nmethod = 'ties'\n"},
    {"parameter at the top", "3:1", "it is a parameter: write it under [parameters]",
     TIES "density = 0.2\n" TWO_MODELS},
    {"no base", "1:10", "ties needs a base model; name the model that the others were fine-tuned from as 'base'",
     "method = 'ties'\n" TWO_MODELS},
    {"empty base", "2:8", "'base' is empty", "method = 'ties'\nbase = ''\n" TWO_MODELS},
    {"base as a list", "2:8", "'base' must be text, not a list", "method = 'ties'\nbase = ['b']\n" TWO_MODELS},
    {"no models", "1:10", "no models to merge; list at least one besides the base", TIES},
    {"empty list of models", "1:10", "no models to merge; list at least one", "method = 'average'\nmodels = []\n"},
    {"only the base", "1:10", "no models to merge", TIES "[[models]]\npath = 'b'\n"},
    {"models as a table", "3:1", "begin each entry with [[models]]", TIES "[models]\npath = 'x'\n"},
    {"models as names", "3:11", "must be a table of keys and values, not the text 'x'", TIES "models = ['x']\n"},
    {"model without a path", "3:1", "a model without a 'path'", TIES "[[models]]\nweight = 1\n"},
    {"empty path", "4:8", "'path' is empty", TIES "[[models]]\npath = ''\n"},
    {"path of a wrong type", "4:8", "'path' must be text, not true", TIES "[[models]]\npath = true\n"},
    {"NUL in a path", "4:8", "NUL", TIES "[[models]]\npath = \"x\\u0000y\"\n"},
    {"model listed twice", "6:8", "the model 'x' is listed twice, first in line 4",
     TIES "[[models]]\npath = 'x'\n[[models]]\npath = 'x'\n"},
    {"unknown key of a model", "5:1", "unknown key 'wieght' in a model; did you mean 'weight'?",
     TIES "[[models]]\npath = 'x'\nwieght = 1\n"},
    {"parameter table in a model", "5:1", "unknown key 'parameters' in a model",
     TIES "[[models]]\npath = 'x'\nparameters.weight = 1\n"},
    {"unknown dtype", "3:9", "'bflaot16' is no type that a merge can be written in; did you mean 'bfloat16'?",
     TIES "dtype = 'bflaot16'\n" TWO_MODELS},
    {"integer dtype", "3:9", "'int64' is no type that a merge can be written in; known here: float64, float32",
     TIES "dtype = 'int64'\n" TWO_MODELS},
    {"fp8 dtype", "3:13", "known here: float64, float32, float16, bfloat16", TIES "out_dtype = 'fp8'\n" TWO_MODELS},
    {"unknown on_missing", "3:14", "on_missing cannot be 'skpi'; did you mean 'skip'?",
     TIES "on_missing = 'skpi'\n" TWO_MODELS},
    {"on_missing without a base", "1:10", "on_missing 'base' needs a base model",
     "method = 'average'\non_missing = 'base'\n" TWO_MODELS},
    {"empty tokenizer", "3:13", "'tokenizer' is empty", TIES "tokenizer = ''\n" TWO_MODELS},
    {"only of no tensors", "3:8", "'only' names no tensors", TIES "only = []\n" TWO_MODELS},
    {"only as a number", "3:9", "'only' must be text, not the number 1", TIES "only = [1]\n" TWO_MODELS},
    {"empty exclude", "3:11", "'exclude' is empty", TIES "exclude = ''\n" TWO_MODELS},
    {"misspelt only", "3:1", "did you mean 'only'?", TIES "olny = '*.mlp.*'\n" TWO_MODELS},
    {"parameters as a number", "3:14", "'parameters' must be a table", TIES "parameters = 3\n" TWO_MODELS},
    {"unknown parameter", "4:1", "ties has no parameter 'desnity'; did you mean 'density'?",
     TIES "[parameters]\ndesnity = 0.2\n" TWO_MODELS},
    {"density above 1", "4:11", "'density' must be between 0 and 1, not 1.5",
     TIES "[parameters]\ndensity = 1.5\n" TWO_MODELS},
    {"density below 0", "4:16", "'density' must be between 0 and 1, not -0.5",
     TIES "[parameters]\ndensity = [0.5,-0.5]\n" TWO_MODELS},
    {"density as text", "4:11", "'density' must be a number, not the text '0.2'",
     TIES "[parameters]\ndensity = '0.2'\n" TWO_MODELS},
    {"density as a table", "4:11", "'density' must be a number, not a table",
     TIES "[parameters]\ndensity = {value = 0.2}\n" TWO_MODELS},
    {"density as a date", "4:11", "not a date or time", TIES "[parameters]\ndensity = 2024-01-01\n" TWO_MODELS},
    {"infinite weight", "5:10", "'weight' must be a finite number", TIES "[[models]]\npath = 'x'\nweight = inf\n"},
    {"NaN weight", "5:10", "'weight' must be a finite number", TIES "[[models]]\npath = 'x'\nweight = nan\n"},
    {"huge weight", "5:10", "'weight' is too large", TIES "[[models]]\npath = 'x'\nweight = 1e31\n"},
    {"empty gradient", "5:10", "the gradient of 'weight' has no values", TIES "[[models]]\npath = 'x'\nweight = []\n"},
    {"nested gradient", "5:11", "'weight' must be a number, not a list",
     TIES "[[models]]\npath = 'x'\nweight = [[1], 2]\n"},
    {"flag as a number", "4:13", "'normalize' must be true or false, not the number 2",
     TIES "[parameters]\nnormalize = 2\n" TWO_MODELS},
    {"flag as text", "4:13", "'normalize' must be true or false, not the text 'yes'",
     TIES "[parameters]\nnormalize = 'yes'\n" TWO_MODELS},
    {"unknown choice", "4:9", "'scope' cannot be 'modle'; did you mean 'model'?",
     TIES "[parameters]\nscope = 'modle'\n" TWO_MODELS},
    {"choice as a number", "4:9", "'scope' must be one of tensor, model, not the number 1",
     TIES "[parameters]\nscope = 1\n" TWO_MODELS},
    {"choice as a gradient", "4:9", "'scope' holds for the whole recipe: one value, not a gradient",
     TIES "[parameters]\nscope = ['model']\n" TWO_MODELS},
    {"recipe-wide parameter of a model", "5:1", "'scope' holds for the whole recipe and cannot be set for a model",
     TIES "[[models]]\npath = 'x'\nscope = 'model'\n"},
    {"recipe-wide parameter of some tensors", "5:1", "'elect' holds for the whole recipe",
     TIES "[[overrides]]\ntensors = '*'\nelect = 'count'\n" TWO_MODELS},
    {"override without tensors", "3:1", "an override without 'tensors'",
     TIES "[[overrides]]\ndensity = 0.1\n" TWO_MODELS},
    {"override without a parameter", "3:1", "an override that sets no parameter",
     TIES "[[overrides]]\ntensors = '*'\n" TWO_MODELS},
    {"override of no tensors", "4:11", "'tensors' names no tensors",
     TIES "[[overrides]]\ntensors = []\ndensity = 0.1\n" TWO_MODELS},
    {"empty glob", "4:17", "'tensors' is empty", TIES "[[overrides]]\ntensors = ['a', '']\ndensity = 0.1\n" TWO_MODELS},
    {"unknown key of an override", "5:1", "unknown key 'tensor' in an override; did you mean 'tensors'?",
     TIES "[[overrides]]\ntensors = '*'\ntensor = 0.1\n" TWO_MODELS},
    {"overrides as a table", "3:1", "begin each entry with [[overrides]]",
     TIES "[overrides]\ntensors = '*'\n" TWO_MODELS},
    {"model scope with a gradient", "5:11", "with scope 'model' a density is one number per model, not a gradient",
     TIES "[parameters]\nscope = 'model'\ndensity = [0.1, 0.2]\n" TWO_MODELS},
    {"model scope with an override", "7:11", "cannot depend on the filter '*.mlp.*'",
     TIES "[parameters]\nscope = 'model'\n[[overrides]]\ntensors = '*.mlp.*'\ndensity = 0.1\n" TWO_MODELS},
    {"no t for nearswap", "1:10", "nearswap needs 't'", "method = 'nearswap'\nbase = 'b'\n[[models]]\npath = 'x'\n"},
    {"t of a model", "1:10", "nearswap needs 't'", "method = 'nearswap'\nbase = 'b'\n[[models]]\npath = 'x'\nt = 1\n"},
    {"two models for passthrough", "1:10", "passthrough merges 1 model, not 2", "method = 'passthrough'\n" TWO_MODELS},
    {"one model for slerp", "1:10", "slerp merges at least 2 models, not 1",
     "method = 'slerp'\n[[models]]\npath = 'x'\n"},
    {"one fine-tune for model_stock", "1:10", "model_stock merges at least 2 models beside the base, not 1",
     "method = 'model_stock'\nbase = 'b'\n[[models]]\npath = 'x'\n[[models]]\npath = 'b'\n"},
    {"model scope with a model's gradient", "7:11", "not a gradient",
     TIES "[parameters]\nscope = 'model'\n[[models]]\npath = 'x'\ndensity = [1, 0]\n"},
};

TEST(RecipeErrors, Toml) { ExpectErrors(kBadToml, Syntax::kToml, "recipe.toml"); }

// Good but for what is added from line 3 on; the second for what is added to the model's parameters in
// line 6.
#define YAML_TIES "merge_method: ties\nbase_model: b\n"
#define YAML_MODEL YAML_TIES "models:\n  - model: x\n    parameters:\n      "

const BadRecipe kBadYaml[] = {
    {"empty file", "1:1", "an empty recipe", "# nothing\n"},
    {"broken syntax", "3:1", "", "merge_method: ties\nmodels: [\n"},
    {"a list", "1:1", "a recipe is a table", "- ties\n"},
    {"a word", "1:1", "a recipe is a table", "ties\n"},
    {"a document that is empty", "4:1", "an empty recipe",
     "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n---\n"},
    {"duplicate key", "3:1", "the key 'base_model' is there twice, first at 2:1", YAML_TIES "base_model: c\n"},
    {"duplicate key, deep", "7:7", "the key 'weight' is there twice, first at 6:7",
     YAML_MODEL "weight: 1\n      weight: 2\n"},
    {"merge key", "4:3", "merge keys (<<) are not supported", YAML_TIES "parameters:\n  <<: {density: 0.2}\n"},
    {"tag", "1:15", "YAML tags are not supported", "merge_method: !!str ties\n"},
    {"undefined alias", "1:15", "anchor", "merge_method: *m\n"},
    {"list as a key", "1:3", "a key must be plain text", "? [a]\n: 1\n"},
    {"no method", "1:1", "no 'merge_method'", "base_model: b\n"},
    {"method left empty", "1:1", "'merge_method' must be text, not empty", "merge_method:\n"},
    {"misspelt method", "1:15", "did you mean 'linear'?", "merge_method: liner\n"},
    {"unknown key", "3:1", "did you mean 'dtype'?", YAML_TIES "dtypee: float32\n"},
    {"key of the other syntax", "2:1", "here it is called 'base_model'", "merge_method: ties\nbase: b\n"},
    {"no base", "1:15", "as 'base_model'", "merge_method: ties\nmodels:\n  - model: x\n"},
    {"no models", "1:15", "no models to merge", YAML_TIES},
    {"models as a table", "4:3", "'models' must be a list, not a table", YAML_TIES "models:\n  model: x\n"},
    {"models as names", "4:5", "write it as '- model: path'", YAML_TIES "models:\n  - x\n"},
    {"entry without a model", "4:5", "an entry of 'models' without a 'model'",
     YAML_TIES "models:\n  - parameters: {weight: 1}\n"},
    {"model left empty", "4:5", "'model' must be text, not empty", YAML_TIES "models:\n  - model:\n"},
    {"model as a table without a model", "4:12", "'model' is a table without a 'model'; write it as path",
     YAML_TIES "models:\n  - model: {path: x}\n"},
    {"model as a table without a path", "4:20", "'model' without a 'path'",
     YAML_TIES "models:\n  - model: {model: {revision: x}}\n"},
    {"unknown key of a model's table", "4:23", "did you mean 'lora'?",
     YAML_TIES "models:\n  - model: {model: x, lorra: y}\n"},
    {"unknown key of a path's table", "4:30", "did you mean 'revision'?",
     YAML_TIES "models:\n  - model: {model: {path: x, revison: y}}\n"},
    {"two revisions", "4:27", "with a '@', and a 'revision' beside it; name the revision once",
     YAML_TIES "models:\n  - model: {model: {path: x@y, revision: z}}\n"},
    {"adapter as a key", "4:29", "adapters (model+lora) are not supported yet",
     YAML_TIES "models:\n  - model: {model: x, lora: {path: y}}\n"},
    {"two adapters", "4:12", "more than one '+' in the model 'x+y+z'", YAML_TIES "models:\n  - model: x+y+z\n"},
    {"two revisions in text", "4:12", "more than one '@' in the model 'x@1@2'; write it as path or org/name@revision",
     YAML_TIES "models:\n  - model: x@1@2\n"},
    {"two revisions of an adapter", "4:12", "more than one '@'", YAML_TIES "models:\n  - model: x+y@1@2\n"},
    {"revision left empty", "4:12", "the model 'x@' is incomplete", YAML_TIES "models:\n  - model: x@\n"},
    {"adapter without a model", "4:12", "the model '+x' is incomplete", YAML_TIES "models:\n  - model: +x\n"},
    {"base as an adapter", "2:13", "adapters (model+lora) are not supported yet",
     "merge_method: ties\nbase_model: b+lora\n"},
    {"adapter", "4:12", "adapters (model+lora) are not supported yet", YAML_TIES "models:\n  - model: x+lora\n"},
    {"parameter beside the model", "5:5", "write it under 'parameters'",
     YAML_TIES "models:\n  - model: x\n    weight: 1\n"},
    {"model listed twice", "5:12", "the model 'x' is listed twice, first in line 4",
     YAML_TIES "models:\n  - model: x\n  - model: x\n"},
    {"no weight", "4:12", "no weight for model 'x'", YAML_TIES "models:\n  - model: x\n"},
    {"no weight for linear's base", "2:13", "no weight for model 'b'",
     "merge_method: linear\nbase_model: b\nmodels:\n  - model: x\n    parameters: {weight: 1}\n"},
    {"no weight for a listed base", "4:12", "no weight for model 'b'",
     "merge_method: linear\nbase_model: b\nmodels:\n  - model: b\n  - model: x\n    parameters: {weight: "
     "1}\n"},
    {"unknown parameter", "6:7", "ties has no parameter 'wieght'; did you mean 'weight'?", YAML_MODEL "wieght: 1\n"},
    {"weight left empty", "6:7", "'weight' must be a number, not empty", YAML_MODEL "weight:\n"},
    {"weight as a word", "6:15", "'weight' must be a number, not 'lots'", YAML_MODEL "weight: lots\n"},
    {"weight as a flag", "6:15", "'weight' must be a number, not 'true'", YAML_MODEL "weight: true\n"},
    {"octal weight", "6:15", "'weight' must be a number, not '010'", YAML_MODEL "weight: 010\n"},
    {"two signs", "6:15", "'weight' must be a number, not '+-1'", YAML_MODEL "weight: +-1\n"},
    {"infinite weight", "6:15", "'weight' must be a finite number", YAML_MODEL "weight: -.inf\n"},
    {"weight beyond double", "6:15", "'weight' must be a finite number", YAML_MODEL "weight: 1e999\n"},
    {"density out of range", "6:16", "'density' must be between 0 and 1, not 20", YAML_MODEL "density: 20\n"},
    {"empty gradient", "6:15", "the gradient of 'weight' has no values", YAML_MODEL "weight: []\n"},
    {"recipe-wide parameter of a model", "6:7", "cannot be set for a model", YAML_MODEL "scope: model\n"},
    {"filter without a value", "6:15", "a filter of 'weight' without a 'value'", YAML_MODEL "weight: {filter: mlp}\n"},
    {"filter and glob", "6:45", "a value with both a 'filter' and a 'glob'",
     YAML_MODEL "weight: {value: 1, filter: mlp, glob: '*.mlp.*'}\n"},
    {"empty glob", "6:22", "'glob' is empty", YAML_MODEL "weight: {glob: '', value: 1}\n"},
    {"only of no tensors", "3:7", "'only' names no tensors", YAML_TIES "only: []\n"},
    {"exclude as a table", "3:10", "'exclude' must be text, not a table", YAML_TIES "exclude: {a: b}\n"},
    {"unknown key beside a filter", "6:30", "did you mean 'value'?", YAML_MODEL "weight: [{filter: mlp, valeu: 1}]\n"},
    {"empty filter", "6:24", "'filter' is empty", YAML_MODEL "weight: {filter: '', value: 1}\n"},
    {"filters mixed with values", "6:39", "mixes plain values and filters",
     YAML_MODEL "weight: [{filter: a, value: 1}, 0.5]\n"},
    {"filter in a filter", "6:34", "'weight' must be a number, not a table",
     YAML_MODEL "weight: {filter: a, value: {value: 1}}\n"},
    {"filtered recipe-wide parameter", "4:10", "'scope' holds for the whole recipe",
     YAML_TIES "parameters:\n  scope: {filter: a, value: model}\n"},
    {"flag as a word", "4:14", "'normalize' must be true or false, not 'maybe'",
     YAML_TIES "parameters:\n  normalize: maybe\n"},
    {"integer dtype", "3:8", "'int64' is no type that a merge can be written in", YAML_TIES "dtype: int64\n"},
    {"unknown on_missing", "3:13", "known here: error, base, skip", YAML_TIES "on_missing: whatever\n"},
    {"model scope with a filter", "6:37", "cannot depend on the filter 'mlp'",
     YAML_MODEL "density: {filter: mlp, value: 0.5}\n      weight: 1\nparameters: {scope: model}\n"},
};

TEST(RecipeErrors, Yaml) { ExpectErrors(kBadYaml, Syntax::kYaml, "recipe.yml"); }

}  // namespace
}  // namespace braid
