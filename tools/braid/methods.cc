// braid methods [NAME]: the merge methods and their parameters, from their declarations.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "io/error.h"
#include "pipeline/method_table.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

void PrintList() {
  size_t width = 0;
  for (const MethodInfo& method : Methods()) width = std::max(width, method.name.size());
  for (const MethodInfo& method : Methods()) fmt::print("{:<{}}  {}\n", method.name, width, method.summary);
  fmt::print("\nparameters of one: braid methods {}\n", Methods().front().name);
}

std::string BaseText(const MethodInfo& method) {
  switch (method.base) {
    case BaseUse::kRequired: return "required; the others are compared with it";
    case BaseUse::kOptional: return "optional; with one the others are compared with it";
    case BaseUse::kIsFirst: return "optional; it is the first of the models";
    case BaseUse::kIsASource: return "optional; it is one of the models";
    case BaseUse::kIsNotUsed: return "optional; it lends config, tokenizer and missing tensors";
  }
  return "";
}

void PrintOne(const MethodInfo& method) {
  const auto line = [](std::string_view label, const std::string& text) { fmt::print("{:<9}{}\n", label, text); };
  line("method", fmt::format("{}: {}", method.name, method.summary));
  line("paper", std::string(method.source));
  line("base", BaseText(method));
  line("models", ModelCountText(method));
  const RoundCounts rounds = CountRounds(method);
  line("rounds", rounds.most == rounds.by_default
                     ? fmt::format("{}", rounds.most)
                     : fmt::format("{}, up to {} by parameters", rounds.by_default, rounds.most));
  if (method.by_rows) line("tiles", "whole rows");
  if (method.parameters.empty()) return;
  size_t width = 9, range_width = 5, default_width = 7;
  for (const ParameterSpec& spec : method.parameters) {
    width = std::max(width, spec.name.size());
    range_width = std::max(range_width, RangeText(spec).size());
    default_width = std::max(default_width, DefaultText(spec).size());
  }
  fmt::print("\n{:<{}}  {:<7}  {:<{}}  {:<{}}\n", "parameter", width, "per", "default", default_width, "range",
             range_width);
  for (const ParameterSpec& spec : method.parameters)
    fmt::print("{:<{}}  {:<7}  {:<{}}  {:<{}}  {}\n", spec.name, width, ScopeName(spec.scope), DefaultText(spec),
               default_width, RangeText(spec), range_width, spec.help);
}

void Run(const std::string& name) {
  if (name.empty() && !JsonWanted()) return PrintList();
  if (name.empty()) {
    Json all = Json::array();
    for (const MethodInfo& method : Methods()) all.push_back(MethodToJson(method));
    return fmt::print("{}\n", Json({{"status", "ok"}, {"methods", all}}).dump());
  }
  const MethodInfo* method = FindMethod(name);
  if (method == nullptr) {
    std::vector<std::string_view> names;
    for (const MethodInfo& known : Methods()) names.push_back(known.name);
    const std::string nearest = NearestName(name, names);
    throw Error(ErrorCode::kUsage, fmt::format("unknown method '{}'", Printable(name)))
        .Hint(nearest.empty() ? "braid methods lists them" : fmt::format("did you mean '{}'?", nearest));
  }
  if (!JsonWanted()) return PrintOne(*method);
  Json out = {{"status", "ok"}};
  out.update(MethodToJson(*method));
  fmt::print("{}\n", out.dump());
}

}  // namespace

void AddMethodsCommand(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "methods", "Show the merge methods, or one with its parameters\n\n  braid methods ties\n");
  command->add_option("NAME", *name, "Method. Default: all of them");
  AddJsonFlag(command);
  command->callback([name] { Run(*name); });
}

}  // namespace braid
