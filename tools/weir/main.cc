#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "channels/lock_checks.h"
#include "config/build_id.h"
#include "config/config.h"
#include "tools/weir/commands.h"
#include "worker/checkpoint/unreadable_files.h"

namespace {

// A result that did not reach its file or pipe is an error, also when all else went well.
int Close(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  std::fprintf(stderr, "weir: cannot write to standard output: %s\n", std::strerror(errno));
  return exit_code == 0 ? 1 : exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  weir::channels::SkipLockChecks();
  // gRPC's own log lines are no words for people; what they are about is said in the commands' errors.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  weir::worker::ReportUnreadableFiles(
      [](const char* path) { std::fprintf(stderr, "weir: %s: %s\n", path, weir::worker::kUnreadableFile); });
  CLI::App app{"Weir divides one large mixture-of-experts language model fairly among its tenants."};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string(weir::config::BuildId()));
  weir::tools::AddUp(app);
  weir::tools::AddChat(app);
  weir::tools::AddComplete(app);
  weir::tools::AddTokenize(app);
  weir::tools::AddBench(app);
  weir::tools::AddKeys(app);
  weir::tools::AddDoctor(app);
  weir::tools::AddInspect(app);
  weir::tools::AddGenerate(app);
  weir::tools::AddSim(app);
  weir::tools::AddCompletion(app);
  app.footer(
      "Examples:\n"
      "  weir up --model DIR --tp 2      serves a model from this machine\n"
      "  weir chat                       talks with it\n"
      "  weir inspect DIR --tp 8         says what it needs");
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {  // a command has said what went wrong
    return Close(error.get_exit_code());
  } catch (const CLI::ParseError& error) {
    return Close(weir::config::Exit(app, error, argc, argv));
  }
  return Close(0);
}
