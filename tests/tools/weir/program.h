#pragma once

#include <string>

// Runs the program `weir` as a person or a script would.

namespace weir::tools {

struct Outcome {
  int exit_code = -1;  // minus the signal that ended it
  std::string output;
  std::string errors;
};

// `arguments` as a shell reads them; `input` is its standard input.
Outcome Weir(const std::string& arguments, const std::string& input = "");

}  // namespace weir::tools
