#include "tests/sim/search.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <thread>

#include "absl/strings/str_format.h"

namespace weir::sim {
namespace {

// What a child has to say survives its crash: it lies in memory that both share.
struct Shared {
  std::atomic<int64_t> num_steps = 0;  // moves as long as the child does
  int64_t num_lines = 0;
  int64_t num_seeds = 0;
  int64_t num_events = 0;
  int64_t num_requests = 0;
  int64_t num_tokens = 0;
  int64_t num_preemptions = 0;
  double max_gap_over_u = 0;
  double max_class_lag_over_bound = 0;
  uint64_t trace_hash = 0;
  uint64_t seed = 0;
  int64_t event = 0;
  bool has_failed = false;
  char checker[32] = {};
  char text[1024] = {};
};

class SharedPage {
 public:
  SharedPage()
      : shared_(new(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared) {}
  ~SharedPage() { munmap(shared_, sizeof(Shared)); }
  SharedPage(const SharedPage&) = delete;
  SharedPage& operator=(const SharedPage&) = delete;
  Shared* operator->() const { return shared_; }
  Shared& operator*() const { return *shared_; }

 private:
  Shared* shared_;
};

double ChildCpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

void Fail(Shared& shared, const std::string& checker, const std::string& text) {
  shared.has_failed = true;
  std::snprintf(shared.checker, sizeof(shared.checker), "%s", checker.c_str());
  std::snprintf(shared.text, sizeof(shared.text), "%s", text.c_str());
}

void RunOne(const RunOptions& options, Shared& shared) {
  RunOptions watched = options;
  shared.seed = options.seed;
  watched.progress = [&shared](int64_t event) {
    shared.event = event + 1;
    shared.num_steps.fetch_add(1, std::memory_order_relaxed);
  };
  const RunResult result = Simulate(watched);
  ++shared.num_seeds;
  shared.num_events += result.num_events;
  shared.num_requests += result.num_requests;
  shared.num_tokens += result.num_tokens;
  shared.num_preemptions += result.num_preemptions;
  shared.max_gap_over_u = std::max(shared.max_gap_over_u, result.max_gap_over_u);
  shared.max_class_lag_over_bound = std::max(shared.max_class_lag_over_bound, result.max_class_lag_over_bound);
  shared.trace_hash = shared.trace_hash * 31 + result.trace_hash;
  if (result.violation) Fail(shared, result.violation.checker, result.violation.text);
}

// Runs `work` in a child.  A crash fails with the checker "crash", a standstill with "stuck".
void RunGuarded(SharedPage& shared, double stuck_seconds, const std::function<void(int64_t)>& progress,
                const std::function<void(Shared&)>& work) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    work(*shared);
    std::fflush(nullptr);
    _exit(0);
  }
  int status = 0;
  int64_t last_steps = -1;
  double idle_seconds = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const int64_t steps = shared->num_steps.load(std::memory_order_relaxed);
    idle_seconds = steps == last_steps ? idle_seconds + 0.005 : 0;
    last_steps = steps;
    if (progress) progress(shared->num_seeds);
    if (idle_seconds < stuck_seconds) continue;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return Fail(*shared, "stuck", absl::StrFormat("event %d did not come to an end", shared->event));
  }
  if (WIFSIGNALED(status)) {
    Fail(*shared, "crash",
         absl::StrFormat("the code under test stopped by itself (signal %d, %s)", WTERMSIG(status),
                         strsignal(WTERMSIG(status))));
  } else if (WEXITSTATUS(status) != 0 && !shared->has_failed) {
    Fail(*shared, "crash", absl::StrFormat("the code under test left with status %d", WEXITSTATUS(status)));
  }
}

SearchResult ResultOf(const Shared& shared) {
  SearchResult result;
  result.num_seeds = shared.num_seeds;
  result.num_events = shared.num_events;
  result.num_requests = shared.num_requests;
  result.num_tokens = shared.num_tokens;
  result.num_preemptions = shared.num_preemptions;
  result.max_gap_over_u = shared.max_gap_over_u;
  result.max_class_lag_over_bound = shared.max_class_lag_over_bound;
  result.trace_hash = shared.trace_hash;
  result.has_failed = shared.has_failed;
  result.seed = shared.seed;
  result.event = shared.event;
  result.violation = {shared.checker, shared.text};
  return result;
}

// The code under test has said its last words once; it need not for each attempt.
void SilenceErrors() {
  if (std::freopen("/dev/null", "w", stderr) == nullptr) std::abort();
}

SearchResult RunQuietly(const RunOptions& options) {
  SharedPage shared;
  RunGuarded(shared, 5, nullptr, [&](Shared& into) {
    SilenceErrors();
    RunOne(options, into);
  });
  return ResultOf(*shared);
}

}  // namespace

SearchResult Search(const SearchOptions& options) {
  SharedPage shared;
  const double cpu_before = ChildCpuSeconds();
  RunGuarded(shared, options.stuck_seconds, options.progress, [&](Shared& into) {
    RunOptions run;
    run.num_events = options.num_events;
    run.without = options.without;
    run.full_check_every = options.full_check_every;
    for (int64_t i = 0; i < options.num_seeds && !into.has_failed; ++i) {
      if (options.cpu_seconds > 0 && CpuSeconds() > options.cpu_seconds) break;
      run.seed = options.first_seed + static_cast<uint64_t>(i);
      RunOne(run, into);
    }
  });
  SearchResult result = ResultOf(*shared);
  if (result.has_failed && (result.violation.checker == "crash" || result.violation.checker == "stuck"))
    ++result.num_seeds;
  result.cpu_seconds = ChildCpuSeconds() - cpu_before;
  return result;
}

RunOptions Shrink(const SearchResult& failure, const SearchOptions& options) {
  RunOptions run;
  run.seed = failure.seed;
  run.num_events = options.num_events;
  run.without = options.without;
  run.full_check_every = 1;
  const auto fails = [&](const RunOptions& attempt) {
    const SearchResult result = RunQuietly(attempt);
    return result.has_failed && result.violation.checker == failure.violation.checker;
  };
  if (!fails(run)) run.full_check_every = options.full_check_every;  // another rule breaks first when all are checked
  const auto shorten = [&] {
    const SearchResult result = RunQuietly(run);
    int64_t fails_with = std::min(run.num_events, result.event);  // what comes after the failure is not needed
    int64_t holds_with = 0;
    RunOptions attempt = run;
    attempt.num_events = fails_with;
    if (!fails(attempt)) return;
    while (fails_with - holds_with > 1) {
      attempt.num_events = holds_with + (fails_with - holds_with) / 2;
      (fails(attempt) ? fails_with : holds_with) = attempt.num_events;
    }
    run.num_events = fails_with;
  };
  shorten();
  for (int i = 0; i < kNumFaults; ++i) {
    RunOptions attempt = run;
    attempt.num_events = 2 * run.num_events;  // other things happen, perhaps a little later
    attempt.without.insert(static_cast<Fault>(i));
    if (!DrawWorld(run.seed, run.without).faults.contains(static_cast<Fault>(i)) || !fails(attempt)) continue;
    run = attempt;
    shorten();
  }
  return run;
}

SearchResult Replay(const RunOptions& options, int32_t num_lines) {
  SharedPage counted;
  if (num_lines > 0) {  // a crash leaves no time to print what was kept: count first, then print what comes late enough
    RunGuarded(counted, 20, nullptr, [&](Shared& into) {
      SilenceErrors();
      RunOptions counting = options;
      counting.log = [&into](const std::string&) { ++into.num_lines; };
      RunOne(counting, into);
    });
  }
  const int64_t num_skipped = num_lines > 0 ? counted->num_lines - num_lines : 0;
  SharedPage shared;
  RunGuarded(shared, 20, nullptr, [&](Shared& into) {
    RunOptions printing = options;
    int64_t line_number = 0;
    printing.log = [&](const std::string& line) {
      if (line_number++ < num_skipped) return;
      std::printf("%s\n", line.c_str());
      std::fflush(stdout);
    };
    RunOne(printing, into);
  });
  return ResultOf(*shared);
}

}  // namespace weir::sim
