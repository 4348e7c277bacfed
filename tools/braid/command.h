// What the verbs share: how a command is registered, and how its outcome reaches the user.
//
// A verb is one file with one Add...Command; its callback does the work, throws Error for failures, and calls
// SetExitStatus(1) for a negative answer. stdout carries results, stderr messages.
#pragma once

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <string>

namespace braid {

void AddMergeCommand(CLI::App& app);
void AddApplyCommand(CLI::App& app);
void AddPlanCommand(CLI::App& app);
void AddInspectCommand(CLI::App& app);
void AddDiffCommand(CLI::App& app);
void AddVerifyCommand(CLI::App& app);
void AddCatCommand(CLI::App& app);
void AddSynthCommand(CLI::App& app);
void AddMethodsCommand(CLI::App& app);
void AddRecipeCommand(CLI::App& app);
void AddMergekitYamlCommand(CLI::App& app);

// 1: the answer is no (diff differs, verify fails).
void SetExitStatus(int status);

// --json, the same for every verb that has it: results as one JSON object on stdout, errors too.
void AddJsonFlag(CLI::App* command);
bool JsonWanted();

// Where results go: stdout, unless weights do.
std::FILE* Results();
void SendResultsToStderr();

// The signal that asked us to stop, or 0. Set by the handler; a second signal ends the process at once.
const std::atomic<int>& Interrupt();
void HandleSignals();

}  // namespace braid
