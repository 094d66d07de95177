#include "tools/weir/client/interrupt.h"

#include <signal.h>
#include <unistd.h>

namespace weir::tools {
namespace {

sigset_t InterruptSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

Interrupt::Interrupt(WhenIdle when_idle) : when_idle_(when_idle) {
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
    if (!cancellation_.Cancel() && when_idle_ == WhenIdle::kEndProgram) _exit(1);
  }
}

}  // namespace weir::tools
