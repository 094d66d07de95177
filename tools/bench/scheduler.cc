#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "scheduler/core/block_key.h"
#include "scheduler/core/scheduler.h"

// The time of one step of the scheduler's core: the result of one step comes in, the next step is planned.  Arrivals
// that refill the queue are applied between steps and timed by themselves.  Times are processor time of steps during
// and just before which the system ran nobody else on this processor; wall times are of all steps.

namespace {

int64_t num_allocations = 0;  // one thread

}  // namespace

[[gnu::noinline]] void* operator new(size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t alignment) {
  ++num_allocations;
  if (void* memory = std::aligned_alloc(static_cast<size_t>(alignment), size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace weir::scheduler {
namespace {

using Clock = std::chrono::steady_clock;

// What this thread has had of the processor: on a machine with other work, wall time also measures that.
double CpuUs() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

// How often the system has taken the processor away from this thread.
int64_t NumSwitches() {
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nivcsw;
}

double Quantile(std::vector<double>& sorted, double q) {
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

struct Options {
  std::vector<int> running = {256, 1024, 4096};
  int waiting = 100000;
  int tenants = 400;
  int blocks = 1 << 20;
  double seconds = 6;
  std::string json;
};

struct Measurement {
  int running = 0;
  int64_t steps = 0;
  double p50_us = 0, p99_us = 0, max_us = 0;  // processor time of undisturbed steps
  double disturbed = 0;                       // part of the steps that were not
  double wall_p50_us = 0, wall_p99_us = 0;
  double allocations_per_step = 0;
  double arrival_us = 0;
  double finished_per_step = 0, hit_rate = 0;
  int64_t waiting = 0, cached_blocks = 0, preemptions = 0;
};

// A replica in the steady state: as many sequences run as slots allow, each that ends lets the next one in, each that
// is let in is replaced by an arrival.
class Load {
 public:
  Load(const Options& options, int running) : options_(options), random_(7) {
    limits_.max_num_seqs = running;
    limits_.max_num_batched_tokens = running + 8192;
    limits_.max_num_waiting = options.waiting + 2 * running;
    limits_.max_waiting_tokens = int64_t{1} << 40;
    Policy policy;
    for (int i = 0; i < options.tenants; ++i)
      policy.tenants.push_back({.weight = 1.0 + i % 3, .max_num_waiting = 1 << 30});
    policy.max_prompt_tokens_while_decoding = 8192;
    core_ = std::make_unique<Scheduler>(limits_, policy);
    core_->Apply(now_, GroupFormed{.epoch = 1, .num_dp_groups = 1, .blocks_per_dp_group = options.blocks}, outputs_);
  }

  // Fills the prefix cache with prompts that end at once, then the queue and the slots.
  void WarmUp() {
    while (core_->stats().blocks_free > 0) {
      while (core_->stats().num_waiting < 64) Arrive(4096, 0, 1);
      StepOnce();
    }
    while (core_->stats().num_waiting > 0) StepOnce();
    while (core_->stats().num_waiting < options_.waiting) Arrive();
    is_full_ = true;
    // A cache too small for all slots never fills them.
    for (int i = 0; i < 1500 || (i < 4000 && core_->stats().num_running < limits_.max_num_seqs); ++i) StepOnce();
  }

  Measurement Measure() {
    cpu_times_.clear();
    wall_times_.clear();
    const Stats before = core_->stats();
    const int64_t allocations_before = num_allocations_timed_;
    arrival_time_ = 0;
    num_arrivals_ = 0;
    const Clock::time_point begin = Clock::now();
    while (std::chrono::duration<double>(Clock::now() - begin).count() < options_.seconds) StepOnce();
    const Stats& after = core_->stats();
    std::sort(cpu_times_.begin(), cpu_times_.end());
    std::sort(wall_times_.begin(), wall_times_.end());
    const auto steps = static_cast<double>(wall_times_.size());
    Measurement result;
    result.running = limits_.max_num_seqs;
    result.steps = static_cast<int64_t>(wall_times_.size());
    result.disturbed = 1 - static_cast<double>(cpu_times_.size()) / steps;
    result.p50_us = Quantile(cpu_times_, 0.5);
    result.p99_us = Quantile(cpu_times_, 0.99);
    result.max_us = cpu_times_.back();
    result.wall_p50_us = Quantile(wall_times_, 0.5);
    result.wall_p99_us = Quantile(wall_times_, 0.99);
    result.allocations_per_step = static_cast<double>(num_allocations_timed_ - allocations_before) / steps;
    result.arrival_us = arrival_time_ / std::max(1, num_arrivals_);
    result.finished_per_step = static_cast<double>(after.requests_finished - before.requests_finished) / steps;
    result.hit_rate =
        static_cast<double>(after.prefix_cache_hits - before.prefix_cache_hits) /
        static_cast<double>(std::max<int64_t>(1, after.prefix_cache_queries - before.prefix_cache_queries));
    result.waiting = after.num_waiting;
    result.cached_blocks = after.blocks_cached;
    result.preemptions = after.preemptions - before.preemptions;
    return result;
  }

 private:
  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  // Half of a prompt is a system prompt of its tenant, one of four; the rest is its own.
  void Arrive() {
    const int length = Draw(300, 1800);
    Arrive(length, length / 2, Draw(64, 512));
  }

  void Arrive(int length, int num_shared, int max_tokens) {
    Arrival arrival;
    arrival.id = ++last_id_;
    arrival.tenant = Draw(0, options_.tenants - 1);
    arrival.priority = static_cast<PriorityClass>(Draw(0, 2));
    arrival.prompt.assign(num_shared, arrival.tenant * 4 + Draw(0, 3));
    for (int i = num_shared; i < length; ++i) arrival.prompt.push_back(Draw(0, 99999));
    arrival.max_tokens = max_tokens;
    if (Draw(0, 1) == 0) arrival.deadline = now_ + TimeUs{10} * 1000 * 1000 * 1000;
    arrival.block_keys = PromptBlockKeys(secret_, "bench", "model", arrival.prompt, limits_.block_size);
    const Clock::time_point begin = Clock::now();
    core_->Apply(now_, arrival, outputs_);
    arrival_time_ += std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    ++num_arrivals_;
    outputs_.clear();
  }

  // One step: the oldest result comes in and the next step is planned.
  void StepOnce() {
    now_ += 20000;
    completed_.sampled.clear();
    const bool completes = num_in_flight_ == limits_.max_steps_in_flight || (num_in_flight_ > 0 && !has_planned_);
    if (completes) {
      const int max_steps = limits_.max_steps_in_flight;
      const StepPlan& oldest = in_flight_[(newest_ - num_in_flight_ + 1 + max_steps) % max_steps];
      completed_.epoch = 1;
      completed_.step = oldest.step;
      for (const PlannedWork& work : oldest.work) {
        if (work.samples) completed_.sampled.push_back({.dp_group = 0, .slot = work.slot, .token = 17});
      }
    }
    event_ = std::move(completed_);
    const int64_t allocations_before = num_allocations;
    const Clock::time_point begin = Clock::now();
    const double cpu_begin = CpuUs();
    if (completes) {
      core_->Apply(now_, event_, outputs_);
      --num_in_flight_;
    }
    const int next = (newest_ + 1) % limits_.max_steps_in_flight;
    has_planned_ = core_->Plan(now_, in_flight_[next], outputs_);
    if (has_planned_) {
      newest_ = next;
      ++num_in_flight_;
    }
    const double cpu_us = CpuUs() - cpu_begin;
    num_allocations_timed_ += num_allocations - allocations_before;
    wall_times_.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    // After a switch the caches hold another process's data, and the next step or two measure that process.
    const int64_t num_switches = NumSwitches();
    if (num_switches != num_switches_) last_switch_ = num_steps_;
    num_switches_ = num_switches;
    if (++num_steps_ - last_switch_ > 3) cpu_times_.push_back(cpu_us);
    completed_ = std::move(std::get<StepCompleted>(event_));
    outputs_.clear();
    while (is_full_ && core_->stats().num_waiting < options_.waiting) Arrive();
  }

  const Options& options_;
  std::mt19937_64 random_;
  std::vector<double> cpu_times_, wall_times_;
  int64_t num_switches_ = 0, num_steps_ = 0, last_switch_ = 0;
  Limits limits_;
  std::unique_ptr<Scheduler> core_;
  BlockKeySecret secret_;
  std::vector<Output> outputs_;
  std::vector<StepPlan> in_flight_ = std::vector<StepPlan>(2);
  bool is_full_ = false, has_planned_ = true;
  int newest_ = 0, num_in_flight_ = 0;
  StepCompleted completed_;
  Event event_;
  TimeUs now_ = 0;
  RequestId last_id_ = 0;
  double arrival_time_ = 0;
  int num_arrivals_ = 0;
  int64_t num_allocations_timed_ = 0;
};

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

void Run(const Options& options) {
  nlohmann::json rows = nlohmann::json::array();
  std::printf("%s; %d waiting, %d tenants, %d blocks of 64 tokens; goal p99: 100 us at 256 running, 500 us at 4096\n\n",
              CpuName().c_str(), options.waiting, options.tenants, options.blocks);
  std::printf(
      "running    steps   p50 us   p99 us   max us  disturbed  wall p50  wall p99  allocs/step  finished/step  hit "
      "rate  cached "
      "blocks  us/arrival\n");
  for (const int running : options.running) {
    std::fprintf(stderr, "%d running: filling ...\r", running);
    Load load(options, running);
    load.WarmUp();
    const Measurement m = load.Measure();
    std::printf("%7d %8ld %8.1f %8.1f %8.1f %9.0f%% %9.1f %9.1f %12.4f %14.2f %9.2f %14ld %11.2f\n", m.running, m.steps,
                m.p50_us, m.p99_us, m.max_us, 100 * m.disturbed, m.wall_p50_us, m.wall_p99_us, m.allocations_per_step,
                m.finished_per_step, m.hit_rate, m.cached_blocks, m.arrival_us);
    std::fflush(stdout);
    rows.push_back({{"running", m.running},
                    {"waiting", m.waiting},
                    {"steps", m.steps},
                    {"p50_us", m.p50_us},
                    {"p99_us", m.p99_us},
                    {"max_us", m.max_us},
                    {"disturbed", m.disturbed},
                    {"wall_p50_us", m.wall_p50_us},
                    {"wall_p99_us", m.wall_p99_us},
                    {"allocations_per_step", m.allocations_per_step},
                    {"finished_per_step", m.finished_per_step},
                    {"hit_rate", m.hit_rate},
                    {"cached_blocks", m.cached_blocks},
                    {"preemptions", m.preemptions},
                    {"arrival_us", m.arrival_us}});
  }
  if (options.json.empty()) return;
  std::ofstream(options.json) << nlohmann::json{{"benchmark", "scheduler"}, {"cpu", CpuName()}, {"rows", rows}}.dump(2)
                              << "\n";
}

}  // namespace
}  // namespace weir::scheduler

int main(int argc, char** argv) {
  weir::scheduler::Options options;
  CLI::App app{
      "Time of one step of the scheduler's core (a result in, a plan out) under a full queue and a full prefix cache.\n"
      "Example: tools/dev bench scheduler --running 256 --json /tmp/scheduler.json"};
  app.add_option("--running", options.running, "sequences running at once; several may be given")
      ->capture_default_str();
  app.add_option("--waiting", options.waiting, "requests kept waiting")->capture_default_str();
  app.add_option("--tenants", options.tenants, "tenants")->capture_default_str();
  app.add_option("--blocks", options.blocks, "KV blocks, nearly all of them cached")->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured time for each row")->capture_default_str();
  app.add_option("--json", options.json, "write the table to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  weir::scheduler::Run(options);
  return 0;
}
