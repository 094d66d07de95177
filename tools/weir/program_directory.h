#pragma once

#include <string>

namespace weir::tools {

// Where the running program lies; the other programs of the same build lie beside it.
std::string ProgramDirectory();

}  // namespace weir::tools
