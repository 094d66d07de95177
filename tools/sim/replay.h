#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/sim/policy_file.h"
#include "tools/sim/request_trace.h"

// Replays a recorded trace through the production scheduler with workers whose steps take what the policy's step cost
// says.  The clock is virtual: an hour takes seconds, and the same inputs give the same numbers to the last digit.
//
// A request asks for the trace's longest output and stops by a stop token where the trace says, so that the scheduler
// knows as little about lengths as in production.

namespace weir::sim {

struct ReplayOptions {
  double scale = 1;           // of the lengths, as applied to the trace: prefixes shrink with them
  double ttft_slo_ms = 2000;  // goodput counts the tokens of requests within both
  double tpot_slo_ms = 100;
  double warmup_s = 20;  // arrivals before it are served and not measured
  std::function<void(double part_done)> progress;
};

struct Percentiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};

struct TenantResult {
  std::string name;
  int64_t num_requests = 0;  // measured ones
  int64_t num_finished = 0;
  int64_t num_refused = 0;  // count as infinitely late
  Percentiles ttft_ms;
  Percentiles tpot_ms;
  double goodput_tokens_per_s = 0;
  double share = 0;  // of the service of all, by the policy's costs
  int64_t num_preemptions = 0;
  double hit_rate = 0;  // prompt tokens found in the prefix cache
};

struct ReplayResult {
  std::vector<TenantResult> tenants;  // that sent requests, in the policy's order
  TenantResult all;
  double trace_s = 0;     // of the trace
  double makespan_s = 0;  // until the last answer
  double wall_s = 0;
  int64_t num_steps = 0;
  double tokens_per_s = 0;    // computed, prompt and output
  double max_gap_over_u = 0;  // service gap between tenants that both kept waiting
  double jain_min = 1;        // over 60 s windows, among tenants that waited all through one; 1 if there are none
  double jain_mean = 1;
  int32_t num_jain_windows = 0;
};

ReplayResult Replay(const PolicyFile& policy, const RequestTrace& trace, const ReplayOptions& options);

// For people, and for programs.
std::string ResultTable(const ReplayResult& result, const ReplayResult* alone);
std::string ResultJson(const ReplayResult& result, const ReplayResult* alone);

}  // namespace weir::sim
