// All that a recipe asks for as text, but not where in which file it did: for comparing recipes.
#pragma once

#include <fmt/format.h>

#include <string>

#include "pipeline/recipe.h"

namespace braid::fixture {

inline std::string Describe(const Settings& settings) {
  std::string out;
  for (const auto& [name, list] : settings)
    for (const Setting& setting : list) {
      out += fmt::format("  {} [{}]", name, setting.filter);
      for (double value : setting.values) out += fmt::format(" {}", value);
      out += "\n";
    }
  return out;
}

inline std::string Describe(const RecipeModel& model) {
  const std::string layers = model.layers ? fmt::format(" [{}, {})", model.layers->begin, model.layers->end) : "";
  return model.reference + layers + "\n" + Describe(model.settings);
}

inline std::string Describe(const std::optional<RecipeTokenizer>& tokenizer) {
  if (!tokenizer) return "-";
  std::string out =
      fmt::format("{} {} {}", static_cast<int>(tokenizer->source), tokenizer->model, tokenizer->pad_to_multiple_of);
  for (const TokenRule& rule : tokenizer->tokens)
    out += fmt::format(" [{} {} {} {} {} {}]", rule.token, static_cast<int>(rule.kind), rule.model,
                       rule.of.value_or("-"), rule.id.value_or(0), rule.force);
  return out;
}

inline std::string Describe(const Recipe& recipe) {
  std::string stages;
  for (const Recipe& stage : recipe.stages) stages += fmt::format("stage {}: ", stage.name) + Describe(stage);
  std::string out = fmt::format("{} base {} tokenizer {} on_missing {} dtype {} out_dtype {}\n", recipe.method,
                                recipe.base.value_or("-"), Describe(recipe.tokenizer),
                                static_cast<int>(recipe.on_missing), recipe.dtype ? TorchName(*recipe.dtype) : "-",
                                recipe.out_dtype ? TorchName(*recipe.out_dtype) : "-");
  if (const RecipeOutput& output = recipe.output; output.compress != Compression::kNone ||
                                                  output.content != RecipeOutput::Content::kCheckpoint)
    out += fmt::format("output {} {} {}\n", static_cast<int>(output.compress), static_cast<int>(output.content),
                       output.delta_dtype ? TorchName(*output.delta_dtype) : "-");
  if (recipe.layer_scale)
    out += fmt::format("layer_scale {} {}\n", recipe.layer_scale->alpha.value_or(-1e9), recipe.layer_scale->beta);
  if (recipe.chat_template) out += fmt::format("chat_template [{}]\n", recipe.chat_template->text);
  for (const NameFilter& filter : recipe.only) out += fmt::format("only {}\n", filter.glob);
  for (const NameFilter& filter : recipe.exclude) out += fmt::format("exclude {}\n", filter.glob);
  out += Describe(recipe.settings);
  for (const RecipeModel& model : recipe.models) out += Describe(model);
  for (const RecipeModule& module : recipe.modules) {
    out += fmt::format("module '{}'\n", module.name) + Describe(module.settings);
    for (const RecipeSlice& slice : module.slices) {
      out += fmt::format("slice, base {}\n", slice.base_reference.value_or("-")) + Describe(slice.settings);
      if (slice.base) out += "base " + Describe(*slice.base);
      for (const RecipeModel& model : slice.models) out += Describe(model);
    }
  }
  return stages + recipe.name + out;
}

}  // namespace braid::fixture
