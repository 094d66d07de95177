#include "tools/weir/cluster/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/weir/cluster/ops_probe.h"

namespace weir::tools {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kProbeInterval{100};  // while something is not ready
constexpr milliseconds kProbePatience{200};
constexpr milliseconds kLongestWait{60'000};

}  // namespace

Supervisor::Supervisor(std::vector<ProcessSpec> specs, Options options, Listener listener)
    : options_(options), listener_(std::move(listener)) {
  for (ProcessSpec& spec : specs) {
    processes_.emplace_back();
    processes_.back().spec = std::move(spec);
    processes_.back().restart_at = Clock::now();
  }
}

Supervisor::~Supervisor() {
  if (signal_fd_ >= 0) close(signal_fd_);
}

absl::Status Supervisor::Run() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGINT, SIG_DFL);  // a shell has it ignored by what it runs in the background
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  absl::Status status = Loop();
  for (Process& process : processes_) process.child.reset();
  return status;
}

absl::Status Supervisor::Loop() {
  while (true) {
    if (absl::Status status = StartDue(); !status.ok()) return status;
    Wait();
    TakeSignals();
    for (size_t i = 0; i < processes_.size(); ++i) ReadOutput(i);
    if (absl::Status status = TakeDeaths(); !status.ok()) return status;
    ProbeReadiness();
    ProbeHealth();
    if (run_until_ && Clock::now() >= *run_until_) BeginDrain();
    if (!drain_until_) continue;
    ContinueDrain();
    if (!IsAnyRunning()) return killed_why_.empty() ? absl::OkStatus() : absl::AbortedError(killed_why_);
  }
}

absl::Status Supervisor::StartDue() {
  if (drain_until_) return absl::OkStatus();
  for (Process& process : processes_) {
    if (!process.restart_at || Clock::now() < *process.restart_at) continue;
    process.restart_at.reset();
    absl::StatusOr<ChildProcess> child = ChildProcess::Start(process.spec.argv);
    if (!child.ok()) return child.status();
    process.child.emplace(*std::move(child));
    process.started_at = Clock::now();
    process.last_lines.clear();
    process.is_ready = false;
    process.health.reset();
    process.hung_how.clear();
  }
  return absl::OkStatus();
}

Supervisor::Clock::time_point Supervisor::NextTime() const {
  Clock::time_point next = Clock::now() + kLongestWait;
  for (const Process& process : processes_) {
    if (process.restart_at && !drain_until_) next = std::min(next, *process.restart_at);
    if (process.child && !process.is_ready && !process.spec.ready_address.empty()) {
      next = std::min(next, Clock::now() + kProbeInterval);
    }
    if (process.child && process.health && !drain_until_) next = std::min(next, process.next_health_probe_at);
  }
  if (run_until_) next = std::min(next, *run_until_);
  if (drain_until_) next = std::min(next, *drain_until_);
  return next;
}

void Supervisor::Wait() {
  std::vector<pollfd> polled = {{.fd = signal_fd_, .events = POLLIN, .revents = 0}};
  for (const Process& process : processes_) {
    if (process.child) polled.push_back({.fd = process.child->output_fd(), .events = POLLIN, .revents = 0});
  }
  const auto wait = std::chrono::ceil<milliseconds>(NextTime() - Clock::now());
  poll(polled.data(), polled.size(), static_cast<int>(std::max<int64_t>(0, wait.count())));
}

void Supervisor::TakeSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) continue;  // TakeDeaths looks at every child
    if (drain_until_) {
      KillAll("ended by a second signal, before the drain was over");
    } else {
      BeginDrain();
    }
  }
}

void Supervisor::ReadOutput(size_t index) {
  Process& process = processes_[index];
  if (!process.child) return;
  process.child->ReadLines([&](std::string_view line) {
    if (process.spec.is_progress == nullptr || !process.spec.is_progress(line)) {
      process.last_lines.emplace_back(line);
      if (process.last_lines.size() > kNumLastLines) process.last_lines.pop_front();
    }
    if (listener_.on_line) listener_.on_line(index, line);
    const ProcessSpec& spec = process.spec;
    if (spec.ready_address.empty() && line.find(spec.ready_text) != std::string_view::npos) MarkReady(index);
  });
}

absl::Status Supervisor::TakeDeaths() {
  for (size_t i = 0; i < processes_.size(); ++i) {
    if (!processes_[i].child) continue;
    const std::optional<int> wait_status = processes_[i].child->TryWait();
    if (!wait_status) continue;
    if (absl::Status status = Died(i, *wait_status); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Supervisor::Died(size_t index, int wait_status) {
  Process& process = processes_[index];
  ReadOutput(index);
  process.child.reset();
  process.is_ready = false;
  const std::string how = process.hung_how.empty() ? HowItEnded(wait_status) : process.hung_how;
  if (drain_until_) {
    if (wait_status != 0 && listener_.on_death) listener_.on_death(index, how, std::nullopt);
    return absl::OkStatus();
  }
  if (WIFEXITED(wait_status) && !process.was_ever_ready && !was_all_ready_) {
    return absl::AbortedError(  // its flags or this machine do not suit it: another attempt would say the same
        absl::StrCat(process.spec.name, " ", how, " before it was ready; its last lines:\n", LastLines(index)));
  }
  const std::optional<milliseconds> delay = process.policy.Died(Clock::now());
  if (listener_.on_death) listener_.on_death(index, how, delay);
  if (!delay) {
    return absl::AbortedError(absl::StrCat(process.spec.name, " ", how, ", ", RestartPolicy::kMaxQuickDeaths,
                                           " times in a row; its last lines:\n", LastLines(index)));
  }
  process.restart_at = Clock::now() + *delay;
  return absl::OkStatus();
}

void Supervisor::ProbeReadiness() {
  for (size_t i = 0; i < processes_.size(); ++i) {
    Process& process = processes_[i];
    if (!process.child || process.is_ready || process.spec.ready_address.empty() || drain_until_) continue;
    const absl::StatusOr<OpsPage> page = GetOpsPage(process.spec.ready_address, "/readyz", kProbePatience);
    if (page.ok() && !process.health) {
      process.health.emplace();
      process.next_health_probe_at = Clock::now() + HealthWatch::kInterval;
    }
    if (page.ok() && page->is_ok) MarkReady(i);
  }
}

// The ranks' health is the scheduler's matter, which knows what they have to do and by when.
void Supervisor::ProbeHealth() {
  for (Process& process : processes_) {
    if (!process.child || !process.health || drain_until_ || Clock::now() < process.next_health_probe_at) continue;
    process.next_health_probe_at = Clock::now() + HealthWatch::kInterval;
    const absl::StatusOr<OpsPage> page = GetOpsPage(process.spec.ready_address, "/healthz", HealthWatch::kPatience);
    if (!page.ok()) {
      EndIfHung(process, process.health->Silent());
    } else if (!page->is_ok) {
      EndIfHung(process, process.health->Complained(std::string(absl::StripAsciiWhitespace(page->text))));
    } else {
      process.health->Answered();
    }
  }
}

// Its death is then taken like any other.
void Supervisor::EndIfHung(Process& process, const std::optional<std::string>& hung_how) {
  if (!hung_how) return;
  process.hung_how = *hung_how;
  process.health.reset();
  process.child->Kill();
}

void Supervisor::MarkReady(size_t index) {
  Process& process = processes_[index];
  if (process.is_ready) return;
  process.is_ready = process.was_ever_ready = true;
  process.policy.Ready(Clock::now());
  if (listener_.on_ready) {
    listener_.on_ready(index, std::chrono::duration_cast<milliseconds>(Clock::now() - process.started_at));
  }
  const bool are_all = std::all_of(processes_.begin(), processes_.end(), [](const Process& p) { return p.is_ready; });
  if (!are_all || was_all_ready_) return;
  was_all_ready_ = true;
  if (options_.run_for) run_until_ = Clock::now() + *options_.run_for;
  if (listener_.on_all_ready) listener_.on_all_ready();
}

void Supervisor::BeginDrain() {
  run_until_.reset();
  if (drain_until_) return;
  drain_until_ = Clock::now() + options_.drain_timeout;
  if (listener_.on_drain) listener_.on_drain();
}

// Asks the lowest stage that still runs to end.
void Supervisor::ContinueDrain() {
  if (Clock::now() >= *drain_until_ && killed_why_.empty()) {
    KillAll(absl::StrCat("the drain took longer than ", options_.drain_timeout.count() / 1000, " s"));
    return;
  }
  std::optional<int> stage;
  for (const Process& process : processes_) {
    if (process.child && (!stage || process.spec.drain_stage < *stage)) stage = process.spec.drain_stage;
  }
  for (Process& process : processes_) {
    if (!process.child || process.spec.drain_stage != stage || process.was_asked_to_end) continue;
    process.child->Signal(SIGTERM);
    process.was_asked_to_end = true;
  }
}

void Supervisor::KillAll(const std::string& why) {
  if (!killed_why_.empty()) return;
  killed_why_ = why;
  drain_until_ = Clock::now() + kLongestWait;  // a killed process ends; nothing is left to time out
  if (listener_.on_kill) listener_.on_kill(why);
  for (Process& process : processes_) {
    if (process.child) process.child->Kill();
  }
}

bool Supervisor::IsAnyRunning() const {
  return std::any_of(processes_.begin(), processes_.end(), [](const Process& p) { return p.child.has_value(); });
}

std::string Supervisor::LastLines(size_t process) const {
  const std::deque<std::string>& lines = processes_[process].last_lines;
  return lines.empty() ? "  (it wrote nothing)" : absl::StrCat("  ", absl::StrJoin(lines, "\n  "));
}

}  // namespace weir::tools
