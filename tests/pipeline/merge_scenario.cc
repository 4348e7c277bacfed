#include "tests/pipeline/merge_scenario.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "tests/ops/reference.h"

namespace braid::fixture {
namespace {

constexpr const char* kStack = "model.layers.";

double Interpolated(const std::vector<double>& points, double t) {
  const double x = t * static_cast<double>(points.size() - 1);
  const auto i = static_cast<size_t>(x);
  if (i + 1 >= points.size()) return points.back();
  const double f = x - static_cast<double>(i);
  return (1 - f) * points[i] + f * points[i + 1];
}

double PositionOf(const std::string& tensor, int layers) {
  if (!tensor.starts_with(kStack)) return 0;
  if (layers == 1) return 1;
  return static_cast<double>(std::stoi(tensor.substr(std::string(kStack).size()))) / static_cast<double>(layers - 1);
}

// --- drawing ----------------------------------------------------------------------------------------------

Rule RandomRule(test::Random& random, bool may_vary, auto draw) {
  Rule rule;
  rule.values = {draw()};
  if (!may_vary) return rule;
  if (random.Chance(0.3))
    for (size_t i = 0, n = 1 + random.Below(3); i < n; ++i) rule.values.push_back(draw());
  if (random.Chance(0.3)) {
    rule.part = random.OneOf<const char*>({"mlp", "attn", "embed"});
    rule.part_values = {draw()};
    if (random.Chance(0.3)) rule.part_values.push_back(draw());
  }
  return rule;
}

struct Shape {
  std::string name;
  std::vector<uint64_t> shape;
  uint64_t elements;
};

std::vector<Shape> RandomShapes(test::Random& random, int layers) {
  std::vector<Shape> shapes;
  const auto vector = [&](std::string name, uint64_t n) { shapes.push_back({std::move(name), {n}, n}); };
  const auto matrix = [&](std::string name, uint64_t rows, uint64_t columns) {
    shapes.push_back({std::move(name), {rows, columns}, rows * columns});
  };
  matrix("model.embed_tokens.weight", 1 + random.Below(600), 1 + random.Below(400));
  for (int layer = 0; layer < layers; ++layer) {
    const std::string prefix = kStack + std::to_string(layer);
    matrix(prefix + ".mlp.up.weight", 1 + random.Below(40), 1 + random.Below(60));
    vector(prefix + ".attn.bias", random.Below(4));
  }
  vector("model.norm.weight", random.OneOf<uint64_t>({0, 1, 3, 65'535, 65'536, 65'537, 131'073}));
  return shapes;
}

enum class Grain { kFine, kCoarse, kSpecial };

double RandomValue(test::Random& random, Grain grain, double scale) {
  if (grain == Grain::kSpecial && random.Chance(0.02)) return test::RandomLane(random, test::Kind::kSpecial);
  if (grain == Grain::kFine) return random.Normal() * scale;
  return (static_cast<double>(random.Below(9)) - 4) * scale / 4;
}

StoredTensor RandomTensor(test::Random& random, const Shape& shape, DType type, Grain grain,
                          const std::vector<double>* base, std::vector<double>* values) {
  for (uint64_t i = 0; i < shape.elements; ++i)
    values->push_back(base == nullptr ? RandomValue(random, grain, 1) : (*base)[i] + RandomValue(random, grain, 0.25));
  return Floats(shape.name, type, shape.shape, *values);
}

DType RandomType(test::Random& random) {
  return random.OneOf({DType::kF64, DType::kF32, DType::kF16, DType::kBF16});
}

void DrawSources(test::Random& random, Scenario* scenario) {
  const std::vector<Shape> shapes = RandomShapes(random, scenario->layers);
  const Grain grain = random.OneOf({Grain::kFine, Grain::kCoarse, Grain::kCoarse, Grain::kSpecial});
  const bool one_type = random.Chance(0.5), type_per_tensor = random.Chance(0.3);
  const DType common = RandomType(random);
  const auto draw_type = [&](DType of_source) {
    return one_type ? common : type_per_tensor ? RandomType(random) : of_source;
  };
  std::vector<std::vector<double>> base_values(shapes.size());
  const DType base_type = RandomType(random);
  for (size_t t = 0; t < shapes.size(); ++t)
    scenario->base.tensors.push_back(
        RandomTensor(random, shapes[t], draw_type(base_type), grain, nullptr, &base_values[t]));
  for (Source& model : scenario->models) {
    const DType type = RandomType(random);
    for (size_t t = 0; t < shapes.size(); ++t) {
      std::vector<double> values;
      StoredTensor tensor = RandomTensor(random, shapes[t], draw_type(type), grain, &base_values[t], &values);
      if (scenario->on_missing == OnMissing::kError || !random.Chance(0.2)) model.tensors.push_back(std::move(tensor));
    }
    if (model.tensors.empty()) model.tensors.push_back(scenario->base.tensors.front());
  }
}

// Layers are numbered by the tensors that there are.
int LayersOf(const std::vector<Source>& models) {
  int layers = 1;
  for (const Source& model : models)
    for (const StoredTensor& tensor : model.tensors)
      if (tensor.name.starts_with(kStack))
        layers = std::max(layers, 1 + std::stoi(tensor.name.substr(std::string(kStack).size())));
  return layers;
}

// --- writing ----------------------------------------------------------------------------------------------

std::string ValuesText(const std::vector<double>& values) {
  return values.size() == 1 ? fmt::format("{}", values[0]) : fmt::format("[{}]", fmt::join(values, ", "));
}

std::string FlagText(double value) { return value != 0 ? "true" : "false"; }

std::string YamlRule(const char* name, const Rule& rule, const std::string& indent, bool flag) {
  const auto text = [&](const std::vector<double>& values) { return flag ? FlagText(values[0]) : ValuesText(values); };
  if (rule.part.empty()) return fmt::format("{}{}: {}\n", indent, name, text(rule.values));
  return fmt::format("{0}{1}:\n{0}  - filter: {2}\n{0}    value: {3}\n{0}  - value: {4}\n", indent, name, rule.part,
                     text(rule.part_values), text(rule.values));
}

std::string TomlValue(const char* name, const Rule& rule, bool flag) {
  return fmt::format("{} = {}\n", name, flag ? FlagText(rule.values[0]) : ValuesText(rule.values));
}

std::string TomlOverride(const char* table, const char* name, const Rule& rule, bool flag) {
  if (rule.part.empty()) return "";
  return fmt::format("[[{}]]\ntensors = '*{}*'\n{} = {}\n", table, rule.part, name,
                     flag ? FlagText(rule.part_values[0]) : ValuesText(rule.part_values));
}

bool HasWeights(const Scenario& s) { return s.method != "average"; }

std::string TomlText(const TemporaryDirectory& place, const Scenario& s) {
  std::string text = fmt::format("method = '{}'\n", s.method);
  if (s.has_base) text += fmt::format("base = '{}'\n", place / "base");
  if (s.dtype) text += fmt::format("dtype = '{}'\n", TorchName(*s.dtype));
  if (s.out_dtype) text += fmt::format("out_dtype = '{}'\n", TorchName(*s.out_dtype));
  if (s.on_missing != OnMissing::kError)
    text += fmt::format("on_missing = '{}'\n", s.on_missing == OnMissing::kBase ? "base" : "skip");
  text += "[parameters]\n";
  if (HasWeights(s)) text += TomlValue("normalize", s.normalize, true);
  if (s.relative()) text += TomlValue("lambda", s.lambda, false);
  if (s.method == "ties")
    text += fmt::format(
        "rescale = {}\nscope = '{}'\nties_at_threshold = '{}'\nzero_sign = '{}'\nelect = '{}'\nelect_weighted = {}\n",
        s.rescale, s.model_scope ? "model" : "tensor", s.keep_equals ? "keep" : "index",
        s.majority ? "majority" : "plus", s.by_count ? "count" : "mass", s.elect_weighted);
  if (HasWeights(s)) text += TomlOverride("overrides", "normalize", s.normalize, true);
  if (s.relative()) text += TomlOverride("overrides", "lambda", s.lambda, false);
  for (const Source& model : s.models) {
    text += fmt::format("[[models]]\npath = '{}'\n", place / model.name);
    if (HasWeights(s)) text += TomlValue("weight", model.weight, false);
    if (s.method == "ties") text += TomlValue("density", model.density, false);
    if (HasWeights(s)) text += TomlOverride("models.overrides", "weight", model.weight, false);
    if (s.method == "ties") text += TomlOverride("models.overrides", "density", model.density, false);
  }
  return text;
}

std::string YamlText(const TemporaryDirectory& place, const Scenario& s) {
  std::string text = fmt::format("merge_method: {}\n", s.method);
  if (s.has_base) text += fmt::format("base_model: {}\n", place / "base");
  if (s.dtype) text += fmt::format("dtype: {}\n", TorchName(*s.dtype));
  if (s.out_dtype) text += fmt::format("out_dtype: {}\n", TorchName(*s.out_dtype));
  if (s.on_missing != OnMissing::kError)
    text += fmt::format("on_missing: {}\n", s.on_missing == OnMissing::kBase ? "base" : "skip");
  text += "models:\n";
  const auto model_text = [&](const Source& model) {
    text += fmt::format("  - model: {}\n", place / model.name);
    if (HasWeights(s)) text += "    parameters:\n" + YamlRule("weight", model.weight, "      ", false);
    if (s.method == "ties") text += YamlRule("density", model.density, "      ", false);
  };
  for (const Source& model : s.models) model_text(model);
  if (!s.relative() && s.has_base) model_text(s.base);
  if (HasWeights(s)) text += "parameters:\n" + YamlRule("normalize", s.normalize, "  ", true);
  if (s.relative()) text += YamlRule("lambda", s.lambda, "  ", false);
  if (s.method == "ties")
    text += fmt::format(
        "  rescale: {}\n  scope: {}\n  ties_at_threshold: {}\n  zero_sign: {}\n  elect: {}\n  elect_weighted: {}\n",
        s.rescale, s.model_scope ? "model" : "tensor", s.keep_equals ? "keep" : "index",
        s.majority ? "majority" : "plus", s.by_count ? "count" : "mass", s.elect_weighted);
  return text;
}

// --- the reference ----------------------------------------------------------------------------------------

// What the sources hold of one tensor, after on_missing. Null: the source takes no part.
struct Gathered {
  std::string name;
  const StoredTensor* base = nullptr;
  std::vector<const StoredTensor*> models;
};

Gathered Gather(const Scenario& s, const std::string& name) {
  Gathered gathered{name, s.has_base ? s.base.Find(name) : nullptr, {}};
  for (const Source& model : s.models) {
    const StoredTensor* tensor = model.Find(name);
    gathered.models.push_back(tensor == nullptr && s.on_missing == OnMissing::kBase ? gathered.base : tensor);
  }
  return gathered;
}

DType OutputType(const Scenario& s, const Gathered& gathered) {
  if (s.out_dtype) return *s.out_dtype;
  if (s.dtype) return *s.dtype;
  std::vector<DType> types;
  if (gathered.base != nullptr) types.push_back(gathered.base->type);
  for (const StoredTensor* model : gathered.models)
    if (model != nullptr) types.push_back(model->type);
  const auto any = [&](DType type) { return std::find(types.begin(), types.end(), type) != types.end(); };
  if (any(DType::kF64)) return DType::kF64;
  if (any(DType::kF32) || (any(DType::kF16) && any(DType::kBF16))) return DType::kF32;
  return types[0];
}

std::vector<std::string> NamesOf(const Scenario& s) {
  std::vector<std::string> names;
  const auto add = [&](const Source& source) {
    for (const StoredTensor& tensor : source.tensors)
      if (std::find(names.begin(), names.end(), tensor.name) == names.end()) names.push_back(tensor.name);
  };
  if (s.has_base) add(s.base);
  for (const Source& model : s.models) add(model);
  return names;
}

std::vector<double> WeightsOf(const Scenario& s, const Gathered& gathered) {
  std::vector<double> weights;
  for (size_t m = 0; m < s.models.size(); ++m) {
    const double weight = HasWeights(s) ? s.models[m].weight.Of(gathered.name, s.layers) : 1;
    weights.push_back(gathered.models[m] == nullptr ? 0 : weight);
  }
  return weights;
}

// Copied byte for byte, NaN and all: nobody adds anything to the base's tensor, and it is written in its own type.
bool IsUnchanged(const Scenario& s, const Gathered& gathered, const std::vector<Gathered>& all) {
  if (!s.relative() || OutputType(s, gathered) != gathered.base->type || gathered.base->type == DType::kF64)
    return false;
  for (size_t m = 0; m < s.models.size(); ++m) {
    if (gathered.models[m] == nullptr || gathered.models[m] == gathered.base) continue;
    if (WeightsOf(s, gathered)[m] != 0) return false;
    for (const Gathered& other : all)
      if (s.model_scope && WeightsOf(s, other)[m] != 0) return false;
  }
  return true;
}

reference::Tensor TaskVectorTensor(const Scenario& s, const Gathered& gathered, bool unchanged) {
  reference::Tensor tensor{.name = gathered.name, .base = LanesOf(*gathered.base)};
  for (const StoredTensor* model : gathered.models)
    tensor.models.push_back(model == nullptr ? std::vector<float>() : LanesOf(*model));
  if (unchanged) {  // its task vectors are zero, whatever x - x would be
    std::fill(tensor.base.begin(), tensor.base.end(), 0.0f);
    for (std::vector<float>& model : tensor.models) model = model.empty() ? model : tensor.base;
  }
  tensor.weights = WeightsOf(s, gathered);
  tensor.lambda = s.lambda.Of(gathered.name, s.layers);
  tensor.normalize = s.normalize.Of(gathered.name, s.layers) != 0;
  return tensor;
}

reference::TaskVectorOptions OptionsFor(const Scenario& s, const std::string& tensor) {
  reference::TaskVectorOptions options{.densities = {},
                                       .elect = s.method == "ties",
                                       .rescale = s.rescale,
                                       .keep_equals = s.keep_equals,
                                       .majority = s.majority,
                                       .elect_by_count = s.by_count,
                                       .elect_weighted = s.elect_weighted};
  for (const Source& model : s.models)
    options.densities.push_back(s.method == "ties" ? model.density.Of(tensor, s.layers) : 1);
  return options;
}

std::vector<float> LinearLanes(const Scenario& s, const Gathered& gathered) {
  std::vector<double> weights = WeightsOf(s, gathered);
  std::vector<const StoredTensor*> sources = gathered.models;
  if (s.has_base) {
    sources.push_back(gathered.base);
    weights.push_back(1);
  }
  size_t n = 0;
  for (const StoredTensor* source : sources)
    if (source != nullptr) n = LanesOf(*source).size();
  std::vector<std::vector<float>> lanes;
  for (const StoredTensor* source : sources)
    lanes.push_back(source == nullptr ? std::vector<float>(n) : LanesOf(*source));
  return reference::Linear(lanes, weights, s.method == "average" || s.normalize.Of(gathered.name, s.layers) != 0);
}

}  // namespace

double Rule::Of(const std::string& tensor, int layers) const {
  const bool other = !part.empty() && tensor.find(part) != std::string::npos;
  return Interpolated(other ? part_values : values, PositionOf(tensor, layers));
}

const StoredTensor* Source::Find(const std::string& tensor) const {
  for (const StoredTensor& held : tensors)
    if (held.name == tensor) return &held;
  return nullptr;
}

Scenario RandomScenario(test::Random& random, const std::string& method, Syntax syntax) {
  Scenario s;
  s.method = method, s.syntax = syntax, s.layers = random.OneOf({1, 3, 12});
  s.base.name = "base";
  s.has_base = s.relative() || random.Chance(0.5);
  s.model_scope = method == "ties" && random.Chance(0.5);
  s.on_missing = random.OneOf({OnMissing::kError, OnMissing::kError, OnMissing::kBase, OnMissing::kSkip});
  if (!s.has_base && s.on_missing == OnMissing::kBase) s.on_missing = OnMissing::kError;
  const bool positive = !s.relative();  // weights of linear must not add up to 0
  const auto weight = [&] {
    if (positive) return 0.1 + static_cast<double>(random.Below(20)) / 10;
    return random.Chance(0.2) ? 0.0 : random.Chance(0.2) ? -0.5 : static_cast<double>(random.Below(30)) / 10;
  };
  const auto density = [&] {
    return random.Chance(0.1) ? 1.0 : random.Chance(0.05) ? 0.0 : static_cast<double>(random.Below(1000)) / 1000;
  };
  for (size_t m = 0, n = 1 + random.Below(4); m < n; ++m)
    s.models.push_back({.name = "model" + std::to_string(m),
                        .tensors = {},
                        .weight = RandomRule(random, true, weight),
                        .density = RandomRule(random, !s.model_scope, density)});
  s.lambda = RandomRule(random, true, [&] { return 0.25 * static_cast<double>(random.Below(9)); });
  s.normalize.values = {random.Chance(0.5) ? 1.0 : 0.0};
  if (random.Chance(0.3)) s.normalize.part = "mlp", s.normalize.part_values = {1 - s.normalize.values[0]};
  s.rescale = random.Chance(0.5), s.keep_equals = random.Chance(0.3), s.majority = random.Chance(0.4);
  s.by_count = random.Chance(0.3), s.elect_weighted = random.Chance(0.7);
  if (random.Chance(0.6)) s.dtype = RandomType(random);
  if (random.Chance(0.3)) s.out_dtype = RandomType(random);
  DrawSources(random, &s);
  if (!s.has_base) s.layers = LayersOf(s.models);   // the last ones may be missing in every model
  return s;
}

std::string WriteScenario(const TemporaryDirectory& place, const Scenario& s, test::Random& random) {
  const auto write = [&](const Source& source) {
    WriteCheckpoint(place, source.name, source.tensors, 1 + random.Below(std::min<size_t>(source.tensors.size(), 4)));
  };
  if (s.has_base) write(s.base);
  for (const Source& model : s.models) write(model);
  return s.syntax == Syntax::kToml ? place.Write("recipe.toml", TomlText(place, s))
                                   : place.Write("recipe.yml", YamlText(place, s));
}

void ForRandomScenarios(int count, test::Random& random, const std::function<void(const WrittenScenario&)>& body) {
  for (int i = 0; i < count && !testing::Test::HasFailure(); ++i) {
    const char* const method = random.OneOf<const char*>({"ties", "ties", "task_arithmetic", "linear", "average"});
    SCOPED_TRACE(testing::Message() << "scenario " << i << ", " << method);
    WrittenScenario written;
    written.scenario = RandomScenario(random, method, Syntax::kToml);
    written.recipe = WriteScenario(written.place, written.scenario, random), written.out = written.place / "out";
    body(written);
  }
}

Expected Reference(const Scenario& s) {
  Expected expected;
  std::vector<Gathered> all;
  std::vector<std::vector<float>> lanes;
  for (const std::string& name : NamesOf(s)) all.push_back(Gather(s, name));
  const auto merge = [&](const std::vector<reference::Tensor>& scope) {
    const reference::Merged merged = reference::MergeTaskVectors(scope, OptionsFor(s, scope.front().name));
    expected.conflicts += merged.conflicts;
    lanes.insert(lanes.end(), merged.tensors.begin(), merged.tensors.end());
  };
  std::vector<reference::Tensor> whole_model;
  for (const Gathered& gathered : all) {
    if (!s.relative()) lanes.push_back(LinearLanes(s, gathered));
    else if (s.model_scope) whole_model.push_back(TaskVectorTensor(s, gathered, IsUnchanged(s, gathered, all)));
    else merge({TaskVectorTensor(s, gathered, IsUnchanged(s, gathered, all))});
  }
  if (!whole_model.empty()) merge(whole_model);
  for (size_t t = 0; t < all.size(); ++t) {
    const DType type = OutputType(s, all[t]);
    const StoredTensor* first = all[t].base;
    for (const StoredTensor* model : all[t].models) first = first == nullptr ? model : first;
    const bool unchanged = IsUnchanged(s, all[t], all);
    if (unchanged) lanes[t] = LanesOf(*first);
    for (float lane : lanes[t]) expected.nans += std::isnan(lane) ? 1 : 0;
    expected.tensors.push_back({all[t].name, type, first->shape,
                                unchanged ? first->bytes : reference::Encode(type, lanes[t])});
  }
  return expected;
}

}  // namespace braid::fixture
