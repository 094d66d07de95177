#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "tools/weir/cluster/child_process.h"
#include "tools/weir/cluster/health_watch.h"
#include "tools/weir/cluster/restart_policy.h"

// Runs a few programs as children until they are asked to end: starts them, waits until each is ready, kills those that
// hang, starts those that die again, and at the end drains them in order.  One thread; whatever happens to it, no child
// stays.

namespace weir::tools {

struct ProcessSpec {
  std::string name;               // "rank 0"
  std::vector<std::string> argv;  // argv[0]: the program's path
  std::string ready_text;         // ready when a line of its output holds this ...
  // ... or, when this is set, when /readyz of this ops address (host:port) says so; its /healthz is then watched from
  // its first answer until a drain begins, and a process that hangs is killed.
  std::string ready_address;
  bool (*is_progress)(std::string_view line) = nullptr;  // lines that say how far it is: not kept as last lines
  int drain_stage = 0;  // asked to end (SIGTERM) when all processes of lower stages have ended
};

class Supervisor {
 public:
  // What happens, for people.  All may be empty.
  struct Listener {
    std::function<void(size_t process, std::string_view line)> on_line;
    std::function<void(size_t process, std::chrono::milliseconds since_start)> on_ready;
    std::function<void()> on_all_ready;  // the first time
    // `restart_in` empty: it is not started again.
    std::function<void(size_t process, const std::string& how, std::optional<std::chrono::milliseconds> restart_in)>
        on_death;
    std::function<void()> on_drain;
    std::function<void(const std::string& why)> on_kill;  // those that still run
  };
  struct Options {
    std::optional<std::chrono::milliseconds> run_for;  // from the moment when all are ready; then a drain
    std::chrono::milliseconds drain_timeout{30'000};   // then those that still run are killed
  };

  Supervisor(std::vector<ProcessSpec> specs, Options options, Listener listener);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Until SIGINT, SIGTERM or the end of run_for has drained all.  An error: a process cannot be started, exits by
  // itself at the very start or dies again and again (its name, its end and its last lines), or the drain was cut short
  // by a second signal or its timeout. Blocks SIGINT, SIGTERM and SIGCHLD in the calling thread, which must be the only
  // one that does not.
  absl::Status Run();

  // The end of what a process wrote in its last life that wrote anything, oldest first, indented.
  std::string LastLines(size_t process) const;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kNumLastLines = 12;
  struct Process {
    ProcessSpec spec;
    RestartPolicy policy;
    std::optional<ChildProcess> child;
    bool is_ready = false;
    std::optional<HealthWatch> health;  // from its first answer in this life
    Clock::time_point next_health_probe_at;
    std::string hung_how;  // why this life was ended, if it was for hanging
    bool was_asked_to_end = false;
    Clock::time_point started_at;
    std::optional<Clock::time_point> restart_at;
    std::deque<std::string> last_lines;  // of this life
    bool was_ever_ready = false;
  };

  absl::Status Loop();
  absl::Status StartDue();
  void Wait();
  void ReadOutput(size_t index);
  void TakeSignals();
  absl::Status TakeDeaths();
  absl::Status Died(size_t index, int wait_status);
  void ProbeReadiness();
  void ProbeHealth();
  void EndIfHung(Process& process, const std::optional<std::string>& hung_how);
  void MarkReady(size_t index);
  void BeginDrain();
  void ContinueDrain();
  void KillAll(const std::string& why);
  bool IsAnyRunning() const;
  Clock::time_point NextTime() const;

  std::vector<Process> processes_;
  Options options_;
  Listener listener_;
  int signal_fd_ = -1;
  bool was_all_ready_ = false;
  std::optional<Clock::time_point> run_until_;
  std::optional<Clock::time_point> drain_until_;
  std::string killed_why_;
};

}  // namespace weir::tools
