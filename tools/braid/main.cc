// braid: the command line. One file per verb; this one parses, dispatches, and turns errors into exit codes.
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>

#include "io/byte_stream.h"
#include "io/error.h"
#include "io/json.h"
#include "tools/braid/command.h"
#include "tools/braid/group.h"

namespace braid {
namespace {

int g_exit_status = 0;
bool g_json = false;
std::FILE* g_results = stdout;
std::atomic<int> g_interrupt{0};

void OnSignal(int signal) {
  if (g_interrupt.exchange(signal) != 0) _exit(128 + signal);
  const char message[] = "\nbraid: stopping; press again to stop at once\n";
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
}

// With fputs, because fmt::print throws when the stream is full or closed, and there is nobody left to tell.
void PrintError(const Error& error) {
  LetEarlierRanksSpeak();
  std::fputs(fmt::format("braid: error: {}\n", error.what()).c_str(), stderr);
  if (!g_json) return;
  Json out = {{"status", "error"}, {"code", ErrorCodeName(error.code())}, {"message", error.what()}};
  if (!error.path().empty()) out["path"] = error.path();
  if (!error.tensor().empty()) out["tensor"] = error.tensor();
  std::fputs((out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n").c_str(), g_results);
}

// The next file that is opened would get the number of a closed stream, and messages would go into weights.
void OpenStandardStreams() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) _exit(static_cast<int>(ErrorCode::kIo));
}

// glibc raises its threshold for mapped blocks whenever a large one is freed, and then each thread's arena keeps
// what the thread frees: 70 MiB with 33 sources, 16 threads and --memory 64MiB. A threshold that is set stays.
void ReturnFreedMemory() { mallopt(M_MMAP_THRESHOLD, 64 << 10); }

// Results that did not reach the reader are a failure, unless the reader left on purpose, as head does.
void FlushResults() {
  if (std::fflush(stdout) == 0 || errno == EPIPE) return;
  throw SystemError(errno, "write the result", "standard output");
}

int ExitCodeOf(const Error& error) {
  if (error.code() == ErrorCode::kInterrupted && g_interrupt != 0 && g_interrupt != SIGINT) return 143;
  return static_cast<int>(error.code());
}

// Whether a reader of stdout seems to expect weights, should the command line turn out to be wrong.
bool WritesToStdout(int argc, char** argv) {
  const std::string_view verb = argc > 1 ? argv[1] : "";
  if (verb == "cat") return true;
  bool dash = false;
  for (int i = 2; i < argc; ++i) dash |= std::string_view(argv[i]) == "-";
  return dash && (verb == "merge" || verb == "apply" || verb == "mergekit-yaml");
}

constexpr const char* kExamples =
    "Merges model checkpoints that are bigger than memory.\n\n"
    "  braid merge configs/ties.toml merged --memory 2GiB\n"
    "  braid plan configs/ties.toml\n"
    "  braid verify merged\n";

int Main(int argc, char** argv) {
  CLI::App app{kExamples, "braid"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "braid " BRAID_VERSION);
  AddMergeCommand(app);
  AddApplyCommand(app);
  AddPlanCommand(app);
  AddInspectCommand(app);
  AddDiffCommand(app);
  AddVerifyCommand(app);
  AddCatCommand(app);
  AddSynthCommand(app);
  AddMethodsCommand(app);
  AddRecipeCommand(app);
  AddMergekitYamlCommand(app);
  // A usage error must be JSON as well, and then CLI11 has not told us yet that --json is there.
  for (int i = 1; i < argc; ++i) g_json |= std::string_view(argv[i]) == "--json";
  if (WritesToStdout(argc, argv)) RouteResults("-");
  try {
    app.parse(argc, argv);
    FlushResults();
    return g_exit_status;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    const auto chosen = app.get_subcommands();
    const std::string help =
        chosen.empty() ? "braid --help" : fmt::format("braid {} --help", chosen.front()->get_name());
    PrintError(Error(ErrorCode::kUsage, e.what()).Hint("see " + help));
    return 2;
  } catch (const ReaderGone&) {
    return 128 + SIGPIPE;
  } catch (const Error& e) {
    PrintError(e);
    return ExitCodeOf(e);
  } catch (const std::bad_alloc&) {
    PrintError(
        Error(ErrorCode::kMemory, "the system gave no more memory").Hint("use a smaller --memory, or free some"));
    return static_cast<int>(ErrorCode::kMemory);
  } catch (const std::filesystem::filesystem_error& e) {
    const Error error = SystemError(e.code().value(), "look at it", e.path1().string());
    PrintError(error);
    return ExitCodeOf(error);
  } catch (const std::system_error& e) {  // fmt's print, or a thread that the system does not grant
    const bool out = std::ferror(stdout) != 0, err = std::ferror(stderr) != 0;
    const char* doing = out ? "write the result" : err ? "write a message" : "start a thread";
    PrintError(SystemError(e.code().value(), doing, out ? "standard output" : err ? "standard error" : ""));
    return static_cast<int>(ErrorCode::kIo);
  } catch (const std::exception& e) {
    PrintError(
        Error(ErrorCode::kInternal, e.what()).Hint("this is a fault in braid; please report it with the recipe"));
    return static_cast<int>(ErrorCode::kInternal);
  }
}

}  // namespace

void SetExitStatus(int status) { g_exit_status = status; }
void AddJsonFlag(CLI::App* command) { command->add_flag("--json", g_json, "Print the result as one JSON object"); }
bool JsonWanted() { return g_json; }
std::FILE* Results() { return g_results; }
void RouteResults(const std::string& out) { g_results = out == "-" ? stderr : stdout; }
const std::atomic<int>& Interrupt() { return g_interrupt; }

void HandleSignals() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

}  // namespace braid

int main(int argc, char** argv) {
  braid::OpenStandardStreams();
  braid::ReturnFreedMemory();
  const int status = braid::Main(argc, argv);
  braid::LeaveGroup(status);
  return status;
}
