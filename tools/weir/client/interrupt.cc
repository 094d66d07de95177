#include "tools/weir/client/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <utility>

namespace weir::tools {
namespace {

sigset_t InterruptSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

Interrupt::Interrupt(std::function<bool()> on_interrupt) : on_interrupt_(std::move(on_interrupt)) {
  const sigset_t set = InterruptSignal();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Wait(); });
}

Interrupt::~Interrupt() {
  is_over_ = true;
  pthread_kill(thread_.native_handle(), SIGINT);
  thread_.join();
}

void Interrupt::Wait() {
  const sigset_t set = InterruptSignal();
  while (true) {
    int signal = 0;
    sigwait(&set, &signal);
    if (is_over_) return;
    if (!on_interrupt_()) _exit(kInterruptedExitCode);
  }
}

}  // namespace weir::tools
