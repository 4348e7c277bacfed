// braid diff A B: how the weights of two checkpoints differ.
#include "pipeline/diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "io/error.h"
#include "io/json.h"
#include "pipeline/budget.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

struct DiffArguments {
  std::string a, b;
};

const TensorInfo& InfoA(const CheckpointDifference& diff, const TensorDifference& t) {
  return diff.a.tensors[t.a].info;
}
const TensorInfo& InfoB(const CheckpointDifference& diff, const TensorDifference& t) {
  return diff.b.tensors[t.b].info;
}

double EqualShare(const ElementDifference& d) {
  return d.elements == 0 ? 1.0 : static_cast<double>(d.equal) / static_cast<double>(d.elements);
}

// --- JSON -------------------------------------------------------------------------------------------------

// JSON has no infinity: a distance that is not finite is null, and not_finite says how often.
Json TensorToJson(const CheckpointDifference& diff, const TensorDifference& t) {
  const TensorInfo &a = InfoA(diff, t), &b = InfoB(diff, t);
  Json out = {{"name", a.name}, {"identical", t.identical()}, {"dtype", {DTypeName(a.dtype), DTypeName(b.dtype)}},
              {"shape", {a.shape, b.shape}}};
  if (!t.compared) return out;
  const ElementDifference& d = t.elements;
  out["elements"] = d.elements;
  out["equal"] = d.equal;
  out["equal_share"] = EqualShare(d);
  if (!d.has_distances) return out;
  const bool finite = d.not_finite == 0;
  out["largest_absolute"] = finite ? Json(d.largest_absolute) : Json();
  out["largest_relative"] = finite ? Json(d.largest_relative) : Json();
  out["largest_ulp"] = finite ? Json(d.largest_ulp) : Json();
  out["not_finite"] = d.not_finite;
  return out;
}

Json ToJson(const CheckpointDifference& diff) {
  Json out = {{"status", "ok"},
              {"identical", diff.identical()},
              {"a", diff.a.reference},
              {"b", diff.b.reference},
              {"tensors_in_both", diff.tensors.size()},
              {"tensors_differing", diff.differing},
              {"only_in_a", diff.only_in_a},
              {"only_in_b", diff.only_in_b},
              {"bytes_read", diff.bytes_read},
              {"tensors", Json::array()}};
  for (const TensorDifference& t : diff.tensors) out["tensors"].push_back(TensorToJson(diff, t));
  return out;
}

// --- for people -------------------------------------------------------------------------------------------

std::string DTypesText(const CheckpointDifference& diff, const TensorDifference& t) {
  const std::string_view a = DTypeName(InfoA(diff, t).dtype), b = DTypeName(InfoB(diff, t).dtype);
  return a == b ? std::string(a) : fmt::format("{}/{}", a, b);
}

// 99.999... % is not 100 %.
std::string ShareText(const ElementDifference& d) {
  if (d.equal == d.elements) return "100 %";
  return fmt::format("{:.2f} %", std::min(100 * EqualShare(d), 99.99));
}

std::string DistancesText(const ElementDifference& d) {
  if (!d.has_distances) return fmt::format("{:>12}{:>12}{:>12}", "-", "-", "-");
  if (d.not_finite > 0)
    return fmt::format("{:>12}{:>12}{:>12}  ({} NaN or infinite against something else)", "inf", "inf", "inf",
                       d.not_finite);
  return fmt::format("{:>12.4g}{:>12.4g}{:>12}", d.largest_absolute, d.largest_relative, d.largest_ulp);
}

std::string DifferenceText(const CheckpointDifference& diff, const TensorDifference& t) {
  if (!t.same_shape)
    return fmt::format("  shape {} against {}", ShapeText(InfoA(diff, t).shape), ShapeText(InfoB(diff, t).shape));
  if (!t.compared) return "  types that cannot be compared";
  return fmt::format("{:>10}{}", ShareText(t.elements), DistancesText(t.elements));
}

void PrintTensors(const CheckpointDifference& diff) {
  size_t width = 6;
  for (const TensorDifference& t : diff.tensors)
    if (!t.identical()) width = std::max(width, Printable(InfoA(diff, t).name).size());
  width = std::min<size_t>(width, 64);
  fmt::print("{:<{}}  {:<11}{:>10}{:>12}{:>12}{:>12}\n", "tensor", width, "dtype", "equal", "absolute", "relative",
             "ULP");
  for (const TensorDifference& t : diff.tensors)
    if (!t.identical())
      fmt::print("{:<{}}  {:<11}{}\n", Printable(InfoA(diff, t).name), width, DTypesText(diff, t),
                 DifferenceText(diff, t));
}

void Print(const CheckpointDifference& diff) {
  if (diff.identical()) {
    fmt::print("identical: {} tensors, {}\n", diff.tensors.size(), SizeText(diff.a.TotalBytes()));
    return;
  }
  if (diff.differing > 0) PrintTensors(diff);
  for (const std::string& name : diff.only_in_a) fmt::print("only in A: {}\n", Printable(name));
  for (const std::string& name : diff.only_in_b) fmt::print("only in B: {}\n", Printable(name));
  fmt::print("{} of {} tensors differ, {} only in A, {} only in B\n", diff.differing, diff.tensors.size(),
             diff.only_in_a.size(), diff.only_in_b.size());
}

void Run(const DiffArguments& arguments) {
  const CheckpointDifference diff = Diff(arguments.a, arguments.b);
  SetExitStatus(diff.identical() ? 0 : 1);
  if (JsonWanted()) fmt::print("{}\n", ToJson(diff).dump(-1, ' ', false, Json::error_handler_t::replace));
  else Print(diff);
}

}  // namespace

void AddDiffCommand(CLI::App& app) {
  auto arguments = std::make_shared<DiffArguments>();
  CLI::App* command = app.add_subcommand(
      "diff",
      "Compare the weights of two checkpoints\n\n  braid diff models/base merged\n\n"
      "Per tensor: the share of elements with equal bits, and the largest absolute difference, relative difference\n"
      "|a - b| / max(|a|, |b|), and distance in units in the last place (of the tensors' type, or of float32 "
      "when they\n"
      "have two). Exit status 0 when everything is equal bit for bit, 1 otherwise.\n\n"
      "Either may be a stream, -, a FIFO or /dev/fd/N, which is read once, in its order:\n"
      "  braid merge recipe.toml - | braid diff merged -\n");
  command->add_option("A", arguments->a, "Directory, .safetensors file, compressed or not, id in the cache, or -")
      ->required();
  command->add_option("B", arguments->b, "The other one")->required();
  AddJsonFlag(command);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace braid
