#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/sim/violation.h"
#include "tests/sim/world.h"

// One run: the production core, workers and clients made of integers, a virtual clock, and everything drawn from a
// seed.

namespace weir::sim {

struct RunOptions {
  uint64_t seed = 1;
  int64_t num_events = 2000;                    // of chaos; then the world heals and every request must end
  FaultSet without;                             // faults that may not happen, whatever the seed says
  int32_t full_check_every = 1;                 // calls between two full comparisons of all books; 1: after every call
  std::function<void(const std::string&)> log;  // one line an event, if set
  std::function<void(int64_t)> progress;        // number of the event about to be applied, if set
};

struct RunResult {
  uint64_t trace_hash = 0;  // of every event, output and plan
  int64_t num_events = 0;   // applied, healing included
  int64_t num_steps = 0;
  int64_t num_requests = 0;
  int64_t num_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_cached_tokens = 0;
  double max_gap_over_u = 0;
  double max_class_lag_over_bound = 0;
  Violation violation;  // empty: all rules held
};

RunResult Simulate(const RunOptions& options);

}  // namespace weir::sim
