#pragma once

#include <string>

// How text looks on standard output; plain when that is not a terminal, or when NO_COLOR is set.

namespace weir::tools {

bool IsTerminal();
// What turns a look on and off; empty on something that is not a terminal.
const char* DimOn();
const char* BoldOn();
const char* LookOff();

// Text of others as it may be shown: control characters but newline and tab, with which it could move the cursor or
// name the window, are replaced by U+FFFD.
std::string Printable(const std::string& text);

}  // namespace weir::tools
