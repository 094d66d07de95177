#pragma once

#include <atomic>
#include <thread>

#include "tools/weir/client/inference_client.h"

// Ctrl-C for commands that talk to a gateway: it ends the answer that streams.  A thread of its own waits for SIGINT,
// which is blocked in all others; make it before the first thread that must not see the signal.

namespace weir::tools {

class Interrupt {
 public:
  // What Ctrl-C does while no answer streams.
  enum class WhenIdle { kNothing, kEndProgram };
  explicit Interrupt(WhenIdle when_idle);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  Cancellation& cancellation() { return cancellation_; }

 private:
  void Wait();
  const WhenIdle when_idle_;
  Cancellation cancellation_;
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace weir::tools
