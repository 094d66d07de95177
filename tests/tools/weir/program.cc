#include "tests/tools/weir/program.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/worker/checkpoint_writer.h"

namespace weir::tools {

Outcome Weir(const std::string& arguments, const std::string& input) {
  const worker::TestDirectory directory;
  worker::WriteTextFile(directory / "input", input);
  const std::string command = std::string(WEIR_BINARY_DIR) + "/bin/weir " + arguments + " <" + (directory / "input") +
                              " 2>" + (directory / "errors");
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  Outcome outcome;
  std::array<char, 4096> buffer;
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  std::ostringstream errors;
  errors << std::ifstream(directory / "errors").rdbuf();
  outcome.errors = errors.str();
  return outcome;
}

}  // namespace weir::tools
