#pragma once

#include <atomic>
#include <functional>
#include <thread>

// Ctrl-C for commands that talk to a gateway.  A thread of its own waits for SIGINT, which is blocked in all others;
// make it before the first thread that must not see the signal.

namespace weir::tools {

inline constexpr int kInterruptedExitCode = 130;  // 128 + SIGINT, as shells have it

class Interrupt {
 public:
  // `on_interrupt` is called at each Ctrl-C, on the thread that waits.  False: there is nothing that could end in
  // order, and the program ends at once with kInterruptedExitCode.
  explicit Interrupt(std::function<bool()> on_interrupt);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

 private:
  void Wait();
  const std::function<bool()> on_interrupt_;
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace weir::tools
