#pragma once

#include <chrono>

// SIGTERM and SIGINT: how a process is asked to drain and end.

namespace weir::process {

// Before any thread starts: from then on nothing but WasAskedToEnd sees these signals.
void HoldEndingSignals();

// True when one of them came; waits for it so long.  Each is told once.
bool WasAskedToEnd(std::chrono::milliseconds patience);

}  // namespace weir::process
