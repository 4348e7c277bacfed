// braid verify OUT: whether a merged checkpoint is still what the merge wrote.
#include "pipeline/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "io/error.h"
#include "io/json.h"
#include "pipeline/budget.h"
#include "tools/braid/command.h"

namespace braid {
namespace {

double GigabytesPerSecond(const VerifyReport& report) {
  return static_cast<double>(report.bytes) / 1e9 / std::max(report.seconds, 1e-3);
}

Json ToJson(const VerifyReport& report, const std::string& out) {
  Json json = {{"status", "ok"},
               {"verified", report.ok()},
               {"checkpoint", out},
               {"fingerprint", report.fingerprint},
               {"tensors", report.tensors},
               {"tensors_checked", report.checked},
               {"bytes_checked", report.bytes},
               {"files", report.files},
               {"seconds", report.seconds},
               {"faults", Json::array()},
               {"warnings", report.warnings}};
  for (const VerifyFault& fault : report.faults) {
    Json entry = {{"reason", fault.reason}};
    if (!fault.file.empty()) entry["file"] = fault.file;
    if (!fault.tensor.empty()) entry["tensor"] = fault.tensor;
    json["faults"].push_back(std::move(entry));
  }
  return json;
}

std::string FaultText(const VerifyFault& fault) {
  std::string text;
  if (!fault.file.empty()) text += Printable(fault.file) + ": ";
  if (!fault.tensor.empty()) text += fmt::format("tensor '{}': ", Printable(fault.tensor));
  return text + Printable(fault.reason);
}

void Print(const VerifyReport& report) {
  for (const std::string& warning : report.warnings)
    std::fputs(fmt::format("warning: {}\n", Printable(warning)).c_str(), stderr);
  for (const VerifyFault& fault : report.faults) fmt::print("{}\n", FaultText(fault));
  const std::string checked = fmt::format("{} of {} tensors ({}) in {} file{} checked in {:.1f} s, {:.2f} GB/s",
                                          report.checked, report.tensors, SizeText(report.bytes), report.files,
                                          report.files == 1 ? "" : "s", report.seconds, GigabytesPerSecond(report));
  if (report.ok()) fmt::print("verified: {}; every checksum agrees\n", checked);
  else
    fmt::print("NOT what the merge wrote: {} fault{}; {}\n", report.faults.size(), report.faults.size() == 1 ? "" : "s",
               checked);
}

void Run(const std::string& out) {
  const VerifyReport report = Verify(out);
  SetExitStatus(report.ok() ? 0 : 1);
  if (JsonWanted()) fmt::print("{}\n", ToJson(report, out).dump(-1, ' ', false, Json::error_handler_t::replace));
  else Print(report);
}

}  // namespace

void AddVerifyCommand(CLI::App& app) {
  auto out = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "verify",
      "Check a merged checkpoint against the checksums that the merge left in it\n\n  braid verify merged\n\n"
      "Exit status 0 when it is what the merge wrote, 1 when it is not; then every bad tensor is named.\n"
      "A file that comes as a stream is verified on its way: ssh host cat merged.safetensors | braid verify -\n");
  command->add_option("OUT", *out, "Output of a merge: a directory, a .safetensors file, compressed or not, or -")
      ->required();
  AddJsonFlag(command);
  command->callback([out] { Run(*out); });
}

}  // namespace braid
