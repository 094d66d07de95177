#pragma once

#include <string>

namespace CLI {
class App;
}

// The subcommands of `weir`.  Each function adds one to the application; the command's work runs in its callback, which
// throws CLI::RuntimeError(1) after it has printed what went wrong.

namespace weir::tools {

void AddUp(CLI::App& app);
void AddChat(CLI::App& app);
void AddComplete(CLI::App& app);
void AddTokenize(CLI::App& app);
void AddBench(CLI::App& app);
void AddKeys(CLI::App& app);
void AddDoctor(CLI::App& app);
void AddInspect(CLI::App& app);
void AddGenerate(CLI::App& app);
void AddSim(CLI::App& app);
void AddCompletion(CLI::App& app);  // of all commands: added last

}  // namespace weir::tools
