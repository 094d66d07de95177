#pragma once

#include <string>

// How a server process logs: lines of text for people or objects for collectors, through spdlog's default logger.

namespace CLI {
class App;
}

namespace weir::process {

struct LogOptions {
  std::string format = "text";  // or json
  std::string level = "info";   // debug, info, warn or error
};

// --log-format and --log-level.
void AddLogOptions(CLI::App& app, LogOptions& options);

// Lines carry `name`, the process's; what is logged from then on looks as `options` say.
void StartLog(const LogOptions& options, const std::string& name);

}  // namespace weir::process
