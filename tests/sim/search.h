#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "tests/sim/simulation.h"

// Runs many seeds, each guarded against crashes and endless loops of the code under test, and makes a failing one
// short.

namespace weir::sim {

struct SearchOptions {
  uint64_t first_seed = 1;
  int64_t num_seeds = 1;
  int64_t num_events = 2000;
  FaultSet without;
  int32_t full_check_every = 1;
  double cpu_seconds = 0;     // stops after so much; 0: never
  double stuck_seconds = 20;  // one event that takes longer is an endless loop
  std::function<void(int64_t num_done)> progress;
};

struct SearchResult {
  int64_t num_seeds = 0;  // run, the failing one included
  int64_t num_events = 0;
  int64_t num_requests = 0;
  int64_t num_tokens = 0;
  int64_t num_preemptions = 0;
  double max_gap_over_u = 0;
  double max_class_lag_over_bound = 0;
  uint64_t trace_hash = 0;  // over all seeds
  double cpu_seconds = 0;

  bool has_failed = false;
  uint64_t seed = 0;    // the failing one
  int64_t event = 0;    // at which it failed
  Violation violation;  // checker "crash" or "stuck" where the code under test did not come back
};

// Stops at the first failing seed.
SearchResult Search(const SearchOptions& options);

// The shortest prefix of events, then the fewest kinds of faults, with which the seed still breaks the same rule.
RunOptions Shrink(const SearchResult& failure, const SearchOptions& options);

// Runs once, printing one line an event: the last `num_lines` of them, or all for 0.
SearchResult Replay(const RunOptions& options, int32_t num_lines);

}  // namespace weir::sim
